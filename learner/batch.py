"""The rollout buffer: one iteration's trajectories side by side, in the order of their lanes and rollouts."""

from dataclasses import dataclass

import numpy as np

from protocol.trajectory import EPISODE, Trajectory, axes_of


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
    episode_returns: np.ndarray  # float64 [E], of the finished episodes, in the order (t, environment)
    episode_lengths: np.ndarray  # int64 [E]
    environments: np.ndarray  # int64 [num_envs], the index of each column's environment
    policy_versions: np.ndarray  # int64 [num_envs], that each column was acted with
    extras: dict[str, np.ndarray]  # Those of the trajectories, with num_envs in place of N.

    @property
    def size(self) -> int:
        return self.rewards.size

    @property
    def done(self) -> np.ndarray:
        """bool [T, num_envs]: the steps that ended an episode."""
        return self.terminated | self.truncated

    @classmethod
    def stack(cls, trajectories: list[Trajectory], buffers: dict[str, np.ndarray] | None = None) -> "Batch":
        """The batch of `trajectories`, given in the order of their lanes and rollouts.

        Its large arrays lie in `buffers`, which is filled at the first call; the next call overwrites them.
        """
        buffers = {} if buffers is None else buffers
        lane_size = trajectories[0].rewards.shape[1]

        def order(flag: str) -> np.ndarray:
            """The order (t, environment) of what the trajectories list by (t, n) where `flag` is set."""
            steps = [np.argwhere(getattr(trajectory, flag)) for trajectory in trajectories]
            t = np.concatenate([s[:, 0] for s in steps])
            env = np.concatenate([s[:, 1] + i * lane_size for i, s in enumerate(steps)])
            return np.lexsort((env, t))

        orders = {"K": order("truncated"), "E": order("done")}

        def stacked(name: str) -> np.ndarray:
            arrays = [found(trajectory, name) for trajectory in trajectories]
            axes = axes_of(name)
            if axes == "TN":
                buffers[name] = np.concatenate(arrays, axis=1, out=buffers.get(name))
                return buffers[name]
            array = np.concatenate(arrays)
            return array if axes == "N" else array[orders[axes]]

        def found(trajectory: Trajectory, name: str) -> np.ndarray:
            """An array of a trajectory; of an episode metric that none of its episodes has, NaN for each."""
            if name.startswith(EPISODE) and not trajectory.has(name):
                return np.full(trajectory.episode_returns.size, np.nan)
            return trajectory.array(name)

        extras = dict.fromkeys(name for trajectory in trajectories for name in trajectory.extras)

        return cls(
            observations=stacked("observations"),
            last_observations=stacked("last_observations"),
            final_observations=stacked("final_observations"),
            actions=stacked("actions"),
            behaviour_log_probs=stacked("behaviour_log_probs"),
            rewards=stacked("rewards"),
            terminated=stacked("terminated"),
            truncated=stacked("truncated"),
            episode_returns=stacked("episode_returns"),
            episode_lengths=stacked("episode_lengths"),
            environments=np.concatenate([np.arange(lane_size) + t.lane * lane_size for t in trajectories]),
            policy_versions=np.repeat([t.policy_version for t in trajectories], lane_size),
            extras={name: stacked(name) for name in extras},
        )
