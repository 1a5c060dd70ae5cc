"""What the learner remembers of each lane: enough for any actor to take it over at the next border."""

from dataclasses import dataclass, replace

import numpy as np

from protocol.experiment import Experiment
from protocol.trajectory import LaneState, Trajectory


@dataclass(frozen=True)
class LaneBorder:
    """A lane at the border before a rollout. Borders share the logs of actions that they have in common."""

    rollout_index: int
    episode_indices: np.ndarray  # int64 [N]
    logs: tuple[tuple[np.ndarray, ...], ...]  # for each environment, its episode's actions in pieces [n, *action]
    digests: np.ndarray  # uint8 [N, DIGEST_SIZE]

    def after(self, trajectory: Trajectory) -> "LaneBorder":
        """The border at the end of `trajectory`, which began at this one."""
        done = trajectory.done
        logs = []
        for n, log in enumerate(self.logs):
            ends = np.flatnonzero(done[:, n])
            start = int(ends[-1]) + 1 if len(ends) else 0
            kept = () if start or trajectory.restarted[n] else log
            logs.append((*kept, trajectory.actions[start:, n].copy()))
        return replace(
            self,
            rollout_index=self.rollout_index + 1,
            episode_indices=trajectory.episode_indices,
            logs=tuple(logs),
            digests=trajectory.digests,
        )

    def state(self) -> LaneState:
        """The border as it travels in a grant and lies in a checkpoint."""
        pieces = [piece for log in self.logs for piece in log]
        return LaneState(
            rollout_index=self.rollout_index,
            episode_indices=self.episode_indices,
            episode_steps=np.array([sum(len(piece) for piece in log) for log in self.logs], np.int64),
            actions=np.concatenate(pieces),
            digests=self.digests,
        )

    @classmethod
    def of(cls, state: LaneState) -> "LaneBorder":
        logs = tuple((state.actions_of(n),) for n in range(len(state.episode_steps)))
        return cls(state.rollout_index, state.episode_indices, logs, state.digests)

    @classmethod
    def first(cls, experiment: Experiment) -> "LaneBorder":
        """The border before a lane's first rollout: nothing to replay, and no state to send."""
        size = experiment.lane_size
        return cls(0, np.zeros(size, np.int64), ((),) * size, np.zeros((size, 0), np.uint8))
