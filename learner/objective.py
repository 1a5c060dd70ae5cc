"""PPO's clipped objective for each sample: what it is worth, what to show of it, and its gradient by hand."""

from typing import Any

import mlx.core as mx

from rundir.config import PPOConfig

Outcome = list[mx.array]  # Log-probabilities of the actions, entropies and values, each with the shape of the samples.


def objective(
    outcome: Outcome, minibatch: dict[str, Any], clip: mx.array, entropy_coef: mx.array, config: PPOConfig
) -> tuple[mx.array, list[mx.array]]:
    """(loss, [policy loss, value loss, entropy, approximate KL, whether clipped]), each with the shape of the samples.

    The clipped objective of Schulman et al. (arXiv 1707.06347, equation 7), each sample weighted by
    min(π_proximal / π_behaviour, 2); approx_kl is Schulman's low-variance estimator, E[(r − 1) − log r].
    """
    log_probs, entropies, values = outcome
    advantages = minibatch["advantages"]
    log_ratio = log_probs - minibatch["proximal_log_probs"]
    ratio = mx.exp(log_ratio)
    clipped = mx.clip(ratio, 1 - clip, 1 + clip)
    policy_loss = -minibatch["weights"] * mx.minimum(ratio * advantages, clipped * advantages)

    errors = mx.square(values - minibatch["value_targets"])
    if config.value_clip_range is not None:
        moved = mx.clip(values - minibatch["values"], -config.value_clip_range, config.value_clip_range)
        errors = mx.maximum(errors, mx.square(minibatch["values"] + moved - minibatch["value_targets"]))
    value_loss = 0.5 * errors

    loss = policy_loss + config.value_coef * value_loss - entropy_coef * entropies
    approx_kl = ratio - 1 - log_ratio
    clip_fraction = (mx.abs(ratio - 1) > clip).astype(mx.float32)
    return loss, [policy_loss, value_loss, entropies, approx_kl, clip_fraction]


def objective_gradients(
    outcome: Outcome, minibatch: dict[str, Any], clip: mx.array, config: PPOConfig
) -> tuple[mx.array, mx.array]:
    """The gradients of `objective`'s loss for the log-probability and the value of each sample. That for the entropy is
    minus its coefficient."""
    log_probs, _, values = outcome
    advantages, old, targets = minibatch["advantages"], minibatch["values"], minibatch["value_targets"]
    ratio = mx.exp(log_probs - minibatch["proximal_log_probs"])
    clipped = mx.clip(ratio, 1 - clip, 1 + clip)
    of_log_prob = mx.where(ratio * advantages > clipped * advantages, 0, -minibatch["weights"] * advantages * ratio)

    of_value = values - targets
    if config.value_clip_range is not None:
        moved = mx.clip(values - old, -config.value_clip_range, config.value_clip_range)
        error = old + moved - targets
        clipped = (mx.square(error) > mx.square(of_value)) & (mx.abs(values - old) > config.value_clip_range)
        of_value = mx.where(clipped, 0, of_value)
    return of_log_prob, config.value_coef * of_value


def normalized(advantages: mx.array, minibatches: int) -> mx.array:
    """An epoch's advantages, with mean 0 and standard deviation 1 over each of its minibatches."""
    rows = advantages.reshape(minibatches, -1)
    if rows.shape[1] == 1:
        return advantages
    mean = rows.mean(axis=1, keepdims=True)
    deviation = mx.sqrt(rows.var(axis=1, ddof=1, keepdims=True))
    return ((rows - mean) / (deviation + 1e-8)).reshape(advantages.shape)
