"""Advantages and value targets, time-major, in float64 inside."""

from typing import NamedTuple

import numpy as np


class Steps(NamedTuple):
    """The inputs of advantage estimation, all [T, N]."""

    rewards: np.ndarray
    values: np.ndarray  # Those of the states that the steps began in.
    # Of the state that a step led to: the next observation's, or the final observation's where the episode was
    # truncated. Where it terminated there is no such state, and the entry is not read.
    next_values: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


def vtrace(steps: Steps, ratios: np.ndarray, *, discount: float, gae_lambda: float) -> tuple[np.ndarray, np.ndarray]:
    """V-trace(λ) targets (Espeholt et al., arXiv 1802.01561, remark 2) with both truncation levels at 1.

    `ratios` [T, N] are π_proximal / π_behaviour of the actions taken; where all are 1, this is generalised advantage
    estimation (Schulman et al., arXiv 1506.02438, equation 16). The advantage is r + γ((1−λ)V′ + λv′) − V, without the
    leading ratio: the decoupled objective carries that weight itself. Returns (advantages, value_targets), both [T, N],
    of the dtype of the values. A truncated episode bootstraps from its next value; a terminated one does not; neither
    reaches past its end.
    """
    rewards, values, next_values, terminated, truncated = steps
    length = len(rewards)
    value, next_value = values.astype(np.float64), next_values.astype(np.float64)
    next_value = np.where(terminated, 0.0, next_value)
    continues = ~(terminated | truncated)
    weights = np.minimum(ratios, 1.0).astype(np.float64)
    errors = rewards.astype(np.float64) + discount * next_value - value
    decays = discount * gae_lambda * continues  # What follows a step counts so much for it.
    # v − V of each step, which is weights · (errors + decays · the next step's). In each round the sum of every step
    # reaches twice as far: few operations on all steps, in place of many on one.
    corrections, factors = weights * errors, weights * decays
    reach = 1
    while reach < length:
        corrections[:-reach] += factors[:-reach] * corrections[reach:]
        factors[:-reach] *= factors[reach:]
        factors[-reach:] = 0  # Nothing follows the rollout's end.
        reach *= 2
    following = np.concatenate([corrections[1:], np.zeros_like(corrections[:1])])  # v′ − V′
    advantages = errors + decays * following
    return advantages.astype(values.dtype), (value + corrections).astype(values.dtype)
