"""The network in MLX, for the learner, which differentiates it."""

import mlx.core as mx
import mlx.nn as nn

from examples.own_network import BLOCKS, EPSILON, WIDTH
from protocol.experiment import Experiment
from protocol.observations import InputShapes


class Block(nn.Module):
    """x + what a layer normalisation and two layers make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, EPSILON)
        self.wide = nn.Linear(WIDTH, 4 * WIDTH)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.narrow(nn.relu(self.wide(self.norm(x))))


class SimBa(nn.Module):
    """Features of vectors; images are left out."""

    def __init__(self, shapes: InputShapes, experiment: Experiment) -> None:
        super().__init__()
        self.size = WIDTH  # of the features it returns
        self.first = nn.Linear(shapes.vector, WIDTH)
        self.blocks = [Block() for _ in range(BLOCKS)]
        self.norm = nn.LayerNorm(WIDTH, EPSILON)

    def __call__(self, inputs: list[mx.array]) -> mx.array:
        """[vector [B, n], then images] to features [B, size]."""
        x = self.first(inputs[0])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
