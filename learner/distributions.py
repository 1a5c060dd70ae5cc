"""What the policy network's outputs mean, in MLX; `actors/distributions.py` says the same in NumPy."""

import math

import mlx.core as mx

LOG_2PI = math.log(2 * math.pi)


class Categorical:
    """One of `size` actions, from logits [..., size]."""

    def __init__(self, logits: mx.array) -> None:
        self._log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def log_prob(self, actions: mx.array) -> mx.array:
        """log π(actions) [...], for integer actions [...]."""
        return mx.take_along_axis(self._log_probs, actions[..., None], axis=-1).squeeze(-1)

    def entropy(self) -> mx.array:
        """Entropy [...], in nats."""
        return -(mx.exp(self._log_probs) * self._log_probs).sum(axis=-1)


class Gaussian:
    """Independent normal action dimensions, from means [..., size] and log standard deviations [size]."""

    def __init__(self, mean: mx.array, log_std: mx.array) -> None:
        self._mean = mean
        self._log_std = log_std

    def log_prob(self, actions: mx.array) -> mx.array:
        """log π(actions) [...], for actions [..., size]."""
        deviations = (actions - self._mean) * mx.exp(-self._log_std)
        return (-0.5 * (mx.square(deviations) + LOG_2PI) - self._log_std).sum(axis=-1)

    def entropy(self) -> mx.array:
        """Entropy [...], in nats."""
        return mx.broadcast_to((self._log_std + 0.5 * (1 + LOG_2PI)).sum(), self._mean.shape[:-1])
