"""The networks in MLX; `actors/networks.py` has the same in NumPy, which must agree to 1e-5.

Each is called with a list of inputs, first the vector [B, n] and then the images [B, height, width, channels] as uint8,
and returns features [B, size]; `size` is an attribute. All are built from the shapes of the inputs and the experiment.
"""

import itertools
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from learner.activations import tanh_for
from learner.convolution import Convolution, max_pool
from learner.recurrence import gru_recurrence, lstm_recurrence
from protocol.experiment import Experiment
from protocol.networks import IMPALA_CHANNELS, IMPALA_RESIDUALS, NATURE_LAYERS, hidden_sizes
from protocol.observations import InputShapes


class MLP(nn.Module):
    """Everything flattened and joined, then fully connected layers."""

    def __init__(self, shapes: InputShapes, experiment: Experiment) -> None:
        super().__init__()
        pixels = sum(height * width * channels for height, width, channels in shapes.images)
        sizes = [shapes.vector + pixels, *hidden_sizes(experiment, shapes)]
        self.layers = fully_connected(sizes)
        self.size = sizes[-1]
        self.activation = experiment.activation
        self._activation = activation(experiment.activation)

    def __call__(self, inputs: list[mx.array]) -> mx.array:
        vector, *images = inputs
        x = joined([vector, *(scaled(image) for image in images)])
        for layer in self.layers:
            x = self._activation(layer(x))
        return x


class CNN(nn.Module):
    """A tower of convolutions for each image, all joined with the vector, then fully connected layers."""

    def __init__(self, shapes: InputShapes, experiment: Experiment) -> None:
        super().__init__()
        self.towers, size = [], shapes.vector
        for image in shapes.images:
            tower, (height, width, channels) = self._build(*image)
            self.towers.append(tower)
            size += height * width * channels
        sizes = [size, *hidden_sizes(experiment, shapes)]
        self.layers = fully_connected(sizes)
        self.size = sizes[-1]

    def __call__(self, inputs: list[mx.array]) -> mx.array:
        vector, *images = inputs
        towers = zip(self.towers, images, strict=True)
        x = joined([vector, *(self._climb(tower, scaled(image)) for tower, image in towers)])
        for layer in self.layers:
            x = nn.relu(layer(x))
        return x

    def _build(self, height: int, width: int, channels: int) -> tuple[list, tuple[int, int, int]]:
        """A tower for images of this shape, and the shape that comes out of it."""
        raise NotImplementedError

    def _climb(self, tower: list, x: mx.array) -> mx.array:
        """The output of a tower."""
        raise NotImplementedError


class NatureCNN(CNN):
    """Three convolutions for each image (Mnih et al. 2015)."""

    def _build(self, height: int, width: int, channels: int) -> tuple[list, tuple[int, int, int]]:
        tower = []
        for outputs, kernel, stride in NATURE_LAYERS:
            tower.append(Convolution(channels, outputs, kernel, stride, padding=0))
            height, width, channels = (height - kernel) // stride + 1, (width - kernel) // stride + 1, outputs
        return tower, (height, width, channels)

    def _climb(self, tower: list, x: mx.array) -> mx.array:
        for convolution in tower:
            x = nn.relu(convolution(x))
        return x


class ImpalaCNN(CNN):
    """Three blocks of a convolution, pooling and residual pairs for each image (Espeholt et al. 2018)."""

    def _build(self, height: int, width: int, channels: int) -> tuple[list, tuple[int, int, int]]:
        tower = []
        for outputs in IMPALA_CHANNELS:
            block = [Convolution(channels, outputs, kernel=3, stride=1, padding=1)]
            block += [Convolution(outputs, outputs, 3, 1, 1) for _ in range(2 * IMPALA_RESIDUALS)]
            tower.append(block)
            height, width, channels = (height + 1) // 2, (width + 1) // 2, outputs
        return tower, (height, width, channels)

    def _climb(self, tower: list, x: mx.array) -> mx.array:
        for first, *residual in tower:
            x = max_pool(first(x))
            for a, b in zip(residual[::2], residual[1::2], strict=True):
                x = x + b(nn.relu(a(nn.relu(x))))
        return nn.relu(x)


class Cell(nn.Module):
    """A recurrent layer over sequences that may begin episodes anew."""

    GATES: int  # Sums that a step makes for each unit.

    def __init__(self, inputs: int, size: int, recurrence: Callable[..., mx.array]) -> None:
        super().__init__()
        self.inputs = nn.Linear(inputs, self.GATES * size)
        self.recurrent = nn.Linear(size, self.GATES * size)
        self.size = size
        self._recurrence = recurrence

    def __call__(self, x: mx.array, hidden_state: mx.array, starts: mx.array) -> mx.array:
        """The hidden state [B, T, hidden_state_size] after each of T steps; what is shown of it are its first `size`.

        For features x [B, T, n], the hidden state before them, and starts float32 [B, T], which is 1 where a step
        begins an episode, and so forgets what was before.
        """
        from_inputs = self.inputs(x.swapaxes(0, 1))
        keep = 1 - starts.T[..., None]
        weight, bias = self.recurrent.weight, self.recurrent.bias
        return self._recurrence(from_inputs, hidden_state, keep, weight, bias).swapaxes(0, 1)


class GRU(Cell):
    """A gated recurrent unit (Cho et al., arXiv 1406.1078)."""

    GATES = 3

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__(inputs, size, gru_recurrence())


class LSTM(Cell):
    """A long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""

    GATES = 4

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__(inputs, size, lstm_recurrence())


CELLS = {"gru": GRU, "lstm": LSTM}


def activation(name: str) -> Callable[[mx.array], mx.array]:
    """tanh, relu or silu, each in its fastest form."""
    tanh = tanh_for(mx.default_device())
    return {"tanh": tanh, "relu": nn.relu, "silu": lambda x: x * (0.5 * tanh(0.5 * x) + 0.5)}[name]


def fully_connected(sizes: list[int]) -> list[nn.Linear]:
    return [nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes)]


def scaled(images: mx.array) -> mx.array:
    """uint8 as float32 from 0 to 1."""
    return images.astype(mx.float32) * (1 / 255)


def joined(features: list[mx.array]) -> mx.array:
    """All features [B, …] flattened, side by side."""
    flat = [x.reshape(len(x), -1) for x in features if x.size]
    return flat[0] if len(flat) == 1 else mx.concatenate(flat, axis=1)
