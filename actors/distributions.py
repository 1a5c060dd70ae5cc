"""What the policy network's outputs mean, in NumPy; `learner/distributions.py` says the same in MLX.

`parameters` are the network's outputs [..., size], actions flat [..., k]; randomness is drawn ahead for a whole rollout
as `noise`.
"""

import math
from typing import Protocol

import numpy as np

from protocol.spaces import Spaces, groups_of

LOWEST = np.float32(-1e37)  # Of an allowed action's logit; with noise, it is still finite.
LOG_2PI = math.log(2 * math.pi)


class Distribution(Protocol):
    """A distribution over actions, given the policy network's outputs."""

    def draw_noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Noise for parameters of `shape`: float32."""
        ...

    def sample(self, parameters: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The actions [..., k] that `noise` selects."""
        ...

    def mode(self, parameters: np.ndarray) -> np.ndarray:
        """The most probable actions [..., k]."""
        ...

    def log_prob(self, parameters: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """log π(actions), float32 [...]."""
        ...


def make_distribution(spaces: Spaces, log_std: np.ndarray | None) -> Distribution:
    """The distribution for these spaces; `log_std` [size] is the Gaussian's."""
    if spaces.distribution == "categorical":
        return Categorical(spaces.choices)
    if spaces.distribution == "bernoulli":
        return Bernoulli()
    assert log_std is not None
    return Gaussian(log_std)


def masked(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Logits [..., size] with minus infinity where an action is not `allowed`, bool [..., size].

    An allowed one never is: a network that has lost all measure must not choose what is not allowed either.
    """
    return np.where(allowed, np.maximum(logits, LOWEST), -np.inf).astype(np.float32, copy=False)


class Categorical:
    """One of `choices[i]` values for each number i of an action, from logits side by side. Actions are int64."""

    def __init__(self, choices: tuple[int, ...]) -> None:
        self._groups = [slice(start, end) for start, end in groups_of(choices)]

    def draw_noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return generator.gumbel(size=shape).astype(np.float32)

    def sample(self, parameters: np.ndarray, noise: np.ndarray) -> np.ndarray:
        # The largest of logits plus Gumbel noise is distributed as softmax(logits) (Gumbel 1954).
        return self.mode(parameters + noise)

    def mode(self, parameters: np.ndarray) -> np.ndarray:
        if len(self._groups) == 1:
            return parameters.argmax(axis=-1)[..., None]
        return np.stack([parameters[..., group].argmax(axis=-1) for group in self._groups], axis=-1)

    def log_prob(self, parameters: np.ndarray, actions: np.ndarray) -> np.ndarray:
        total = np.zeros(parameters.shape[:-1], np.float32)
        for i, group in enumerate(self._groups):
            logits = parameters[..., group]
            shifted = logits - logits.max(axis=-1, keepdims=True)
            chosen = np.take_along_axis(shifted, actions[..., i : i + 1], axis=-1)[..., 0]
            total += chosen - np.log(np.exp(shifted).sum(axis=-1))
        return total


class Gaussian:
    """Independent normal action dimensions, from means and one learned log standard deviation each."""

    def __init__(self, log_std: np.ndarray) -> None:
        self.log_std = log_std  # float32 [size]
        self.std = np.exp(log_std)

    def draw_noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return generator.standard_normal(shape, dtype=np.float32)

    def sample(self, parameters: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return parameters + self.std * noise

    def mode(self, parameters: np.ndarray) -> np.ndarray:
        return parameters

    def log_prob(self, parameters: np.ndarray, actions: np.ndarray) -> np.ndarray:
        deviations = (actions - parameters) / self.std
        return (-0.5 * (deviations * deviations + np.float32(LOG_2PI)) - self.log_std).sum(axis=-1)


class Bernoulli:
    """Independent bits, from the logit of each being 1. Actions are int8."""

    def draw_noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return generator.logistic(size=shape).astype(np.float32)

    def sample(self, parameters: np.ndarray, noise: np.ndarray) -> np.ndarray:
        # A logit plus logistic noise is positive with the probability sigmoid(logit).
        return self.mode(parameters + noise)

    def mode(self, parameters: np.ndarray) -> np.ndarray:
        return (parameters > 0).astype(np.int8)

    def log_prob(self, parameters: np.ndarray, actions: np.ndarray) -> np.ndarray:
        signed = np.where(actions == 1, parameters, -parameters)  # log sigmoid(x) = min(x, 0) − log(1 + e^−|x|)
        return (np.minimum(signed, 0) - np.log1p(np.exp(-np.abs(signed)))).sum(axis=-1)
