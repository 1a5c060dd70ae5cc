"""A lane at a border between two rollouts: all that any actor needs to take it over there."""

import math
from dataclasses import dataclass, replace

import numpy as np

from protocol.errors import ProtocolError
from protocol.experiment import Experiment
from protocol.spaces import Spaces
from protocol.trajectory import LaneState, Trajectory

ACTIONS = "actions"
ACTION_BITS = "action_bits"  # A checkpoint has these instead of integer actions, of which there may be millions.


def to_bits(numbers: np.ndarray) -> np.ndarray:
    """Integers from 0 on in as many bits as the largest needs: uint8 [bits, bytes], a row of all for each bit."""
    flat = numbers.reshape(-1)
    count = max(1, int(flat.max(initial=0)).bit_length())
    return np.stack([np.packbits(flat & (1 << bit) != 0) for bit in range(count)])


def from_bits(bits: np.ndarray, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The inverse of `to_bits`. Raises `ValueError` if the shape does not fit."""
    size = math.prod(shape)
    if bits.ndim != 2 or bits.shape[1] != -(-size // 8):
        raise ValueError(f"bits {list(bits.shape)} are not those of {size} numbers")
    numbers = np.zeros(size, dtype)
    for bit, row in enumerate(bits):
        numbers |= np.unpackbits(row, count=size).astype(dtype) << bit
    return numbers.reshape(shape)


@dataclass(frozen=True)
class LaneBorder:
    """A lane at the border before a rollout. Borders share the logs of actions that they have in common."""

    rollout_index: int
    episode_indices: np.ndarray  # int64 [N]
    logs: tuple[tuple[np.ndarray, ...], ...]  # By environment: its episode's actions, in pieces [n, *action].
    digests: np.ndarray  # uint8 [N, DIGEST_SIZE]
    hidden_state: np.ndarray  # float32 [N, hidden_state_size]
    progress: np.ndarray  # float64 [N], the share of training that each episode was told of when it began

    def check_followed_by(self, trajectory: Trajectory) -> None:
        """Raise `ProtocolError` unless `trajectory` counts its episodes on from here: who takes the lane over relies on
        it."""
        begun = np.count_nonzero(trajectory.done, axis=0) + trajectory.restarted + trajectory.failed_resets
        if not np.array_equal(trajectory.episode_indices, self.episode_indices + begun):
            raise ProtocolError("episode_indices do not go on from where the lane was")

    def after(self, trajectory: Trajectory, progress: float = 0.0) -> "LaneBorder":
        """The border at the end of `trajectory`, which began at this one. `progress` is the share of training that was
        over before."""
        done = trajectory.done
        # Where each environment's last episode begins.
        starts = np.where(done.any(axis=0), len(done) - done[::-1].argmax(axis=0), 0).tolist()
        # Copies, so that a log keeps neither the message's memory nor the other environments' actions.
        logs = [
            (*(() if start or restarted else log), trajectory.actions[start:, n].copy())
            for n, (log, start, restarted) in enumerate(
                zip(self.logs, starts, trajectory.restarted.tolist(), strict=True)
            )
        ]
        return replace(
            self,
            rollout_index=self.rollout_index + 1,
            episode_indices=trajectory.episode_indices,
            logs=tuple(logs),
            digests=trajectory.digests,
            hidden_state=trajectory.extras.get("last_hidden_state", self.hidden_state),
            progress=np.where(trajectory.episode_indices > self.episode_indices, progress, self.progress),
        )

    @property
    def episode_steps(self) -> np.ndarray:
        """int64 [N], of each environment's episode so far."""
        return np.array([sum(len(piece) for piece in log) for log in self.logs], np.int64)

    def state(self) -> LaneState:
        """The border as it travels in a grant and lies in a checkpoint."""
        pieces = [piece for log in self.logs for piece in log]
        return LaneState(
            rollout_index=self.rollout_index,
            episode_indices=self.episode_indices,
            episode_steps=self.episode_steps,
            actions=np.concatenate(pieces),
            digests=self.digests,
            hidden_state=self.hidden_state,
            progress=self.progress,
        )

    @classmethod
    def of(cls, state: LaneState) -> "LaneBorder":
        logs = tuple((state.actions_of(n),) for n in range(len(state.episode_steps)))
        rest = state.digests, state.hidden_state, state.progress
        return cls(state.rollout_index, state.episode_indices, logs, *rest)

    def arrays(self) -> dict[str, np.ndarray]:
        """The border as a checkpoint keeps it, by name; nothing of one before the lane's first rollout."""
        if self.rollout_index == 0:
            return {}
        state = self.state()
        packed = state.actions.dtype.kind == "i"
        return {
            "rollout_index": np.asarray(state.rollout_index),
            "episode_indices": state.episode_indices,
            "episode_steps": state.episode_steps,
            ACTION_BITS if packed else ACTIONS: to_bits(state.actions) if packed else state.actions,
            "digests": state.digests,
            "hidden_state": state.hidden_state,
            "progress": state.progress,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], experiment: Experiment, spaces: Spaces) -> "LaneBorder":
        """The inverse of `arrays`. Raises `KeyError` or `ValueError` if the arrays are others."""
        if not arrays:  # A lane of `async` may have no border yet.
            return cls.first(experiment)
        if ACTION_BITS in arrays:
            shape = (int(arrays["episode_steps"].sum()), *spaces.action.shape)
            actions = from_bits(arrays[ACTION_BITS], shape, spaces.action.dtype)
        else:
            actions = arrays[ACTIONS]
        return cls.of(
            LaneState(
                rollout_index=int(arrays["rollout_index"]),
                episode_indices=arrays["episode_indices"],
                episode_steps=arrays["episode_steps"],
                actions=actions,
                digests=arrays["digests"],
                hidden_state=arrays["hidden_state"],
                progress=arrays["progress"],
            )
        )

    @classmethod
    def first(cls, experiment: Experiment) -> "LaneBorder":
        """The border before a lane's first rollout: nothing to replay, and no state to send."""
        size = experiment.lane_size
        hidden_state = np.zeros((size, experiment.hidden_state_size), np.float32)
        digests, progress = np.zeros((size, 0), np.uint8), np.zeros(size)
        return cls(0, np.zeros(size, np.int64), ((),) * size, digests, hidden_state, progress)
