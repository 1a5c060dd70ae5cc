"""Running statistics, kept by the learner: of observations, shipped inside each snapshot, and of returns."""

from collections import Counter

import numpy as np

from protocol.observations import normalization

REWARD_CLIP = 10.0


class RunningStatistics:
    """Mean and variance of all samples seen, in float64 (Chan, Golub & LeVeque 1979, the parallel formula)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean = np.zeros(shape)
        self.squares = np.zeros(shape)  # sum of squared deviations from the mean

    def update(self, samples: np.ndarray) -> None:
        """Take in samples [B, *shape]."""
        samples = samples.astype(np.float64)
        count, mean = len(samples), samples.mean(axis=0)
        squares = np.square(samples - mean).sum(axis=0)
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares + np.square(delta) * (self.count * count / total)
        self.count = total

    @property
    def variance(self) -> np.ndarray:
        """Population variance; 1 before the first sample."""
        return self.squares / self.count if self.count else np.ones_like(self.squares)

    def normalization(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean, one over the standard deviation), float32, as a snapshot carries them."""
        return normalization(self.state_dict())

    def state_dict(self) -> dict[str, np.ndarray]:
        return {"count": np.array(self.count), "mean": np.array(self.mean), "squares": np.array(self.squares)}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        self.count, self.mean, self.squares = int(state["count"]), state["mean"], state["squares"]


class RewardScaling:
    """Rewards over the standard deviation of the discounted return, clipped to ±10 (Engstrom et al., arXiv 2005.12729).

    A batch is scaled with statistics that already hold it. The return of an episode runs on across iterations.
    """

    def __init__(self, num_envs: int, discount: float) -> None:
        self._discount = discount
        self._returns = np.zeros(num_envs)  # discounted, of the episodes under way
        self._statistics = RunningStatistics(())

    def __call__(self, rewards: np.ndarray, done: np.ndarray, environments: np.ndarray) -> np.ndarray:
        """Scaled rewards, float32 [T, N], for raw ones and the steps that ended an episode.

        `environments` [N] says whose the columns are; one with several columns lived them from left to right.
        """
        returns = np.empty(rewards.shape)
        under_way = self._returns.copy()
        for columns in in_turns(environments):
            current = under_way[environments[columns]]
            for t, row in enumerate(rewards[:, columns]):
                current = self._discount * current + row
                returns[t, columns] = current
                current = np.where(done[t, columns], 0.0, current)
            under_way[environments[columns]] = current
        self._returns = under_way
        self._statistics.update(returns.reshape(-1))
        scaled = rewards / np.sqrt(self._statistics.variance + 1e-8)
        return np.clip(scaled, -REWARD_CLIP, REWARD_CLIP).astype(np.float32)

    def state_dict(self) -> dict[str, np.ndarray]:
        return {"returns": self._returns} | self._statistics.state_dict()

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        self._returns = state["returns"]
        self._statistics.load_state_dict(state)


def in_turns(environments: np.ndarray) -> list[np.ndarray]:
    """The columns of each environment's first appearance in `environments` [N], then those of the second, and so on."""
    seen: Counter[int] = Counter()
    turns = np.empty(len(environments), np.int64)
    for column, environment in enumerate(environments.tolist()):
        turns[column] = seen[environment]
        seen[environment] += 1
    return [np.flatnonzero(turns == turn) for turn in range(turns.max() + 1)]
