"""All parameters of a model as one vector, so that Adam is a few kernels however many layers there are."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from learner.model import ActorCritic

ALIGNMENT = 16  # Each block begins at a multiple of 64 bytes: a BLAS may take another way, with other bits, elsewhere.


class Part(NamedTuple):
    """A piece of a block."""

    name: str | None  # The parameter's name. None means zeros, which fill a block up.
    shape: tuple[int, ...]  # The parameter's own shape.
    transposed: bool = False  # Whether the piece holds the transposed matrix.


class Layout:
    """Where in the vector each parameter lies."""

    def __init__(self, blocks: list[list[Part]]) -> None:
        self.parts: list[Part] = []
        self.size = 0
        for block in blocks:
            size = sum(math.prod(part.shape) for part in block)
            self.parts += [*block, Part(None, (padding(size),))]
            self.size += size + padding(size)

    @classmethod
    def of(cls, model: ActorCritic) -> "Layout":
        """In the order of the names. Matrices are transposed, as their gradients are, which spares copies."""
        return cls([[Part(name, array.shape, array.ndim == 2)] for name, array in model.named_parameters()])

    def split(self, vector: Any) -> dict[str, Any]:
        """The parameters in a vector [size], on the device or on the host, by name and in shape: views of it."""
        arrays, start = {}, 0
        for name, shape, transposed in self.parts:
            end = start + math.prod(shape)
            if name is not None:
                piece = vector[start:end]
                arrays[name] = piece.reshape(shape[::-1]).T if transposed else piece.reshape(shape)
            start = end
        return arrays

    def join(self, arrays: Mapping[str, mx.array]) -> mx.array:
        """The vector [size] of all parameters, given by name."""
        pieces = []
        for name, shape, transposed in self.parts:
            array = zeros(math.prod(shape)) if name is None else arrays[name]
            pieces.append((array.T if transposed else array).reshape(-1))
        return mx.concatenate(pieces)


def padding(size: int) -> int:
    """How many zeros follow a block of this size."""
    return -size % ALIGNMENT


def joined(blocks: list[mx.array]) -> mx.array:
    """The vector of all blocks, with zeros behind each."""
    pieces = [piece for block in blocks for piece in (block.reshape(-1), zeros(padding(block.size)))]
    return mx.concatenate([piece for piece in pieces if piece.size])


def zeros(size: int) -> mx.array:
    """Zeros that are a constant of a compiled step."""
    return mx.array(np.zeros(size, np.float32))
