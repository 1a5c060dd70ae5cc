"""The actor and the critic in MLX; `actors/policy.py` is the same policy in NumPy."""

import math
import typing
from collections.abc import Iterator, Mapping

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from learner.distributions import Distribution, make_distribution
from learner.networks import CELLS
from protocol.experiment import Experiment
from protocol.networks import network_class
from protocol.observations import InputShapes, Normalization, critic_inputs, network_inputs
from protocol.randomness import Purpose, generator
from protocol.spaces import Spaces

CRITIC = ("value_encoder.", "value_head.")  # Actors do not need the parameters of these.
CELL_GAINS = {f"{kind}.{part}": 1.0 for kind in CELLS for part in ("inputs", "recurrent")}
GAINS = {"policy_head": 0.01, "value_head": 1.0, **CELL_GAINS}  # Every other layer has √2.


class ActorCritic(nn.Module):
    """An encoder of observations, a recurrent layer if wanted, and a linear head each for the policy and the value.

    Without images and a recurrent layer the value has an encoder of its own, which sees everything. With them, its head
    takes what the policy's takes; and, if there is something that only the critic sees, the features of an encoder for
    that as well: a value of history and state (Baisero & Amato, arXiv 2105.11674). Gaussian policies have log standard
    deviations.

    Only its trainable parameters are ever differentiated, so it may hold anything else besides. `parameters`,
    `named_parameters`, `state_dict` and `load_state_dict` mean what PyTorch users expect; MLX's own view of the
    parameters as a tree is `trainable_parameters()`.
    """

    def __init__(self, spaces: Spaces, experiment: Experiment) -> None:
        super().__init__()
        shapes = InputShapes.of(spaces.parts)
        mx.random.seed(experiment.seed)  # A user's network may draw from it.
        self.spaces = spaces
        self.recurrent = experiment.recurrent_size > 0
        self.shares_features = self.recurrent or bool(shapes.images)  # Whether the value's head takes the policy's.
        self.encoder = network_class(experiment, shapes, "learner")(shapes, experiment)
        size = value_size = self.encoder.size
        if self.recurrent:
            self._kind = experiment.recurrent
            size = value_size = experiment.recurrent_size
            self[self._kind] = CELLS[self._kind](self.encoder.size, size)
        if spaces.critic_parts or not self.shares_features:
            shapes = InputShapes.of(spaces.critic_parts if self.shares_features else spaces.all_parts)
            self.value_encoder = network_class(experiment, shapes, "learner")(shapes, experiment)
            value_size = self.value_encoder.size + (size if self.shares_features else 0)
        self.policy_head = nn.Linear(size, spaces.distribution_size)
        self.value_head = nn.Linear(value_size, 1)
        if spaces.distribution == "gaussian":
            self.log_std = mx.full(spaces.distribution_size, math.log(experiment.initial_std))
        self._initialize(experiment.seed)

    def __call__(
        self, inputs: list[mx.array], hidden_state: mx.array, starts: mx.array, allowed: mx.array | None = None
    ) -> tuple[Distribution, mx.array, mx.array]:
        """(distribution over actions, values [...], hidden state after each step) for what `model_inputs` returned, as
        arrays [..., shape].

        Without a recurrent layer the leading shape is [B], and `hidden_state` and `starts` are not read. With one it is
        [B, T]; `hidden_state` [B, hidden_state_size] is that before the first step, and `starts` [B, T] is 1 where an
        episode begins. `allowed` bool [..., distribution_size] are action masks, if there are any.
        """
        lead = inputs[0].shape[:2] if self.recurrent else inputs[0].shape[:1]
        if self.recurrent:
            inputs = [x.flatten(0, 1) for x in inputs]
        count = 1 + sum(part.kind == "image" for part in self.spaces.parts)
        seen, of_critic = inputs[:count], inputs[count:]
        x = self.encoder(seen)
        if self.recurrent:
            cell = self[self._kind]
            hidden_state = cell(x.reshape(*lead, -1), hidden_state, starts)
            x = hidden_state[..., : cell.size] if hidden_state.shape[-1] > cell.size else hidden_state
        values = self.value_head(self._value_features(x, seen, of_critic))
        distribution = make_distribution(self.spaces, self.policy_head(x), self.get("log_std"), allowed)
        return distribution, values.squeeze(-1), hidden_state

    def _value_features(self, x: mx.array, seen: list[mx.array], of_critic: list[mx.array]) -> mx.array:
        """What the value's head takes, for the policy's features, the policy's inputs and the critic's own."""
        if not of_critic:
            return x if self.shares_features else self.value_encoder(seen)
        if self.shares_features:
            features = self.value_encoder(of_critic)
            return mx.concatenate([x, features.reshape(*x.shape[:-1], -1)], axis=-1)
        vector = mx.concatenate([seen[0], of_critic[0]], axis=-1)
        return self.value_encoder([vector, *seen[1:], *of_critic[1:]])

    def named_parameters(self) -> Iterator[tuple[str, mx.array]]:
        """(name, array) of every parameter, such as `policy.layers.0.weight`."""
        yield from typing.cast(list[tuple[str, mx.array]], tree_flatten(self.trainable_parameters()))

    @property
    def policy_names(self) -> list[str]:
        """The names of the parameters that actors act with."""
        return [name for name, _ in self.named_parameters() if not name.startswith(CRITIC)]

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
        """Orthogonal weights, with gain √2 but for `GAINS`, and zero biases; anything else stays as it is."""
        state = self.state_dict()
        for index, (name, array) in enumerate(self.named_parameters()):
            layer, _, kind = name.rpartition(".")
            if kind == "weight" and array.ndim > 1:
                random = generator(seed, Purpose.INITIAL_WEIGHTS, index)
                matrix = orthogonal(random, (len(array), array[0].size), GAINS.get(layer, 2**0.5))
                state[name] = mx.array(matrix.reshape(array.shape))
            elif kind == "bias":
                state[name] = mx.zeros(array.shape)
        self.load_state_dict(state)


def model_inputs(
    observations: np.ndarray,
    spaces: Spaces,
    normalization: Normalization | None,
    critic_normalization: Normalization | None,
) -> list[np.ndarray]:
    """What `ActorCritic` takes for stored observations [B, *observation]: the policy's inputs, and behind these the
    critic's own."""
    seen = network_inputs(observations, spaces, normalization)
    return seen + critic_inputs(observations, spaces, critic_normalization)


def orthogonal(random: np.random.Generator, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """A random matrix with orthonormal rows or columns, times `gain` (Saxe et al., arXiv 1312.6120)."""
    rows, columns = shape
    tall = random.standard_normal((max(shape), min(shape)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))  # Makes the distribution uniform.
    return np.ascontiguousarray(gain * (q if rows >= columns else q.T), dtype=np.float32)
