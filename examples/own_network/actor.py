"""The same network in NumPy, for the actors. Weights are named as the learner's attributes, such as
blocks.0.wide.weight."""

import numpy as np

from actors.networks import Linear, Weights, relu
from examples.own_network import BLOCKS, EPSILON
from protocol.experiment import Experiment
from protocol.observations import InputShapes


class LayerNorm:
    """Each row with mean 0 and variance 1, then scaled and shifted as was learned."""

    def __init__(self, weights: Weights, name: str) -> None:
        self._weight, self._bias = weights[f"{name}.weight"], weights[f"{name}.bias"]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=1, keepdims=True)
        return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + EPSILON) * self._weight + self._bias


class Block:
    """x + what a layer normalisation and two layers make of it."""

    def __init__(self, weights: Weights, name: str) -> None:
        self._norm = LayerNorm(weights, f"{name}.norm")
        self._wide, self._narrow = Linear(weights, f"{name}.wide"), Linear(weights, f"{name}.narrow")

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x + self._narrow(relu(self._wide(self._norm(x))))


class SimBa:
    """Features of vectors; images are left out."""

    def __init__(self, weights: Weights, shapes: InputShapes, experiment: Experiment) -> None:
        self._first, self._norm = Linear(weights, "first"), LayerNorm(weights, "norm")
        self._blocks = [Block(weights, f"blocks.{i}") for i in range(BLOCKS)]

    def __call__(self, inputs: list[np.ndarray]) -> np.ndarray:
        """[vector [B, n], then images] to features [B, size]."""
        x = self._first(inputs[0])
        for block in self._blocks:
            x = block(x)
        return self._norm(x)
