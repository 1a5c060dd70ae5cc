"""What the policy network's outputs mean, in MLX; `actors/distributions.py` says the same in NumPy."""

import itertools
import math
from typing import Protocol

import mlx.core as mx

from protocol.spaces import Spaces

LOG_2PI = math.log(2 * math.pi)


class Distribution(Protocol):
    """A distribution over actions, given the policy network's outputs [..., size]."""

    def log_prob(self, actions: mx.array) -> mx.array:
        """log π(actions) [...], for flat actions [..., k]."""
        ...

    def entropy(self) -> mx.array:
        """Entropy [...], in nats."""
        ...


def make_distribution(spaces: Spaces, parameters: mx.array, log_std: mx.array | None) -> Distribution:
    """The distribution for these spaces; `log_std` [size] is the Gaussian's."""
    if spaces.distribution == "categorical":
        return Categorical(parameters, spaces.choices)
    if spaces.distribution == "bernoulli":
        return Bernoulli(parameters)
    assert log_std is not None
    return Gaussian(parameters, log_std)


class Categorical:
    """One of `choices[i]` values for each number i of an action, from logits side by side."""

    def __init__(self, logits: mx.array, choices: tuple[int, ...]) -> None:
        ends = list(itertools.accumulate(choices))
        groups = [logits[..., end - n : end] for end, n in zip(ends, choices, strict=True)]
        # Relative to the largest, so that large logits which are nearly equal keep their digits.
        groups = [group - mx.stop_gradient(group.max(axis=-1, keepdims=True)) for group in groups]
        self._log_probs = [group - mx.logsumexp(group, axis=-1, keepdims=True) for group in groups]

    def log_prob(self, actions: mx.array) -> mx.array:
        return _total(
            [
                mx.take_along_axis(log_probs, actions[..., i : i + 1], axis=-1).squeeze(-1)
                for i, log_probs in enumerate(self._log_probs)
            ]
        )

    def entropy(self) -> mx.array:
        return _total([-(mx.exp(log_probs) * log_probs).sum(axis=-1) for log_probs in self._log_probs])


class Gaussian:
    """Independent normal action dimensions, from means [..., size] and log standard deviations [size]."""

    def __init__(self, mean: mx.array, log_std: mx.array) -> None:
        self._mean = mean
        self._log_std = log_std

    def log_prob(self, actions: mx.array) -> mx.array:
        deviations = (actions - self._mean) * mx.exp(-self._log_std)
        return (-0.5 * (mx.square(deviations) + LOG_2PI) - self._log_std).sum(axis=-1)

    def entropy(self) -> mx.array:
        return mx.broadcast_to((self._log_std + 0.5 * (1 + LOG_2PI)).sum(), self._mean.shape[:-1])


class Bernoulli:
    """Independent bits, from the logit [..., size] of each being 1."""

    def __init__(self, logits: mx.array) -> None:
        self._logits = logits

    def log_prob(self, actions: mx.array) -> mx.array:
        return _log_sigmoid(mx.where(actions == 1, self._logits, -self._logits)).sum(axis=-1)

    def entropy(self) -> mx.array:
        one, zero = _log_sigmoid(self._logits), _log_sigmoid(-self._logits)
        return -(mx.exp(one) * one + mx.exp(zero) * zero).sum(axis=-1)


def _log_sigmoid(x: mx.array) -> mx.array:
    return -mx.logaddexp(mx.array(0.0), -x)


def _total(terms: list[mx.array]) -> mx.array:
    return terms[0] if len(terms) == 1 else mx.stack(terms).sum(axis=0)
