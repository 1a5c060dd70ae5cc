"""What the policy network's outputs mean, in MLX; `actors/distributions.py` says the same in NumPy."""

import math
from typing import Protocol

import mlx.core as mx

from protocol.spaces import Spaces, groups_of

FORBIDDEN = -1e4  # The logit of an action that is not allowed: its probability is 0, and nothing becomes infinite.
LOG_2PI = math.log(2 * math.pi)


class Distribution(Protocol):
    """A distribution over actions, given the policy network's outputs [..., size]."""

    def log_prob(self, actions: mx.array) -> mx.array:
        """log π(actions) [...], for flat actions [..., k]."""
        ...

    def entropy(self) -> mx.array:
        """Entropy [...], in nats."""
        ...


def make_distribution(
    spaces: Spaces, parameters: mx.array, log_std: mx.array | None, allowed: mx.array | None = None
) -> Distribution:
    """The distribution for these spaces. `log_std` [size] is the Gaussian's; `allowed` bool [..., size] are action
    masks, if there are any."""
    if spaces.distribution == "categorical":
        return Categorical(parameters, spaces.choices, allowed)
    if spaces.distribution == "bernoulli":
        return Bernoulli(parameters)
    assert log_std is not None
    return Gaussian(parameters, log_std)


def shifted(logits: mx.array, allowed: mx.array | None, axis: int) -> mx.array:
    """Logits relative to the largest that is allowed, so that large ones which are nearly equal keep their digits; and
    `FORBIDDEN` where an action is not."""
    if allowed is None:
        return logits - mx.stop_gradient(logits.max(axis=axis, keepdims=True))
    largest = mx.where(allowed, logits, -mx.inf).max(axis=axis, keepdims=True)
    return mx.where(allowed, logits - mx.stop_gradient(largest), FORBIDDEN)


class Categorical:
    """One of `choices[i]` values for each number i of an action, from logits side by side."""

    def __init__(self, logits: mx.array, choices: tuple[int, ...], allowed: mx.array | None = None) -> None:
        self._log_probs = []
        for start, end in groups_of(choices):
            mask = None if allowed is None else allowed[..., start:end]
            group = shifted(logits[..., start:end], mask, axis=-1)
            self._log_probs.append(group - mx.logsumexp(group, axis=-1, keepdims=True))

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
