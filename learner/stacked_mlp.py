"""One step of the built-in MLP with its gradient by hand: a third of the kernels that differentiation makes.

Every kernel costs some 6 µs to start, on CPUs as on GPUs, and a small step is little else. Policy and value are two
towers of one shape, so that a product over both is one kernel: features are [2, B, size], those of the policy first,
and outputs [2, outputs, B]. The value has one output. Zeros fill its head up; their gradients are 0, so that they stay
zeros. MLX fuses elementwise operations into a kernel only where nothing else needs what is between them: hence some
values are computed twice, in two ways. tests/test_stacked_mlp.py compares all of this with what differentiation makes
of the model.
"""

import itertools
import math
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from learner.activations import tanh_for
from learner.distributions import LOG_2PI, shifted
from learner.layout import Layout, Part, joined, padding
from learner.model import ActorCritic
from learner.networks import MLP
from learner.objective import Outcome, objective_gradients
from rundir.config import PPOConfig


class Blocks(NamedTuple):
    """The vector of parameters as the arrays that a step multiplies: views of it."""

    weights: list[mx.array]  # Of each layer, [2, inputs, outputs]; the first has its bias as the last input.
    biases: list[mx.array]  # [2, 1, outputs], of the other layers.
    heads: mx.array  # [2, outputs, size]
    head_biases: mx.array  # [2, outputs, 1]
    log_std: mx.array | None  # [1, outputs, 1]; None unless the policy is Gaussian.


