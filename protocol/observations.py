"""Turns stored observations into a network's inputs. Actors and learner must do this alike, to the last bit.

The policy sees the spaces' `parts`. What only the critic sees, their `critic_parts`, are inputs of their own.
"""

from dataclasses import dataclass

import numpy as np

from protocol.spaces import ObservationPart, Spaces

OBSERVATION_CLIP = np.float32(10.0)


@dataclass(frozen=True)
class InputShapes:
    """The inputs of a network for a batch of B observations: a list of arrays, first the vector and then the images."""

    vector: int  # float32 [B, vector]; may be 0
    images: tuple[tuple[int, int, int], ...]  # each uint8 [B, height, width, channels]

    @classmethod
    def of(cls, parts: tuple[ObservationPart, ...]) -> "InputShapes":
        """Those of a network that sees these parts of observations."""
        boxes = [part.box for part in parts if part.kind == "image"]
        images = tuple(channels_last(np.empty((1, *box.shape), np.uint8)).shape[1:] for box in boxes)
        one_hot = sum(sum(part.choices) for part in parts)
        binary = sum(part.box.size for part in parts if part.kind == "binary")
        return cls(normalized_size(parts) + binary + one_hot, images)


def normalized_size(parts: tuple[ObservationPart, ...]) -> int:
    """How many numbers of these parts are normalised. They come first in the vector."""
    return sum(part.box.size for part in parts if part.kind == "numbers")


def normalization(statistics: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(mean, one over the standard deviation), float32, as a snapshot carries them.

    `statistics` are running: `count` [], `mean` and `squares` (the sum of squared deviations), float64. The variance is
    1 before the first sample.
    """
    count, squares = int(statistics["count"]), statistics["squares"]
    variance = squares / count if count else np.ones_like(squares)
    return statistics["mean"].astype(np.float32), (1 / np.sqrt(variance + 1e-8)).astype(np.float32)


def numbers_of(observations: np.ndarray, spaces: Spaces) -> np.ndarray:
    """The policy's numbers to be normalised, raw [B, normalized_size], of stored observations [B, *observation]."""
    return _numbers(spaces.unpack(observations), spaces.parts)


def critic_numbers_of(observations: np.ndarray, spaces: Spaces) -> np.ndarray:
    """As `numbers_of`, what only the critic sees."""
    return _numbers(spaces.unpack_critic(observations), spaces.critic_parts)


def _numbers(arrays: list[np.ndarray], parts: tuple[ObservationPart, ...]) -> np.ndarray:
    rows = len(arrays[0])
    numbers = [array.reshape(rows, -1) for part, array in zip(parts, arrays, strict=True) if part.kind == "numbers"]
    return numbers[0] if len(numbers) == 1 else np.concatenate([np.empty((rows, 0), np.float32), *numbers], axis=1)


Normalization = tuple[np.ndarray, np.ndarray]  # Mean, one over the standard deviation: float32 [normalized_size].


def network_inputs(observations: np.ndarray, spaces: Spaces, normalization: Normalization | None) -> list[np.ndarray]:
    """The policy's inputs, as `InputShapes` describes them, for stored observations [B, *observation]."""
    return _inputs(spaces.unpack(observations), spaces.parts, normalization)


def critic_inputs(observations: np.ndarray, spaces: Spaces, normalization: Normalization | None) -> list[np.ndarray]:
    """As `network_inputs`, what only the critic sees; nothing where that is nothing."""
    if not spaces.critic_parts:
        return []
    return _inputs(spaces.unpack_critic(observations), spaces.critic_parts, normalization)


def _inputs(
    arrays: list[np.ndarray], parts: tuple[ObservationPart, ...], normalization: Normalization | None
) -> list[np.ndarray]:
    rows = len(arrays[0])
    numbers = _numbers(arrays, parts)
    vector = normalize(numbers, *normalization) if normalization else numbers.astype(np.float32)
    if len(parts) == 1 and parts[0].kind == "numbers":  # A shortcut that saves actors time.
        return [vector]
    vectors, images = [vector], []
    for part, array in zip(parts, arrays, strict=True):
        if part.kind == "binary":
            vectors.append(array.reshape(rows, -1).astype(np.float32))
        elif part.kind == "choices":
            vectors.append(one_hot(array.reshape(rows, -1), part.choices))
        elif part.kind == "image":
            images.append(channels_last(array))
    return [np.concatenate(vectors, axis=1), *images]


def normalize(numbers: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Numbers [B, n] as float32, centred, scaled and clipped to ±10."""
    normalized = numbers.astype(np.float32)
    normalized -= mean
    normalized *= scale
    np.maximum(normalized, -OBSERVATION_CLIP, out=normalized)  # np.clip is slower for the few numbers of a lane.
    return np.minimum(normalized, OBSERVATION_CLIP, out=normalized)


def one_hot(chosen: np.ndarray, choices: tuple[int, ...]) -> np.ndarray:
    """float32 [B, sum of choices] with a 1 for each number in `chosen` [B, len(choices)], which counts from 0."""
    encoded = np.zeros((len(chosen), sum(choices)), np.float32)
    first = np.cumsum((0, *choices[:-1]))
    np.put_along_axis(encoded, chosen + first, 1, axis=1)
    return encoded


def channels_last(images: np.ndarray) -> np.ndarray:
    """Images as contiguous [B, height, width, channels], from [B, …] of one of these shapes.

    [height, width]; [height, width, channels] or [channels, height, width], where channels is the smaller number; and
    either of these two stacked as [frames, …], where the frames become channels.
    """
    if images.ndim == 3:
        return np.ascontiguousarray(images[..., None])
    if images.ndim == 4:
        return _last(images) if images.shape[1] < images.shape[3] else np.ascontiguousarray(images)
    if images.shape[2] < images.shape[4]:  # [B, frames, channels, height, width]
        return _last(images.reshape(len(images), -1, *images.shape[3:]))
    # [B, frames, height, width, channels]
    return np.ascontiguousarray(np.moveaxis(images, 1, 3).reshape(len(images), *images.shape[2:4], -1))


def _last(images: np.ndarray) -> np.ndarray:
    """[B, channels, height, width] as contiguous [B, height, width, channels]; four times as fast as by moveaxis."""
    return np.stack([images[:, channel] for channel in range(images.shape[1])], axis=-1)
