"""The steps of a GRU and of an LSTM through time, with their gradients by hand: a fifth of the kernels that
differentiation makes.

A step of few sequences costs what its kernels cost to start. Backwards, gates and their slopes do not depend on the
gradient, so that they are computed for all steps at once; three kernels a step remain.
tests/test_recurrence.py compares this with differentiation.
"""

from collections.abc import Callable
from typing import cast

import mlx.core as mx


def gru_recurrence() -> Callable[..., mx.array]:
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


def lstm_recurrence() -> Callable[..., mx.array]:
    """The same for an LSTM: from_inputs [T, B, 4 · size], the hidden state [B, 2 · size], weight [4 · size, size], bias
    [4 · size]; hidden states [T, B, 2 · size], each what is shown and then the cell."""

    def gates(summed: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """(what is taken, what is kept, the candidate, what is shown), each [..., size]."""
        taken, kept, candidate, shown = mx.split(summed, 4, axis=-1)
        return mx.sigmoid(taken), mx.sigmoid(kept), mx.tanh(candidate), mx.sigmoid(shown)

    def forward(
        from_inputs: mx.array, hidden_state: mx.array, keep: mx.array, weight: mx.array, bias: mx.array
    ) -> mx.array:
        length, transposed = len(from_inputs), weight.T
        output, cell = mx.split(hidden_state[None], 2, axis=-1)
        outputs, cells = [], []
        inputs = mx.split(from_inputs + bias, length)
        for from_input, again in zip(inputs, mx.split(keep, length), strict=True):
            taken, kept, candidate, shown = gates(mx.addmm(from_input, output * again, transposed))
            cell = kept * (cell * again) + taken * candidate
            output = shown * mx.tanh(cell)
            outputs.append(output)
            cells.append(cell)
        return mx.concatenate([mx.concatenate(outputs), mx.concatenate(cells)], axis=-1)

    steps = mx.custom_function(forward)

    @steps.vjp
    def backward(primals: tuple[mx.array, ...], cotangent: mx.array, hidden_states: mx.array) -> tuple[mx.array, ...]:
        from_inputs, hidden_state, keep, weight, bias = primals
        length, batch, size = len(from_inputs), from_inputs.shape[1], weight.shape[1]
        before = mx.concatenate([hidden_state[None], hidden_states[:-1]]) * keep
        before_output, before_cell = mx.split(before, 2, axis=-1)
        taken, kept, candidate, shown = gates(from_inputs + mx.addmm(bias, before_output, weight.T))
        squashed = mx.tanh(hidden_states[..., size:])
        # How much each gate's sum changes the cell, and what is shown: [T, B, 4, size].
        none = mx.zeros_like(taken)
        of_taken = candidate * taken * (1 - taken)
        of_kept = before_cell * kept * (1 - kept)
        by_cell = mx.stack([of_taken, of_kept, taken * (1 - candidate * candidate), none], axis=2)
        by_output = mx.stack([none, none, none, squashed * shown * (1 - shown)], axis=2)
        to_cell = shown * (1 - squashed * squashed)  # How much the cell changes what is shown.

        gradients = []  # Of each step's output and cell [1, B, size], the last step's first.
        given = zip(*(mx.split(x, length) for x in mx.split(cotangent, 2, axis=-1)), strict=True)
        # What was before an episode's beginning has no part in what follows. `keep` itself was split by `forward`
        # already, and MLX's compiler fails where one array is split twice.
        again = keep[..., None]
        kept_slopes = by_cell * again, by_output * again, to_cell, kept * keep
        slopes = zip(*(mx.split(x, length) for x in kept_slopes), strict=True)
        following: tuple[mx.array, mx.array] | None = None  # What the step after this one makes of them.
        for (of_output, of_cell), (in_cell, in_output, through, forgotten) in reversed(
            list(zip(given, slopes, strict=True))
        ):
            output, cell = of_output, of_cell
            if following is not None:
                output, cell = output + following[0], cell + following[1]
            cell = cell + output * through
            gradients.append((output, cell))
            sums = (cell[:, :, None] * in_cell + output[:, :, None] * in_output).reshape(batch, 4 * size)
            following = (sums @ weight)[None], cell * forgotten
        outputs, cells = (mx.concatenate(list(parts)) for parts in zip(*gradients[::-1], strict=True))
        of_sums = (cells[:, :, None] * by_cell + outputs[:, :, None] * by_output).reshape(length, batch, 4 * size)
        flat = of_sums.reshape(-1, 4 * size)
        assert following is not None
        return (
            of_sums,
            mx.concatenate([*following], axis=-1).squeeze(0),
            mx.zeros_like(keep),  # Nobody asks for it.
            flat.T @ before_output.reshape(-1, size),
            flat.sum(axis=0),
        )

    return cast(Callable[..., mx.array], steps)
