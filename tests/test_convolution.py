"""Convolutions and pooling, on both sides, against MLX's own convolution and against literal loops."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from actors import networks as on_actor
from learner.convolution import Convolution, convolve, max_pool, unfold

# (height, width), kernel, stride, padding
SHAPES = {
    "nature's first": ((36, 36), 8, 4, 0),
    "nature's first, with a margin left over": ((39, 37), 8, 4, 0),
    "nature's second": ((9, 8), 4, 2, 0),
    "nature's third": ((4, 3), 3, 1, 0),
    "impala's": ((7, 5), 3, 1, 1),
    "impala's of one pixel": ((1, 1), 3, 1, 1),
    "a kernel that its stride does not divide": ((11, 10), 5, 2, 1),
    "a stride beyond the kernel": ((10, 9), 2, 3, 0),
    "one pixel at a time": ((4, 4), 1, 1, 0),
}
every_shape = pytest.mark.parametrize(("size", "kernel", "stride", "padding"), SHAPES.values(), ids=SHAPES)
BATCH, INPUTS, OUTPUTS = 2, 3, 4


def arrays(size: tuple[int, int], kernel: int) -> tuple[np.ndarray, np.ndarray]:
    """(images, weight)."""
    random = np.random.default_rng(0)
    x = random.standard_normal((BATCH, *size, INPUTS)).astype(np.float32)
    weight = random.standard_normal((OUTPUTS, kernel, kernel, INPUTS)) / (kernel * INPUTS**0.5)
    return x, weight.astype(np.float32)


@every_shape
def test_a_convolution_is_mlxs_own(size: tuple[int, int], kernel: int, stride: int, padding: int) -> None:
    x, weight = arrays(size, kernel)
    expected = np.array(mx.conv2d(mx.array(x), mx.array(weight), stride, padding))
    np.testing.assert_allclose(convolve(mx.array(x), mx.array(weight), stride, padding), expected, rtol=1e-5, atol=1e-5)
    actor = on_actor.Convolution({"c.weight": weight, "c.bias": np.ones(OUTPUTS, np.float32)}, "c", stride, padding)
    np.testing.assert_allclose(actor(x), expected + 1, rtol=1e-5, atol=1e-5)


@every_shape
def test_both_gradients_of_a_convolution_are_mlxs_own(
    size: tuple[int, int], kernel: int, stride: int, padding: int
) -> None:
    x, weight = map(mx.array, arrays(size, kernel))
    shape = mx.conv2d(x, weight, stride, padding).shape
    cotangent = mx.array(np.random.default_rng(1).standard_normal(shape).astype(np.float32))
    _, ours = mx.vjp(lambda x, weight: convolve(x, weight, stride, padding), [x, weight], [cotangent])
    _, theirs = mx.vjp(lambda x, weight: mx.conv2d(x, weight, stride, padding), [x, weight], [cotangent])
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        np.testing.assert_allclose(np.array(mine), np.array(other), rtol=1e-5, atol=1e-5)


@every_shape
def test_unfolding_lists_the_windows_that_a_convolution_sees(
    size: tuple[int, int], kernel: int, stride: int, padding: int
) -> None:
    x, _ = arrays(size, kernel)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    found = on_actor.unfold(x, kernel, stride, padding)
    rows, columns = ((n + 2 * padding - kernel) // stride + 1 for n in size)
    assert found.shape == (BATCH, rows, columns, kernel, kernel, INPUTS)
    for b, row, column in itertools.product(range(BATCH), range(rows), range(columns)):
        window = padded[b, row * stride :, column * stride :][:kernel, :kernel]
        np.testing.assert_array_equal(found[b, row, column], window)
    np.testing.assert_array_equal(np.array(unfold(mx.array(padded), kernel, stride)), found)


def test_unfolding_takes_arrays_that_are_not_contiguous() -> None:
    x, _ = arrays((6, 5), 3)
    turned = np.ascontiguousarray(x.swapaxes(1, 2))
    expected = on_actor.unfold(x, 3, 1, 0)
    np.testing.assert_array_equal(on_actor.unfold(turned.swapaxes(1, 2), 3, 1, 0), expected)
    np.testing.assert_array_equal(np.array(unfold(mx.array(turned).swapaxes(1, 2), 3, 1)), expected)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 6), (8, 5)], ids=str)
def test_max_pooling_takes_the_largest_of_each_window(size: tuple[int, int]) -> None:
    height, width = size
    x = np.random.default_rng(0).standard_normal((BATCH, height, width, INPUTS)).astype(np.float32) - 5
    expected = np.empty((BATCH, (height + 1) // 2, (width + 1) // 2, INPUTS), np.float32)
    for b, row, column, c in np.ndindex(expected.shape):
        expected[b, row, column, c] = max(
            x[b, i, j, c]
            for i in range(2 * row - 1, 2 * row + 2)
            for j in range(2 * column - 1, 2 * column + 2)
            if 0 <= i < height and 0 <= j < width
        )
    np.testing.assert_array_equal(on_actor.max_pool(x), expected)
    np.testing.assert_array_equal(np.array(max_pool(mx.array(x))), expected)


def test_the_gradient_of_max_pooling_goes_to_the_largest_alone() -> None:
    x = np.random.default_rng(0).standard_normal((1, 7, 6, 1)).astype(np.float32)
    gradient = np.array(mx.grad(lambda x: max_pool(x).sum())(mx.array(x)))
    expected = np.zeros(x.shape)
    for row, column in itertools.product(range(4), range(3)):
        top, left = max(2 * row - 1, 0), max(2 * column - 1, 0)
        window = x[0, top : 2 * row + 2, left : 2 * column + 2, 0]
        i, j = np.unravel_index(window.argmax(), window.shape)
        expected[0, top + i, left + j, 0] += 1
    np.testing.assert_array_equal(gradient, expected)


def test_a_layer_adds_its_bias_to_the_convolution_of_its_weight() -> None:
    x, weight = arrays((7, 5), 3)
    layer = Convolution(INPUTS, OUTPUTS, kernel=3, stride=2, padding=1)
    assert layer.weight.shape == weight.shape
    bias = np.arange(OUTPUTS, dtype=np.float32)
    layer.weight, layer.bias = mx.array(weight), mx.array(bias)
    expected = np.array(mx.conv2d(mx.array(x), mx.array(weight), 2, 1)) + bias
    np.testing.assert_allclose(np.array(layer(mx.array(x))), expected, rtol=1e-5, atol=1e-5)
