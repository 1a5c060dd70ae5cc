"""The policy as actors receive it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PolicySnapshot:
    """Weights, observation statistics and version of the policy, always sent together. The learner keeps the critic."""

    policy_version: int  # learner iterations completed
    weights: dict[str, np.ndarray]  # float32, by parameter name
    observation_mean: np.ndarray  # float32 [normalized_size], see `protocol/observations.py`
    observation_scale: np.ndarray  # float32 [normalized_size], one over the standard deviation


def part_of(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`. The result's names leave the prefix out."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
