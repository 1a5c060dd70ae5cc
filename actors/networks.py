"""The networks in NumPy; `learner/networks.py` has the same in MLX, and says what they are.

Each is called with a list of inputs, first the vector [B, n] and then the images [B, height, width, channels], and
returns features [B, size]. It is built from its parameters by name, as the learner's class names them.
"""

import numpy as np

from protocol.experiment import Experiment
from protocol.networks import IMPALA_CHANNELS, IMPALA_RESIDUALS, NATURE_LAYERS
from protocol.observations import InputShapes

Weights = dict[str, np.ndarray]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0, out=x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """By way of tanh, which cannot overflow."""
    return 0.5 * np.tanh(0.5 * x) + 0.5


ACTIVATIONS = {
    "tanh": lambda x: np.tanh(x, out=x),
    "relu": relu,
    "silu": lambda x: x * sigmoid(x),
}


class Linear:
    """x Wᵀ + b."""

    def __init__(self, weights: Weights, name: str) -> None:
        # MLX keeps [out, in]; a contiguous [in, out] multiplies from the right.
        self._weight = np.ascontiguousarray(weights[f"{name}.weight"].T)
        self._bias = weights[f"{name}.bias"]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = np.dot(x, self._weight)  # the same as x @ W, but without its overhead
        x += self._bias
        return x


class Convolution:
    """A convolution of images [B, height, width, channels], by unfolding them for one matrix product."""

    def __init__(self, weights: Weights, name: str, stride: int, padding: int) -> None:
        weight = weights[f"{name}.weight"]  # [out, kernel, kernel, in]
        self._kernel, self._stride, self._padding = weight.shape[1], stride, padding
        self._weight = np.ascontiguousarray(weight.reshape(len(weight), -1).T)
        self._bias = weights[f"{name}.bias"]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        unfolded = unfold(x, self._kernel, self._stride, self._padding)
        y = unfolded.reshape(-1, len(self._weight)) @ self._weight
        y += self._bias
        return y.reshape(*unfolded.shape[:3], -1)


class MLP:
    """Everything flattened and joined, then fully connected layers."""

    def __init__(self, weights: Weights, shapes: InputShapes, experiment: Experiment) -> None:
        self._layers = layers_of(weights, "layers")
        self._activation = ACTIVATIONS[experiment.activation]

    def __call__(self, inputs: list[np.ndarray]) -> np.ndarray:
        vector, *images = inputs
        x = joined([vector, *(scaled(image) for image in images)]) if images else vector
        for layer in self._layers:
            x = self._activation(layer(x))
        return x


class CNN:
    """A tower of convolutions for each image, all joined with the vector, then fully connected layers."""

    def __init__(self, weights: Weights, shapes: InputShapes, experiment: Experiment) -> None:
        self._towers = [self._build(weights, f"towers.{i}") for i in range(len(shapes.images))]
        self._layers = layers_of(weights, "layers")

    def __call__(self, inputs: list[np.ndarray]) -> np.ndarray:
        vector, *images = inputs
        towers = zip(self._towers, images, strict=True)
        x = joined([vector, *(self._climb(tower, scaled(image)) for tower, image in towers)])
        for layer in self._layers:
            x = relu(layer(x))
        return x

    def _build(self, weights: Weights, name: str) -> list:
        """The tower of that name."""
        raise NotImplementedError

    def _climb(self, tower: list, x: np.ndarray) -> np.ndarray:
        """The output of a tower."""
        raise NotImplementedError


class NatureCNN(CNN):
    """The network of Mnih et al. (2015)."""

    def _build(self, weights: Weights, name: str) -> list:
        return [
            Convolution(weights, f"{name}.{i}", stride, padding=0) for i, (_, _, stride) in enumerate(NATURE_LAYERS)
        ]

    def _climb(self, tower: list, x: np.ndarray) -> np.ndarray:
        for convolution in tower:
            x = relu(convolution(x))
        return x


