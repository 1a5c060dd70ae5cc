"""The step of any model: its loss, differentiated by MLX."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from learner.distributions import Distribution
from learner.layout import Layout
from learner.model import ActorCritic
from learner.objective import Outcome, objective
from protocol.observations import InputShapes
from rundir.config import PPOConfig


class Differentiated:
    """The computation of any model. Its parameters are one vector in the order of `layout`."""

    def __init__(self, model: ActorCritic, config: PPOConfig) -> None:
        self.is_small = not InputShapes.of(model.spaces).images  # Then the features of a whole batch fit in memory.
        self.layout = Layout.of(model)
        self._model, self._config = model, config
        self._loss_and_gradients = nn.value_and_grad(model, self._loss)

    def prepare(self, inputs: list[mx.array]) -> list[mx.array]:
        """The network's inputs as the other methods take them."""
        return inputs

    def gradients(
        self, vector: mx.array, minibatch: dict[str, Any], clip: mx.array, entropy_coef: mx.array
    ) -> tuple[mx.array, Outcome]:
        """(the gradient of the mean loss for `vector`, what came of the samples)."""
        with self._parameters(vector):
            (_, outcome), gradients = self._loss_and_gradients(minibatch, clip, entropy_coef)
        return self.layout.join(dict(tree_flatten(gradients))), outcome

    def evaluate(self, vector: mx.array, samples: dict[str, Any]) -> list[mx.array]:
        """[values, log-probabilities of the actions, for a recurrent policy the hidden states after each step]."""
        with self._parameters(vector):
            distribution, values, hidden_states = forward(self._model, samples)
        found = [values, distribution.log_prob(samples["actions"])]
        return [*found, hidden_states] if self._model.recurrent else found

    def values(self, vector: mx.array, inputs: list[mx.array], hidden_state: mx.array) -> mx.array:
        """The values [B] of states, of which a recurrent policy has the hidden states before them."""
        with self._parameters(vector):
            if not self._model.recurrent:
                return self._model(inputs, hidden_state, hidden_state)[1]
            sequences = [x[:, None] for x in inputs]  # Sequences of one step each.
            return self._model(sequences, hidden_state, mx.zeros((len(hidden_state), 1)))[1].squeeze(1)

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
    return model(samples["inputs"], samples.get("hidden_state", unused), samples.get("starts", unused))
