"""The policy as actors receive it, and the normalisation that both sides must do alike, to the last bit."""

from dataclasses import dataclass

import numpy as np

OBSERVATION_CLIP = np.float32(10.0)


@dataclass(frozen=True)
class PolicySnapshot:
    """Weights, observation statistics and version of the policy, inseparable. The critic stays with the learner."""

    policy_version: int  # learner iterations completed
    weights: dict[str, np.ndarray]  # float32, by parameter name
    observation_mean: np.ndarray  # float32 [*observation]
    observation_scale: np.ndarray  # float32 [*observation], one over the standard deviation


def normalize(observations: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Observations [B, *shape] as float32, centred, scaled and clipped to ±10."""
    normalized = observations.astype(np.float32)
    normalized -= mean
    normalized *= scale
    return np.clip(normalized, -OBSERVATION_CLIP, OBSERVATION_CLIP, out=normalized)
