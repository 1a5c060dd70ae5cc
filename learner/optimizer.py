"""Adam over all parameters as one vector: a few kernels, however many layers there are."""

import math

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from learner.layout import Layout
from learner.model import ActorCritic

EPSILON = 1e-5
DECAYS = (0.9, 0.999)  # One for each of the two moments.


class Adam:
    """Adam (Kingma & Ba, arXiv 1412.6980, algorithm 1) on gradients scaled down to a largest global norm.

    Moments are kept by the names of the parameters they belong to, and saved with them.
    """

    def __init__(self, model: ActorCritic, max_grad_norm: float, layout: Layout) -> None:
        self._model = model
        self._max_grad_norm = max_grad_norm
        self._layout = layout
        # The parameters and their two moments, each as one vector.
        self.state = [mx.zeros(layout.size), mx.zeros(layout.size), mx.zeros(layout.size)]
        self._steps = 0  # Steps taken so far.

    def take_parameters(self) -> None:
        """Take the model's parameters over, and let it have them back as parts of the vector: they then lie in memory
        in one way, whatever was loaded before. BLAS may give other low bits for another."""
        self.state[0] = self._layout.join(self._model.state_dict())
        self.give_parameters()

    def give_parameters(self) -> None:
        """Make the model's parameters the parts of the vector."""
        self._model.update(tree_unflatten(list(self._layout.split(self.state[0]).items())))

    def begin_step(self, learning_rate: float) -> list[mx.array]:
        """Count a step, and return what `step` has to know of it: factors for the first and second moments.

        They correct the moments' bias towards zero. Computed here, since in a fused kernel they would be computed anew
        for every single parameter.
        """
        self._steps += 1
        first, second = (1 - decay**self._steps for decay in DECAYS)
        return [mx.array(learning_rate / first, mx.float32), mx.array(1 / math.sqrt(second), mx.float32)]

    def step(self, gradient: mx.array, factors: list[mx.array]) -> mx.array:
        """Move the vector of parameters against `gradient`, a vector like it; returns the gradient's norm."""
        norm = mx.sqrt(mx.inner(gradient, gradient))
        gradient = gradient * mx.minimum(self._max_grad_norm / (norm + 1e-6), 1)
        parameters, m, v = self.state
        m = DECAYS[0] * m + (1 - DECAYS[0]) * gradient
        v = DECAYS[1] * v + (1 - DECAYS[1]) * mx.square(gradient)
        self.state[:] = parameters - factors[0] * m / (mx.sqrt(v) * factors[1] + EPSILON), m, v
        return norm

    def parameters(self) -> dict[str, np.ndarray]:
        """Host copies of the model's parameters by name, read from the device at once."""
        parts = self._layout.split(np.array(self._layout.join(self._model.state_dict())))
        return {name: np.ascontiguousarray(parts[name]) for name in self._model.state_dict()}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Moments as `NAME.m` and `NAME.v` for each parameter, and `step`, the number of steps: host copies."""
        state: dict[str, np.ndarray] = {"step": np.array(self._steps, np.uint64)}
        for suffix, moment in zip(("m", "v"), self.state[1:], strict=True):
            parts = self._layout.split(np.array(moment))
            state |= {f"{name}.{suffix}": np.ascontiguousarray(array) for name, array in parts.items()}
        return state

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Continue from what `state_dict` returned."""
        self._steps = int(state["step"])
        names = self._model.state_dict()
        self.state[1:] = [
            self._layout.join({name: mx.array(state[f"{name}.{suffix}"]) for name in names}) for suffix in ("m", "v")
        ]
