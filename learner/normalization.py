"""Running statistics, kept by the learner: of observations, shipped inside each snapshot, and of returns."""

import numpy as np

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
        return self.mean.astype(np.float32), (1 / np.sqrt(self.variance + 1e-8)).astype(np.float32)

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

    def __call__(self, rewards: np.ndarray, done: np.ndarray) -> np.ndarray:
        """Scaled rewards, float32 [T, num_envs], for raw ones and the steps that ended an episode."""
        returns = np.empty(rewards.shape)
        for t, row in enumerate(rewards):
            returns[t] = self._returns = self._discount * self._returns + row
            self._returns = np.where(done[t], 0.0, self._returns)
        self._statistics.update(returns.reshape(-1))
        scaled = rewards / np.sqrt(self._statistics.variance + 1e-8)
        return np.clip(scaled, -REWARD_CLIP, REWARD_CLIP).astype(np.float32)

    def state_dict(self) -> dict[str, np.ndarray]:
        return {"returns": self._returns} | self._statistics.state_dict()

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        self._returns = state["returns"]
        self._statistics.load_state_dict(state)