class StackedMLP:
    """The computation of models for which `fits` is true."""

    is_small = True  # The features of a whole batch fit in memory.

    @staticmethod
    def fits(model: ActorCritic) -> bool:
        """Whether `model` is the built-in MLP, with a tower for the value, and chooses one number or is Gaussian."""
        spaces = model.spaces
        one = spaces.distribution == "gaussian" or (spaces.distribution == "categorical" and len(spaces.choices) == 1)
        if not one or model.shares_features or type(model.encoder) is not MLP or not model.encoder.layers:
            return False
        return type(model.value_encoder) is MLP

    def __init__(self, model: ActorCritic, config: PPOConfig) -> None:
        self._config = config
        self._is_gaussian = model.spaces.distribution == "gaussian"
        self._outputs = model.spaces.distribution_size
        self._sizes = [layer.weight.shape[0] for layer in model.encoder.layers]
        self._inputs = model.value_encoder.layers[0].weight.shape[1]
        self._seen = model.encoder.layers[0].weight.shape[1]  # So many of these does the policy see, the first.
        self._activation = _ACTIVATIONS[model.encoder.activation]()
        self._choices = mx.array(np.arange(self._outputs)[None, :, None])
        self.layout = self._lay_out()

    def prepare(self, inputs: list[mx.array]) -> list[mx.array]:
        """The network's inputs as the other methods take them, with a one behind each. Its weight is the first bias."""
        return [mx.concatenate([*inputs, mx.ones((len(inputs[0]), 1))], axis=1)]

    def gradients(
        self, vector: mx.array, minibatch: dict[str, Any], clip: mx.array, entropy_coef: mx.array
    ) -> tuple[mx.array, Outcome]:
        """(the gradient of the mean loss for `vector`, what came of the samples [B])."""
        blocks = self._blocks(vector)
        activations, outputs = self._forward(vector, minibatch["inputs"])
        values, size = outputs[1:, :1].reshape(-1), outputs.shape[2]
        given = (outputs[:1], values, minibatch, clip, entropy_coef)
        log_std = blocks.log_std
        found = self._categorical(*given) if log_std is None else self._gaussian(log_std, *given)
        outcome, of_outputs, of_values, *of_log_std = found

        # Evaluated here, so that they are constants of the compiled step.
        ones, zeros = mx.array(np.ones((1, 1, size), np.float32)), np.zeros((self._outputs - 1, size), np.float32)
        rows = [of_outputs.reshape(self._outputs, size), of_values[None], mx.array(zeros)]
        of_heads = mx.concatenate(rows).reshape(2, self._outputs, size)
        pieces = [of_heads @ activations[-1][1], of_heads @ ones.swapaxes(1, 2), *of_log_std]
        of_h = of_heads.swapaxes(1, 2) @ blocks.heads
        for index in range(len(blocks.weights) - 1, -1, -1):
            of_z = self._activation.backward(of_h, *activations[index + 1])
            before = activations[index][1].swapaxes(1, 2)
            if index:
                pieces = [before @ of_z, ones @ of_z, *pieces]
                of_h = of_z @ blocks.weights[index].swapaxes(1, 2)
            else:  # The bias is the weight of the one behind each input.
                pieces = [self._of_first(before @ of_z), *pieces]
        return joined(pieces), outcome

    def evaluate(self, vector: mx.array, samples: dict[str, Any]) -> list[mx.array]:
        """[values, log-probabilities of the actions], both [B]."""
        _, outputs = self._forward(vector, samples["inputs"])
        values = outputs[1:, :1].reshape(-1)
        if (log_std := self._blocks(vector).log_std) is not None:
            return [values, _gaussian_log_probs(_deviations(outputs[:1], log_std, samples["actions"]), log_std)]
        log_probs, _ = _softmax(outputs[:1], samples.get("allowed"))
        return [values, mx.take_along_axis(log_probs, samples["actions"].reshape(1, 1, -1), axis=1).reshape(-1)]

    def values(self, vector: mx.array, inputs: list[mx.array], hidden_state: mx.array) -> mx.array:
        """The values [B] of states."""
        return self._forward(vector, inputs)[1][1:, :1].reshape(-1)

    def _lay_out(self) -> Layout:
        towers = ("encoder", "value_encoder")
        first = []
        for tower, inputs in zip(towers, (self._seen, self._inputs), strict=True):
            first.append(Part(f"{tower}.layers.0.weight", (self._sizes[0], inputs), transposed=True))
            if inputs < self._inputs:  # The policy has zeros for what only the critic sees.
                first.append(Part(None, (self._inputs - inputs, self._sizes[0])))
            # A one behind each input has the first bias as its weight.
            first.append(Part(f"{tower}.layers.0.bias", (self._sizes[0],)))
        blocks = [first]
        for index in range(1, len(self._sizes)):
            shape = self._sizes[index], self._sizes[index - 1]
            blocks.append([Part(f"{tower}.layers.{index}.weight", shape, transposed=True) for tower in towers])
            blocks.append([Part(f"{tower}.layers.{index}.bias", shape[:1]) for tower in towers])
        size, outputs = self._sizes[-1], self._outputs
        weights = Part("policy_head.weight", (outputs, size)), Part("value_head.weight", (1, size))
        biases = Part("policy_head.bias", (outputs,)), Part("value_head.bias", (1,))
        blocks += [[*weights, Part(None, (outputs - 1, size))], [*biases, Part(None, (outputs - 1,))]]
        if self._is_gaussian:
            blocks.append([Part("log_std", (outputs,))])
        return Layout(blocks)

    def _of_first(self, gradient: mx.array) -> mx.array:
        """The gradient of the first weights [2, inputs + 1, size], with zeros for what the policy does not see."""
        if self._seen == self._inputs:
            return gradient
        kept = np.ones((2, self._inputs + 1, 1), np.float32)
        kept[0, self._seen : self._inputs] = 0
        return gradient * mx.array(kept)

    def _blocks(self, vector: mx.array) -> "Blocks":
        start = 0

        def block(*shape: int) -> mx.array:
            nonlocal start
            begin, end = start, start + math.prod(shape)
            start = end + padding(math.prod(shape))
            return vector[begin:end].reshape(shape)

        weights, biases = [block(2, self._inputs + 1, self._sizes[0])], []
        for before, size in itertools.pairwise(self._sizes):
            weights.append(block(2, before, size))
            biases.append(block(2, 1, size))
        heads, head_biases = block(2, self._outputs, self._sizes[-1]), block(2, self._outputs, 1)
        log_std = block(1, self._outputs, 1) if self._is_gaussian else None
        return Blocks(weights, biases, heads, head_biases, log_std)

    def _forward(self, vector: mx.array, inputs: list[mx.array]) -> tuple[list[tuple[mx.array, mx.array]], mx.array]:
        """((before an activation, after it) for the inputs and for each layer, the outputs of the heads)."""
        blocks = self._blocks(vector)
        (x,) = inputs
        activations = [(x[None], x[None])]
        for index, weight in enumerate(blocks.weights):
            h = activations[-1][1]
            z = mx.addmm(blocks.biases[index - 1], h, weight) if index else h @ weight
            activations.append((z, self._activation.forward(z)))
        return activations, mx.addmm(blocks.head_biases, blocks.heads, activations[-1][1].swapaxes(1, 2))

    def _categorical(
        self, logits: mx.array, values: mx.array, minibatch: dict[str, Any], clip: mx.array, entropy_coef: mx.array
    ) -> tuple[Any, ...]:
        """(outcome, gradients of the mean loss for the logits [1, choices, B] and the values)."""
        actions = minibatch["actions"].reshape(1, 1, -1)
        log_probs, probs = _softmax(logits, minibatch.get("allowed"))
        entropies = (-mx.exp(log_probs) * log_probs).sum(axis=1, keepdims=True)
        chosen = mx.take_along_axis(log_probs, actions, axis=1)
        outcome = [chosen.reshape(-1), entropies.reshape(-1), values]
        of_chosen, of_values = objective_gradients(outcome, minibatch, clip, self._config)
        one_hot = (self._choices == actions).astype(mx.float32)
        of_logits = of_chosen * (one_hot - probs) + entropy_coef * probs * (log_probs + entropies)
        return outcome, of_logits / values.size, of_values / values.size

    def _gaussian(
        self,
        log_std: mx.array,
        mean: mx.array,
        values: mx.array,
        minibatch: dict[str, Any],
        clip: mx.array,
        entropy_coef: mx.array,
    ) -> tuple[Any, ...]:
        """(outcome, gradients of the mean loss for the means [1, size, B], the values, and log_std)."""
        deviations = _deviations(mean, log_std, minibatch["actions"])
        entropy = (log_std + 0.5 * (1 + LOG_2PI)).sum()
        outcome = [_gaussian_log_probs(deviations, log_std), mx.broadcast_to(entropy, values.shape), values]
        of_log_probs, of_values = objective_gradients(outcome, minibatch, clip, self._config)
        of_log_probs = of_log_probs / values.size
        of_mean = of_log_probs * deviations / mx.exp(log_std)
        of_log_std = (of_log_probs * (deviations * deviations - 1) - entropy_coef / values.size).sum(axis=2)
        return outcome, of_mean, of_values / values.size, of_log_std


