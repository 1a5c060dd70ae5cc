"""Convolutions and pooling of images [B, height, width, channels].

MLX's own convolution is slow on CPUs, where these unfold the images for one matrix product instead.
"""

from collections.abc import Callable
from typing import cast

import mlx.core as mx
import mlx.nn as nn


class Convolution(nn.Module):
    """A square kernel [out, kernel, kernel, in], and a bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, kernel, kernel, inputs))
        self.bias = mx.zeros(outputs)
        self._stride, self._padding = stride, padding
        on_gpu = mx.default_device().type == mx.gpu
        self._convolve = mx.conv2d if on_gpu else convolve

    def __call__(self, x: mx.array) -> mx.array:
        return self._convolve(x, self.weight, self._stride, self._padding) + self.bias


def convolve(x: mx.array, weight: mx.array, stride: int, padding: int) -> mx.array:
    """The convolution [B, rows, columns, out] of x [B, height, width, in] with a weight [out, kernel, kernel, in]."""
    if padding:
        x = mx.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    return _by_stride(stride)(x, weight)


def _by_stride(stride: int) -> Callable[[mx.array, mx.array], mx.array]:
    """The convolution without padding, whose gradient unfolds rather than scatters."""

    @mx.custom_function
    def unfolded(x: mx.array, weight: mx.array) -> mx.array:
        windows = unfold(x, weight.shape[1], stride)
        y = windows.reshape(-1, weight[0].size) @ weight.reshape(len(weight), -1).T
        return y.reshape(*windows.shape[:3], -1)

    @unfolded.vjp
    def _(primals: tuple[mx.array, mx.array], cotangent: mx.array, output: mx.array) -> tuple[mx.array, mx.array]:
        x, weight = primals
        windows = unfold(x, weight.shape[1], stride)
        flat = cotangent.reshape(-1, len(weight))
        by_weight = (flat.T @ windows.reshape(len(flat), -1)).reshape(weight.shape)
        return gradient_of_images(cotangent, weight, stride, x.shape), by_weight

    return cast(Callable[[mx.array, mx.array], mx.array], unfolded)


def unfold(x: mx.array, kernel: int, stride: int) -> mx.array:
    """The windows [B, rows, columns, kernel, kernel, channels] that a convolution of x sees."""
    batch, height, width, channels = x.shape
    rows, columns = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    row, column = width * channels, channels
    shape = (batch, rows, columns, kernel, kernel, channels)
    strides = (height * row, stride * row, stride * column, row, column, 1)
    return mx.contiguous(mx.as_strided(mx.contiguous(x), shape, strides))


def gradient_of_images(cotangent: mx.array, weight: mx.array, stride: int, shape: tuple[int, ...]) -> mx.array:
    """The gradient [B, height, width, in] of a convolution's images, from that of its output [B, rows, columns, out].

    It is a convolution, too: a pixel is in a square block of `stride` pixels, and each window covers `blocks` ×
    `blocks` of these. So a block's gradient comes from that many outputs.
    """
    batch, height, width, channels = shape
    outputs, kernel = weight.shape[:2]
    blocks = -(-kernel // stride)
    missing = blocks * stride - kernel
    weight = mx.pad(weight, [(0, 0), (0, missing), (0, missing), (0, 0)])
    weight = weight.reshape(outputs, blocks, stride, blocks, stride, channels)[:, ::-1, :, ::-1]
    weight = weight.transpose(1, 3, 0, 2, 4, 5).reshape(blocks**2 * outputs, stride**2 * channels)
    border = (blocks - 1, blocks - 1)
    windows = unfold(mx.pad(cotangent, [(0, 0), border, border, (0, 0)]), blocks, 1)
    rows, columns = windows.shape[1:3]
    x = (windows.reshape(-1, len(weight)) @ weight).reshape(batch, rows, columns, stride, stride, channels)
    x = x.swapaxes(2, 3).reshape(batch, rows * stride, columns * stride, channels)[:, :height, :width]
    return mx.pad(x, [(0, 0), (0, height - x.shape[1]), (0, width - x.shape[2]), (0, 0)])


def max_pool(x: mx.array) -> mx.array:
    """The largest of each 3 × 3 window, every 2 pixels, of images [B, height, width, channels]."""
    height, width = x.shape[1:3]
    x = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-float("inf"))
    rows = mx.maximum(mx.maximum(x[:, 0:height:2], x[:, 1 : height + 1 : 2]), x[:, 2 : height + 2 : 2])
    return mx.maximum(mx.maximum(rows[:, :, 0:width:2], rows[:, :, 1 : width + 1 : 2]), rows[:, :, 2 : width + 2 : 2])
