"""Running statistics of observations, kept by the learner and shipped inside each snapshot."""

import numpy as np


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
