"""Adam over all parameters as one vector: a few kernels, however many layers there are."""

import math
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from learner.model import ActorCritic

EPSILON = 1e-5
DECAYS = (0.9, 0.999)  # One for each of the two moments.


class Adam:
    """Adam (Kingma & Ba, arXiv 1412.6980, algorithm 1) on gradients scaled down to a largest global norm.

    Moments are kept by the names of the parameters they belong to, and saved with them.
    """

    def __init__(self, model: ActorCritic, max_grad_norm: float) -> None:
        self._model = model
        self._max_grad_norm = max_grad_norm
        self._shapes = {name: array.shape for name, array in model.named_parameters()}
        size = sum(map(math.prod, self._shapes.values()))
        # The parameters and their two moments, each as one vector in the order of the names.
        self.state = [mx.zeros(size), mx.zeros(size), mx.zeros(size)]
        self._steps = 0  # taken so far

    def take_parameters(self) -> None:
        """Take the model's parameters over, and let it have them back as parts of the vector: they then lie in memory
        in one way, whatever was loaded before. BLAS may give other low bits for another."""
        self.state[0] = _joined(self._model.parameters())
        self.give_parameters()

    def give_parameters(self) -> None:
        """Make the model's parameters the parts of the vector."""
        self._model.update(tree_unflatten(list(self._split(self.state[0]).items())))

    def begin_step(self, learning_rate: float) -> list[mx.array]:
        """Count a step, and return what `step` has to know of it: factors for the first and second moments.

        They correct the moments' bias towards zero. Computed here, since in a fused kernel they would be computed anew
        for every single parameter.
        """
        self._steps += 1
        first, second = (1 - decay**self._steps for decay in DECAYS)
        return [mx.array(learning_rate / first, mx.float32), mx.array(1 / math.sqrt(second), mx.float32)]

    def step(self, gradients: Any, factors: list[mx.array]) -> mx.array:
        """Move the vector of parameters against `gradients`, a tree like the model's; returns the gradients' norm."""
        gradient = _joined([array for _, array in cast(list[tuple[str, mx.array]], tree_flatten(gradients))])
        norm = mx.sqrt(mx.square(gradient).sum())
        gradient = gradient * mx.minimum(self._max_grad_norm / (norm + 1e-6), 1)
        parameters, m, v = self.state
        m = DECAYS[0] * m + (1 - DECAYS[0]) * gradient
        v = DECAYS[1] * v + (1 - DECAYS[1]) * mx.square(gradient)
        self.state[:] = parameters - factors[0] * m / (mx.sqrt(v) * factors[1] + EPSILON), m, v
        return norm

    def parameters(self) -> dict[str, np.ndarray]:
        """Host copies of the model's parameters by name, read from the device at once."""
        parts = self._split(np.array(_joined(self._model.parameters())))
        return {name: np.ascontiguousarray(array) for name, array in parts.items()}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Moments as `NAME.m` and `NAME.v` for each parameter, and `step`, the number of steps: host copies."""
        state: dict[str, np.ndarray] = {"step": np.array(self._steps, np.uint64)}
        for suffix, moment in zip(("m", "v"), self.state[1:], strict=True):
            parts = self._split(np.array(moment))
            state |= {f"{name}.{suffix}": np.ascontiguousarray(array) for name, array in parts.items()}
        return state

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Continue from what `state_dict` returned."""
        self._steps = int(state["step"])
        self.state[1:] = [
            _joined([mx.array(state[f"{name}.{suffix}"]) for name in self._shapes]) for suffix in ("m", "v")
        ]

    def _split(self, vector: Any) -> dict[str, Any]:
        """The parameters' parts of a vector of all, on the device or on the host, by name and in shape."""
        parts, start = {}, 0
        for name, shape in self._shapes.items():
            end = start + math.prod(shape)
            part = vector[start:end]
            parts[name] = part.reshape(shape[::-1]).T if len(shape) == 2 else part.reshape(shape)
            start = end
        return parts


def _joined(arrays: list[mx.array]) -> mx.array:
    """One vector of all: matrices transposed, as their gradients come about, which spares a copy of each."""
    return mx.concatenate([(array.T if array.ndim == 2 else array).reshape(-1) for array in arrays])
