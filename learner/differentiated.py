"""The step of any model: its loss, differentiated by MLX.

On a CPU, samples with images are computed in parts, side by side. The parts do not depend on the number of threads, so
that the number never changes a bit.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from learner.distributions import Distribution
from learner.layout import Layout
from learner.model import ActorCritic
from learner.objective import Outcome, objective
from protocol.observations import InputShapes
from rundir.config import PPOConfig

Found = TypeVar("Found")
PARTS = 4  # Of images; fewer where the samples do not divide.


class Differentiated:
    """The computation of any model. Its parameters are one vector in the order of `layout`."""

    def __init__(self, model: ActorCritic, config: PPOConfig, threads: int | None = None) -> None:
        """`threads` are those that compute parts on a CPU; None takes one for each part."""
        # Then the features of a whole batch fit in memory.
        self.is_small = not InputShapes.of(model.spaces.all_parts).images
        self.layout = Layout.of(model)
        self._in_parts = not self.is_small and mx.default_device().type == mx.cpu
        self._threads = min(threads or PARTS, PARTS)
        self._model, self._config = model, config
        self._loss_and_gradients = nn.value_and_grad(model, self._loss)

    def prepare(self, inputs: list[mx.array]) -> list[mx.array]:
        """The network's inputs as the other methods take them."""
        return inputs

    def gradients(
        self, vector: mx.array, minibatch: dict[str, Any], clip: mx.array, entropy_coef: mx.array
    ) -> tuple[mx.array, Outcome]:
        """(the gradient of the mean loss for `vector`, what came of the samples)."""

        def compute(part: dict[str, Any]) -> tuple[mx.array, Outcome]:
            (_, outcome), gradients = self._loss_and_gradients(part, clip, entropy_coef)
            return self.layout.join(dict(tree_flatten(gradients))), outcome

        with self._parameters(vector):
            gradients, outcomes = zip(*self._each_part(minibatch, compute), strict=True)
        gradient = functools.reduce(mx.add, gradients)
        return gradient if len(gradients) == 1 else gradient * (1 / len(gradients)), _joined(outcomes)

    def evaluate(self, vector: mx.array, samples: dict[str, Any]) -> list[mx.array]:
        """[values, log-probabilities of the actions, for a recurrent policy the hidden states after each step]."""

        def compute(part: dict[str, Any]) -> list[mx.array]:
            distribution, values, hidden_states = forward(self._model, part)
            found = [values, distribution.log_prob(part["actions"])]
            return [*found, hidden_states] if self._model.recurrent else found

        with self._parameters(vector):
            return _joined(self._each_part(samples, compute))

    def values(self, vector: mx.array, inputs: list[mx.array], hidden_state: mx.array) -> mx.array:
        """The values [B] of states, of which a recurrent policy has the hidden states before them."""
        with self._parameters(vector):
            if not self._model.recurrent:
                return self._model(inputs, hidden_state, hidden_state)[1]
            sequences = [x[:, None] for x in inputs]  # Sequences of one step each.
            return self._model(sequences, hidden_state, mx.zeros((len(hidden_state), 1)))[1].squeeze(1)

    def _each_part(self, samples: dict[str, Any], compute: Callable[[dict[str, Any]], Found]) -> list[Found]:
        """What `compute` makes of each part of the samples, one thread beside the other; of all at once on a GPU."""
        count = len(samples["actions"])
        parts = math.gcd(count, PARTS) if self._in_parts else 1
        if parts == 1:
            return [compute(samples)]
        found, size = [], count // parts
        for i in range(parts):
            with mx.stream(_stream(i % self._threads)):
                found.append(compute(tree_map(lambda x: x[i * size : (i + 1) * size], samples)))  # noqa: B023
        return found

    def _loss(self, minibatch: dict[str, Any], clip: mx.array, entropy_coef: mx.array) -> tuple[mx.array, Outcome]:
        return ppo_loss(self._model, minibatch, clip, entropy_coef, self._config)

    @contextmanager
    def _parameters(self, vector: mx.array) -> Iterator[None]:
        """Let the model have the parameters in `vector`, and its own again afterwards."""
        own = self._model.state_dict()
        self._model.update(tree_unflatten(list(self.layout.split(vector).items())))
        try:
            yield
        finally:
            self._model.update(tree_unflatten(list(own.items())))


@functools.cache
def _stream(number: int) -> mx.Stream:
    """One of the CPU's streams; each has a thread."""
    return mx.new_stream(mx.cpu)


def _joined(parts: Sequence[list[mx.array]]) -> list[mx.array]:
    """The arrays of all parts, one behind the other."""
    return list(parts[0]) if len(parts) == 1 else [mx.concatenate(list(arrays)) for arrays in zip(*parts, strict=True)]


def ppo_loss(
    model: ActorCritic, minibatch: dict[str, Any], clip: mx.array, entropy_coef: mx.array, config: PPOConfig
) -> tuple[mx.array, Outcome]:
    """(the mean loss of a minibatch, what came of its samples)."""
    distribution, values, _ = forward(model, minibatch)
    outcome = [distribution.log_prob(minibatch["actions"]), distribution.entropy(), values]
    return objective(outcome, minibatch, clip, entropy_coef, config)[0].mean(), outcome


def forward(model: ActorCritic, samples: dict[str, Any]) -> tuple[Distribution, mx.array, mx.array]:
    """The outputs of `model` for samples."""
    unused = samples["actions"]
    hidden_state, starts = samples.get("hidden_state", unused), samples.get("starts", unused)
    return model(samples["inputs"], hidden_state, starts, samples.get("allowed"))