class ImpalaCNN(CNN):
    """The residual network of Espeholt et al. (2018)."""

    def _build(self, weights: Weights, name: str) -> list:
        return [
            [Convolution(weights, f"{name}.{block}.{i}", stride=1, padding=1) for i in range(1 + 2 * IMPALA_RESIDUALS)]
            for block in range(len(IMPALA_CHANNELS))
        ]

    def _climb(self, tower: list, x: np.ndarray) -> np.ndarray:
        for first, *residual in tower:
            x = max_pool(first(x))
            for a, b in zip(residual[::2], residual[1::2], strict=True):
                x = x + b(relu(a(np.maximum(x, 0))))
        return relu(x)


class GRU:
    """A gated recurrent unit (Cho et al., arXiv 1406.1078), in the form that PyTorch and MLX have."""

    def __init__(self, weights: Weights, name: str) -> None:
        self._inputs = Linear(weights, f"{name}.inputs")
        self._recurrent = Linear(weights, f"{name}.recurrent")

    def __call__(self, x: np.ndarray, hidden_state: np.ndarray) -> np.ndarray:
        """The next hidden state [B, size], for features x [B, n] and the hidden state before."""
        size = hidden_state.shape[1]
        from_input, from_hidden_state = self._inputs(x), self._recurrent(hidden_state)
        gates = sigmoid(from_input[:, : 2 * size] + from_hidden_state[:, : 2 * size])
        reset, update = gates[:, :size], gates[:, size:]
        candidate = np.tanh(from_input[:, 2 * size :] + reset * from_hidden_state[:, 2 * size :])
        return candidate + update * (hidden_state - candidate)


class LSTM:
    """A long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000), in the form
    that PyTorch has. Its hidden state is what it shows, and then its cell."""

    def __init__(self, weights: Weights, name: str) -> None:
        self._inputs = Linear(weights, f"{name}.inputs")
        self._recurrent = Linear(weights, f"{name}.recurrent")

    def __call__(self, x: np.ndarray, hidden_state: np.ndarray) -> np.ndarray:
        """The next hidden state [B, 2 · size], for features x [B, n] and the hidden state before."""
        size = hidden_state.shape[1] // 2
        summed = self._inputs(x) + self._recurrent(np.ascontiguousarray(hidden_state[:, :size]))
        taken, kept = sigmoid(summed[:, :size]), sigmoid(summed[:, size : 2 * size])
        shown = sigmoid(summed[:, 3 * size :])
        cell = kept * hidden_state[:, size:] + taken * np.tanh(summed[:, 2 * size : 3 * size])
        return np.concatenate([shown * np.tanh(cell), cell], axis=1)


CELLS = {"gru": GRU, "lstm": LSTM}


def layers_of(weights: Weights, name: str) -> list[Linear]:
    """The fully connected layers `name.0`, `name.1`, … in order."""
    count = sum(key.startswith(f"{name}.") and key.endswith(".weight") for key in weights)
    return [Linear(weights, f"{name}.{i}") for i in range(count)]


def scaled(images: np.ndarray) -> np.ndarray:
    """uint8 as float32 from 0 to 1."""
    return images.astype(np.float32) * np.float32(1 / 255)


def joined(features: list[np.ndarray]) -> np.ndarray:
    """All features [B, …] flattened, side by side."""
    flat = [x.reshape(len(x), -1) for x in features if x.size]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)


def unfold(x: np.ndarray, kernel: int, stride: int, padding: int) -> np.ndarray:
    """The windows [B, rows, columns, kernel, kernel, channels] that a convolution of x sees, contiguous."""
    if padding:
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    batch, height, width, channels = x.shape
    rows, columns = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    b, h, w, c = x.strides
    shape = (batch, rows, columns, kernel, kernel, channels)
    windows = np.lib.stride_tricks.as_strided(x, shape, (b, h * stride, w * stride, h, w, c), writeable=False)
    return np.ascontiguousarray(windows)


def max_pool(x: np.ndarray) -> np.ndarray:
    """The largest of each 3 × 3 window, every 2 pixels, of images [B, height, width, channels]."""
    height, width = x.shape[1:3]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows = np.maximum(np.maximum(x[:, 0:height:2], x[:, 1 : height + 1 : 2]), x[:, 2 : height + 2 : 2])
    return np.maximum(np.maximum(rows[:, :, 0:width:2], rows[:, :, 1 : width + 1 : 2]), rows[:, :, 2 : width + 2 : 2])
