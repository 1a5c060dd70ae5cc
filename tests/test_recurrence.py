"""The hand-written gradients of the GRU and the LSTM equal the automatic gradients of their steps."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from learner.recurrence import gru_recurrence, lstm_recurrence

SIZE = 5


def gru(from_inputs: mx.array, hidden_state: mx.array, keep: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """The GRU of Cho et al., step by step, for automatic differentiation."""
    hidden_states = []
    for from_input, kept in zip(from_inputs, keep, strict=True):
        hidden_state = hidden_state * kept
        from_hidden_state = hidden_state @ weight.T + bias
        reset, update = (
            mx.sigmoid(from_input[:, i * SIZE : (i + 1) * SIZE] + from_hidden_state[:, i * SIZE : (i + 1) * SIZE])
            for i in range(2)
        )
        candidate = mx.tanh(from_input[:, 2 * SIZE :] + reset * from_hidden_state[:, 2 * SIZE :])
        hidden_state = (1 - update) * candidate + update * hidden_state
        hidden_states.append(hidden_state)
    return mx.stack(hidden_states)


def lstm(from_inputs: mx.array, hidden_state: mx.array, keep: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """The LSTM as PyTorch writes it, step by step, for automatic differentiation."""
    hidden_states = []
    for from_input, kept in zip(from_inputs, keep, strict=True):
        hidden_state = hidden_state * kept
        summed = from_input + hidden_state[:, :SIZE] @ weight.T + bias
        i, f, g, o = (summed[:, n * SIZE : (n + 1) * SIZE] for n in range(4))
        cell = mx.sigmoid(f) * hidden_state[:, SIZE:] + mx.sigmoid(i) * mx.tanh(g)
        hidden_state = mx.concatenate([mx.sigmoid(o) * mx.tanh(cell), cell], axis=1)
        hidden_states.append(hidden_state)
    return mx.stack(hidden_states)


KINDS = {"gru": (gru_recurrence, gru, 3, 1), "lstm": (lstm_recurrence, lstm, 4, 2)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("length", "batch"), [(1, 1), (1, 3), (7, 1), (12, 4)])
@pytest.mark.parametrize("starts", [0.0, 0.3, 1.0], ids=["no episode begins", "some", "all"])
def test_hidden_states_and_gradients_are_those_of_differentiation(
    length: int, batch: int, starts: float, kind: str
) -> None:
    recurrence, literal, sums, width = KINDS[kind]
    random = np.random.default_rng(0)

    def drawn(*shape: int) -> mx.array:
        return mx.array(random.standard_normal(shape).astype(np.float32))

    keep = mx.array((random.random((length, batch, 1)) >= starts).astype(np.float32))
    given = (
        drawn(length, batch, sums * SIZE),
        drawn(batch, width * SIZE),
        keep,
        drawn(sums * SIZE, SIZE),
        drawn(sums * SIZE),
    )
    weights = drawn(length, batch, width * SIZE)
    ours = recurrence()

    def gradients_of(function: Any) -> list[np.ndarray]:
        def loss(*args: mx.array) -> mx.array:
            return (mx.sin(function(*args)) * weights).sum()

        found = mx.compile(mx.grad(loss, argnums=(0, 1, 3, 4)))(*given)
        return [np.array(gradient) for gradient in found]

    np.testing.assert_allclose(np.array(ours(*given)), np.array(literal(*given)), atol=2e-6)
    for one, other in zip(gradients_of(ours), gradients_of(literal), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)
