"""The rollout buffer: one iteration's trajectories side by side, in the order of their lanes and rollouts."""

from dataclasses import dataclass

import numpy as np

from protocol.trajectory import Trajectory


@dataclass(frozen=True)
class Batch:
    """The experience of one iteration: [T, num_envs, …], environments in the order of their index.

    In the schedule `async` an environment may be there several times, in the order of its rollouts, and another not.
    """

    observations: np.ndarray  # [T, num_envs, *observation], raw
    last_observations: np.ndarray  # [num_envs, *observation]
    final_observations: np.ndarray  # [K, *observation], of the truncated episodes, in the order (t, environment)
    actions: np.ndarray  # [T, num_envs, *action]
    behaviour_log_probs: np.ndarray  # float32 [T, num_envs]
    rewards: np.ndarray  # float32 [T, num_envs]
    terminated: np.ndarray  # bool [T, num_envs]
    truncated: np.ndarray  # bool [T, num_envs]
    initial_memory: np.ndarray  # float32 [num_envs, recurrent_size]
    episode_returns: np.ndarray  # float64 [E], of the finished episodes, in the order (t, environment)
    episode_lengths: np.ndarray  # int64 [E]
    environments: np.ndarray  # int64 [num_envs], the index of each column's environment
    policy_versions: np.ndarray  # int64 [num_envs], that each column was acted with

    @property
    def size(self) -> int:
        return self.rewards.size

    @property
    def done(self) -> np.ndarray:
        """bool [T, num_envs]: the steps that ended an episode."""
        return self.terminated | self.truncated

    @classmethod
    def stack(cls, trajectories: list[Trajectory], memory: dict[str, np.ndarray] | None = None) -> "Batch":
        """The batch of `trajectories`, given in the order of their lanes and rollouts.

        Its large arrays lie in `memory`, which is filled at the first call; the next call overwrites them.
        """
        memory = {} if memory is None else memory

        def side_by_side(name: str) -> np.ndarray:
            memory[name] = np.concatenate([getattr(t, name) for t in trajectories], axis=1, out=memory.get(name))
            return memory[name]

        def in_order(flag: str, name: str) -> np.ndarray:
            """What each trajectory lists by (t, n) where `flag` is set, listed by (t, environment)."""
            steps = [np.argwhere(getattr(trajectory, flag)) for trajectory in trajectories]
            t = np.concatenate([s[:, 0] for s in steps])
            env = np.concatenate([s[:, 1] + i * lane_size for i, s in enumerate(steps)])
            values = np.concatenate([getattr(trajectory, name) for trajectory in trajectories])
            return values[np.lexsort((env, t))]

        lane_size = trajectories[0].rewards.shape[1]
        return cls(
            observations=side_by_side("observations"),
            last_observations=np.concatenate([t.last_observations for t in trajectories]),
            final_observations=in_order("truncated", "final_observations"),
            actions=side_by_side("actions"),
            behaviour_log_probs=side_by_side("behaviour_log_probs"),
            rewards=side_by_side("rewards"),
            terminated=side_by_side("terminated"),
            truncated=side_by_side("truncated"),
            initial_memory=np.concatenate([t.initial_memory for t in trajectories]),
            episode_returns=in_order("done", "episode_returns"),
            episode_lengths=in_order("done", "episode_lengths"),
            environments=np.concatenate([np.arange(lane_size) + t.lane * lane_size for t in trajectories]),
            policy_versions=np.repeat([t.policy_version for t in trajectories], lane_size),
        )