def _softmax(logits: mx.array, allowed: mx.array | None) -> tuple[mx.array, mx.array]:
    """(log-probabilities, probabilities) [1, choices, B]; `allowed` bool [B, choices] are action masks, if there are
    any."""
    if allowed is not None:
        logits = shifted(logits, allowed.T[None], axis=1)
        exps = mx.exp(logits)
        total = exps.sum(axis=1, keepdims=True)
        return logits - mx.log(total), exps / total
    # Relative to the largest, so that large logits which are nearly equal keep their digits.
    largest = logits.max(axis=1, keepdims=True)
    exps = mx.exp(logits - largest)
    total = exps.sum(axis=1, keepdims=True)
    return (logits + -largest) - mx.log(total), exps / total


def _deviations(mean: mx.array, log_std: mx.array, actions: mx.array) -> mx.array:
    """How many standard deviations the actions [B, size] are from their means [1, size, B]."""
    return (actions.T[None] - mean) * mx.exp(-log_std)


def _gaussian_log_probs(deviations: mx.array, log_std: mx.array) -> mx.array:
    return (-0.5 * (mx.square(deviations) + LOG_2PI) - log_std).sum(axis=1).reshape(-1)


class _Tanh:
    def __init__(self) -> None:
        self.forward = tanh_for(mx.default_device(), differentiated=False)

    def backward(self, of_h: mx.array, z: mx.array, h: mx.array) -> mx.array:
        return of_h * (1 - h * h)


class _Relu:
    def forward(self, z: mx.array) -> mx.array:
        return mx.maximum(z, 0)

    def backward(self, of_h: mx.array, z: mx.array, h: mx.array) -> mx.array:
        return mx.where(h > 0, of_h, 0)


class _Silu:
    def __init__(self) -> None:
        self._tanh = tanh_for(mx.default_device(), differentiated=False)

    def _sigmoid(self, z: mx.array) -> mx.array:
        return 0.5 * self._tanh(0.5 * z) + 0.5

    def forward(self, z: mx.array) -> mx.array:
        return z * self._sigmoid(z)

    def backward(self, of_h: mx.array, z: mx.array, h: mx.array) -> mx.array:
        sigmoid = self._sigmoid(z)
        return of_h * (sigmoid + h * (1 - sigmoid))


_ACTIVATIONS = {"tanh": _Tanh, "relu": _Relu, "silu": _Silu}
