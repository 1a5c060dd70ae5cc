"""The steps of a GRU through time, with their gradient by hand: a fifth of the kernels that differentiation makes.

A step of few sequences costs what its kernels cost to start. Backwards, gates and their slopes do not depend on the
gradient, so that they are computed for all steps at once; three kernels a step remain.
tests/test_recurrence.py compares this with differentiation.
"""

from collections.abc import Callable
from typing import cast

import mlx.core as mx


def recurrence() -> Callable[..., mx.array]:
    """A function from (from_inputs [T, B, 3 · size], the hidden state [B, size] before them, keep [T, B, 1], weight
    [3 · size, size], bias [3 · size]) to the hidden states [T, B, size] after each of T steps.

    `keep` is 0 where a step begins an episode, and so forgets what was before, and 1 elsewhere.
    """

    def thirds(x: mx.array) -> list[mx.array]:
        return [*mx.split(x, 3, axis=-1)]

    def gates(from_input: list[mx.array], from_hidden_state: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """(reset, update, candidate), each [..., size]. Each is made apart, so that a step's end is one kernel."""
        parts = thirds(from_hidden_state)
        reset, update = (mx.sigmoid(from_input[i] + parts[i]) for i in (0, 1))
        # The tanh by arithmetic would be faster for an element, and is several kernels here.
        return reset, update, mx.tanh(from_input[2] + reset * parts[2])

    def forward(
        from_inputs: mx.array, hidden_state: mx.array, keep: mx.array, weight: mx.array, bias: mx.array
    ) -> mx.array:
        length = len(from_inputs)
        hidden_state, transposed = hidden_state[None], weight.T  # All of a step is [1, B, ...]: that spares views.
        hidden_states = []
        inputs = zip(*(mx.split(part, length) for part in thirds(from_inputs)), strict=True)
        for from_input, kept in zip(inputs, mx.split(keep, length), strict=True):
            before = hidden_state * kept
            _, update, candidate = gates([*from_input], mx.addmm(bias, before, transposed))
            hidden_state = candidate + update * (before - candidate)
            hidden_states.append(hidden_state)
        return mx.concatenate(hidden_states)

    steps = mx.custom_function(forward)

    @steps.vjp
    def backward(primals: tuple[mx.array, ...], cotangent: mx.array, hidden_states: mx.array) -> tuple[mx.array, ...]:
        from_inputs, hidden_state, keep, weight, bias = primals
        length, batch, size = hidden_states.shape
        before = mx.concatenate([hidden_state[None], hidden_states[:-1]]) * keep
        from_hidden_states = mx.addmm(bias, before, weight.T)
        reset, update, candidate = gates(thirds(from_inputs), from_hidden_states)
        # How much each gate's input changes the hidden state: [T, B, size].
        of_candidate = (1 - update) * (1 - candidate * candidate)
        of_reset = of_candidate * thirds(from_hidden_states)[2] * reset * (1 - reset)
        of_update = (before - candidate) * update * (1 - update)
        slopes = mx.stack([of_reset, of_update, of_candidate * reset], axis=2)  # [T, B, 3, size], for the products.

        gradients = []  # Of each step's hidden state [1, B, size], the last step's first.
        # What was before an episode's beginning has no part in what follows.
        parts = zip(*(mx.split(x, length) for x in (cotangent, slopes * keep[..., None], update * keep)), strict=True)
        following: mx.array | None = None  # What the step after this one makes of its hidden state's gradient.
        for given, slope, kept in reversed(list(parts)):
            gradient = given if following is None else given + following
            gradients.append(gradient)
            product = (gradient[:, :, None] * slope).reshape(batch, 3 * size) @ weight
            following = gradient * kept + product
        of_states = mx.concatenate(gradients[::-1])
        of_products = (of_states[:, :, None] * slopes).reshape(-1, 3 * size)
        of_inputs = mx.concatenate([of_states * of_reset, of_states * of_update, of_states * of_candidate], axis=-1)
        assert following is not None
        return (
            of_inputs,
            following.squeeze(0),
            mx.zeros_like(keep),  # Nobody asks for it.
            of_products.T @ before.reshape(-1, size),
            of_products.sum(axis=0),
        )

    return cast(Callable[..., mx.array], steps)
