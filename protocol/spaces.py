"""Observation and action spaces as plain data: what the learner knows of an environment it never sees."""

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class BoxSpace:
    """Arrays of one shape and dtype, as stored in trajectories."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Spaces:
    """An environment's two spaces. The first actor to join defines them; later ones must match."""

    observation: BoxSpace
    action: BoxSpace
    distribution: Literal["categorical", "gaussian"]
    distribution_size: int  # outputs of the policy network: actions to choose from, or action dimensions
