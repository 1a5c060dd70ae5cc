"""Observation and action spaces as plain data: what the learner knows of an environment it never sees."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from protocol.codec import DTYPES, MAX_DIMENSIONS
from protocol.errors import ProtocolError

MAX_SIZE = 2**24  # numbers in one observation, and outputs of the policy network


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

    def check(self) -> None:
        """Raise `ProtocolError` unless these can be the spaces of an environment."""
        for name, box in (("observation", self.observation), ("action", self.action)):
            if box.dtype not in {dtype.name for dtype in DTYPES.values()}:
                raise ProtocolError(f"the {name} space has dtype {box.dtype:.40}")
            if len(box.shape) >= MAX_DIMENSIONS - 1 or any(not 0 < n <= MAX_SIZE for n in box.shape):
                raise ProtocolError(f"the {name} space has shape {list(box.shape)}")
            if math.prod(box.shape) > MAX_SIZE:
                raise ProtocolError(f"the {name} space has shape {list(box.shape)}")
        categorical = self.distribution == "categorical"
        form = ((), "int64") if categorical else (self.action.shape, "float32")
        outputs = self.distribution_size if categorical else self.action.size
        if (self.action.shape, self.action.dtype) != form or self.distribution_size != outputs:
            raise ProtocolError("the action space does not fit its distribution")
        if not 0 < self.distribution_size <= MAX_SIZE:
            raise ProtocolError(f"the policy would have {self.distribution_size} outputs")
