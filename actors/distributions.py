"""What the policy network's outputs mean, in NumPy; `learner/distributions.py` says the same in MLX.

`parameters` are the network's outputs [..., size]; randomness is drawn ahead for a whole rollout as `noise`.
"""

import math
from typing import Protocol

import numpy as np

LOG_2PI = math.log(2 * math.pi)


class Distribution(Protocol):
    """A distribution over actions, given the policy network's outputs."""

    def draw_noise(self, generator: np.random.Generator, shape: tuple[int, ...], size: int) -> np.ndarray:
        """Noise for actions of leading `shape`: float32 [*shape, size]."""
        ...

    def sample(self, parameters: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The actions that `noise` selects."""
        ...

    def mode(self, parameters: np.ndarray) -> np.ndarray:
        """The most probable actions."""
        ...

    def log_prob(self, parameters: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """log π(actions), float32 [...]."""
        ...


class Categorical:
    """One of `size` actions, from logits [..., size]. Actions are int64 [...], counted from 0."""

    def draw_noise(self, generator: np.random.Generator, shape: tuple[int, ...], size: int) -> np.ndarray:
        return generator.gumbel(size=(*shape, size)).astype(np.float32)

    def sample(self, parameters: np.ndarray, noise: np.ndarray) -> np.ndarray:
        # The largest of logits plus Gumbel noise is distributed as softmax(logits) (Gumbel 1954).
        return (parameters + noise).argmax(axis=-1)

    def mode(self, parameters: np.ndarray) -> np.ndarray:
        return parameters.argmax(axis=-1)

    def log_prob(self, parameters: np.ndarray, actions: np.ndarray) -> np.ndarray:
        shifted = parameters - parameters.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(shifted, actions[..., None], axis=-1)[..., 0]
        return chosen - np.log(np.exp(shifted).sum(axis=-1))


class Gaussian:
    """Independent normal action dimensions, from means [..., size] and one learned log standard deviation each."""

    def __init__(self, log_std: np.ndarray) -> None:
        self.log_std = log_std  # float32 [size]
        self.std = np.exp(log_std)

    def draw_noise(self, generator: np.random.Generator, shape: tuple[int, ...], size: int) -> np.ndarray:
        return generator.standard_normal((*shape, size), dtype=np.float32)

    def sample(self, parameters: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return parameters + self.std * noise

    def mode(self, parameters: np.ndarray) -> np.ndarray:
        return parameters

    def log_prob(self, parameters: np.ndarray, actions: np.ndarray) -> np.ndarray:
        deviations = (actions - parameters) / self.std
        return (-0.5 * (deviations * deviations + np.float32(LOG_2PI)) - self.log_std).sum(axis=-1)
