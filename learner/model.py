"""The policy and value networks in MLX; `actors/policy.py` is the same policy in NumPy."""

import itertools
import typing
from collections.abc import Iterator, Mapping

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from learner.activations import tanh_for
from learner.distributions import Categorical, Gaussian
from protocol.experiment import Experiment
from protocol.randomness import Purpose, generator
from protocol.spaces import Spaces


class MLP(nn.Module):
    """A multilayer perceptron with tanh between its layers."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.layers = [nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes)]
        self._tanh = tanh_for(mx.default_device())

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers[:-1]:
            x = self._tanh(layer(x))
        return self.layers[-1](x)


class ActorCritic(nn.Module):
    """Separate policy and value networks, and for Gaussian policies the log standard deviations.

    Only its trainable parameters are ever differentiated, so it may hold anything else besides. `parameters`,
    `named_parameters`, `state_dict` and `load_state_dict` mean what PyTorch users expect; MLX's own view of the
    parameters as a tree is `trainable_parameters()`.
    """

    def __init__(self, spaces: Spaces, experiment: Experiment) -> None:
        super().__init__()
        inputs, hidden = spaces.observation.size, list(experiment.hidden_sizes)
        self.spaces = spaces
        self.policy = MLP([inputs, *hidden, spaces.distribution_size])
        self.value = MLP([inputs, *hidden, 1])
        if spaces.distribution == "gaussian":
            self.log_std = mx.zeros(spaces.distribution_size)
        self._initialize(experiment.seed)

    def __call__(self, observations: mx.array) -> tuple[Categorical | Gaussian, mx.array]:
        """(distribution over actions, values [B]) for normalised observations [B, inputs]."""
        return self.distribution(observations), self.state_values(observations)

    def distribution(self, observations: mx.array) -> Categorical | Gaussian:
        """The distribution over actions, for normalised observations [B, inputs]."""
        parameters = self.policy(observations)
        if self.spaces.distribution == "categorical":
            return Categorical(parameters)
        return Gaussian(parameters, self.log_std)

    def state_values(self, observations: mx.array) -> mx.array:
        """State values [B], for normalised observations [B, inputs]."""
        return self.value(observations).squeeze(-1)

    def named_parameters(self) -> Iterator[tuple[str, mx.array]]:
        """(name, array) of every parameter, such as `policy.layers.0.weight`."""
        yield from typing.cast(list[tuple[str, mx.array]], tree_flatten(self.trainable_parameters()))

    def parameters(self) -> list[mx.array]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Every parameter, in the order of `named_parameters`."""
        return [array for _, array in self.named_parameters()]

    def state_dict(self) -> dict[str, mx.array]:
        """Every parameter by name; what `load_state_dict` takes."""
        return dict(self.named_parameters())

    def load_state_dict(self, state: Mapping[str, mx.array | np.ndarray]) -> None:
        """Set every parameter. Raises `ValueError`, and changes nothing, unless names and shapes are the model's."""
        own = self.state_dict()
        if own.keys() != state.keys():
            missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise ValueError(f"state_dict does not fit: missing {missing}, unexpected {unexpected}")
        for name, array in own.items():
            if tuple(state[name].shape) != array.shape:
                raise ValueError(f"{name} has shape {tuple(state[name].shape)} instead of {array.shape}")
        self.update(tree_unflatten([(name, mx.array(state[name])) for name in own]))

    def _initialize(self, seed: int) -> None:
        """Orthogonal weights: gain √2 in hidden layers, 0.01 for the policy's outputs, 1 for the value; zero biases."""
        gains = {f"policy.layers.{len(self.policy.layers) - 1}": 0.01, f"value.layers.{len(self.value.layers) - 1}": 1}
        state = {}
        for index, (name, array) in enumerate(self.named_parameters()):
            layer, _, kind = name.rpartition(".")
            if kind == "weight":
                random = generator(seed, Purpose.INITIAL_WEIGHTS, index)
                state[name] = orthogonal(random, array.shape, gains.get(layer, 2**0.5))
            else:
                state[name] = np.zeros(array.shape, np.float32)
        self.load_state_dict(state)


def orthogonal(random: np.random.Generator, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """A random matrix with orthonormal rows or columns, times `gain` (Saxe et al., arXiv 1312.6120)."""
    rows, columns = shape
    tall = random.standard_normal((max(shape), min(shape)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))  # without this the distribution would not be uniform
    return np.ascontiguousarray(gain * (q if rows >= columns else q.T), dtype=np.float32)
