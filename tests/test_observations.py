"""Stored observations become network inputs as literal loops compute them, and invalid spaces are refused."""

import itertools
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import binary, continuous, discrete, numbers

from protocol.errors import ProtocolError
from protocol.observations import InputShapes, channels_last, network_inputs, normalized_size, numbers_of, one_hot
from protocol.spaces import MAX_PARTS, MAX_SIZE, BoxSpace, ObservationPart, Spaces

B = 3  # Observations in a block.


def part(kind: Any, dtype: str, *shape: int, choices: tuple[int, ...] = ()) -> ObservationPart:
    return ObservationPart(kind, BoxSpace(shape, dtype), choices)


def spaces_of(*parts: ObservationPart) -> Spaces:
    """Spaces whose observation has these parts."""
    first, *more = parts
    total = sum(p.box.size * np.dtype(p.box.dtype).itemsize for p in parts)
    observation = BoxSpace((total,), "uint8") if more else first.box
    return Spaces(observation, parts, BoxSpace((), "int64"), "categorical", (2,))


WHERE = part("numbers", "float32", 2, 3)
AGE = part("numbers", "int64")
FLAGS = part("binary", "int8", 2)
TOOL = part("choices", "int64", choices=(4,))
HANDS = part("choices", "int64", 2, 1, choices=(3, 2))
CAMERA = part("image", "uint8", 3, 6, 5)
MAP = part("image", "uint8", 40, 37)
ALL = spaces_of(FLAGS, CAMERA, WHERE, TOOL, AGE, MAP, HANDS)


def random_part(one: ObservationPart, random: np.random.Generator) -> np.ndarray:
    """Random valid values of a part [B, *part]."""
    shape = (B, *one.box.shape)
    match one.kind:
        case "binary":
            values = random.integers(2, size=shape)
        case "choices":
            values = (random.random(shape) * np.reshape(one.choices, one.box.shape)).astype(np.int64)
        case "image":
            values = random.integers(256, size=shape)
        case _:
            values = 100 * random.standard_normal(shape)
    return values.astype(one.box.dtype)


def stored(spaces: Spaces, arrays: list[np.ndarray]) -> np.ndarray:
    """The parts as one block [B, *observation], byte by byte."""
    if len(arrays) == 1:
        return arrays[0]
    formats = {"float32": "f", "int64": "q", "int8": "b", "uint8": "B"}
    rows = []
    for i in range(B):
        row = b"".join(
            struct.pack(f"={array[i].size}{formats[array.dtype.name]}", *array[i].ravel().tolist()) for array in arrays
        )
        rows.append(list(row))
    return np.array(rows, np.uint8)


def literal_vector(spaces: Spaces, arrays: list[np.ndarray], mean: list[float], scale: list[float]) -> np.ndarray:
    """The vectors of a block, number by number: first all numbers, then bits and one-hot choices, in their order."""
    rows = []
    for i in range(B):
        values, others = [], []
        for one, array in zip(spaces.parts, arrays, strict=True):
            flat = array[i].ravel().tolist()
            if one.kind == "numbers":
                values += flat
            elif one.kind == "binary":
                others += flat
            elif one.kind == "choices":
                for chosen, n in zip(flat, one.choices, strict=True):
                    others += [1.0 if choice == chosen else 0.0 for choice in range(n)]
        moved = [(x - m) * s for x, m, s in zip(values, mean, scale, strict=True)]
        rows.append([min(max(x, -10.0), 10.0) for x in moved] + others)
    return np.array(rows)


@pytest.mark.parametrize("spaces", [ALL, *map(spaces_of, ALL.parts)], ids=lambda s: "+".join(p.kind for p in s.parts))
@pytest.mark.parametrize("normalized", [True, False])
def test_a_network_gets_normalised_numbers_then_bits_and_choices_then_images(spaces: Spaces, normalized: bool) -> None:
    random = np.random.default_rng(0)
    arrays = [random_part(one, random) for one in spaces.parts]
    size = normalized_size(spaces.parts)
    normalization = random.normal(0, 50, size).astype(np.float32), random.uniform(0.01, 1, size).astype(np.float32)
    vector, *images = network_inputs(stored(spaces, arrays), spaces, normalization if normalized else None)
    if normalized:
        expected = literal_vector(spaces, arrays, *(array.tolist() for array in normalization))
        assert size == 0 or (np.abs(vector[:, :size]) == 10).any()
    else:
        values = [a.reshape(B, -1) for one, a in zip(spaces.parts, arrays, strict=True) if one.kind == "numbers"]
        expected = literal_vector(spaces, arrays, [0.0] * size, [1.0] * size)
        expected[:, :size] = np.concatenate([np.empty((B, 0)), *values], axis=1)
    np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-5)
    assert vector.dtype == np.float32
    assert vector.flags.c_contiguous
    pixels = [a for one, a in zip(spaces.parts, arrays, strict=True) if one.kind == "image"]
    for image, array in zip(images, pixels, strict=True):
        np.testing.assert_array_equal(image, channels_last(array), strict=True)
    assert InputShapes.of(spaces.parts) == InputShapes(vector.shape[1], tuple(image.shape[1:] for image in images))


def test_the_shapes_of_every_part_together() -> None:
    assert InputShapes.of(ALL.parts) == InputShapes(6 + 1 + 2 + 4 + 5, ((6, 5, 3), (40, 37, 1)))
    assert normalized_size(ALL.parts) == 7


def test_an_observation_of_several_parts_unpacks_into_them() -> None:
    random = np.random.default_rng(0)
    arrays = [random_part(one, random) for one in ALL.parts]
    for found, array in zip(ALL.unpack(stored(ALL, arrays)), arrays, strict=True):
        np.testing.assert_array_equal(found, array, strict=True)


def test_an_observation_of_one_part_is_that_part() -> None:
    (array,) = arrays = [random_part(WHERE, np.random.default_rng(0))]
    assert spaces_of(WHERE).unpack(stored(spaces_of(WHERE), arrays))[0] is array


def test_the_numbers_to_normalise_are_raw_and_in_the_order_of_their_parts() -> None:
    random = np.random.default_rng(0)
    arrays = [random_part(one, random) for one in ALL.parts]
    found = numbers_of(stored(ALL, arrays), ALL)
    expected = np.concatenate([arrays[2].reshape(B, -1).astype(np.float64), arrays[4].reshape(B, 1)], axis=1)
    np.testing.assert_array_equal(found, expected)
    assert numbers_of(random_part(FLAGS, random), spaces_of(FLAGS)).shape == (B, 0)


def test_encoding_leaves_the_observations_alone() -> None:
    random = np.random.default_rng(0)
    for spaces in (ALL, *map(spaces_of, ALL.parts)):
        observations = stored(spaces, [random_part(one, random) for one in spaces.parts])
        before = observations.copy()
        size = normalized_size(spaces.parts)
        network_inputs(observations, spaces, (np.ones(size, np.float32), np.ones(size, np.float32)))
        np.testing.assert_array_equal(observations, before)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**32))
def test_one_hot_has_a_one_for_each_number_chosen(choices: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    chosen = np.stack([random.integers(n, size=B) for n in choices], axis=1)
    expected = [[float(c == i) for c, n in zip(row, choices, strict=True) for i in range(n)] for row in chosen.tolist()]
    found = one_hot(chosen, tuple(choices))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32


LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[np.ndarray, int, int, int], list[int]]]] = {
    "height, width": ((4, 5), lambda a, b, y, x: [a[b, y, x]]),
    "height, width, channels": ((4, 5, 3), lambda a, b, y, x: [a[b, y, x, c] for c in range(3)]),
    "channels, height, width": ((3, 4, 5), lambda a, b, y, x: [a[b, c, y, x] for c in range(3)]),
    "square": ((4, 4, 4), lambda a, b, y, x: [a[b, y, x, c] for c in range(4)]),
    "frames, height, width, channels": (
        (2, 4, 5, 3),
        lambda a, b, y, x: [a[b, f, y, x, c] for f in range(2) for c in range(3)],
    ),
    "frames, channels, height, width": (
        (2, 3, 4, 5),
        lambda a, b, y, x: [a[b, f, c, y, x] for f in range(2) for c in range(3)],
    ),
}


@pytest.mark.parametrize(("shape", "channels"), LAYOUTS.values(), ids=LAYOUTS)
def test_channels_come_last_frame_by_frame(
    shape: tuple[int, ...], channels: Callable[[np.ndarray, int, int, int], list[int]]
) -> None:
    images = np.random.default_rng(0).integers(256, size=(B, *shape), dtype=np.uint8)
    found = channels_last(images)
    height, width = (4, 4) if shape == (4, 4, 4) else (4, 5)
    assert found.shape[:3] == (B, height, width)
    for b, y, x in itertools.product(range(B), range(height), range(width)):
        assert found[b, y, x].tolist() == channels(images, b, y, x)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous


# Valid spaces

BOXES, CHOOSING = continuous(WHERE, 2), discrete(WHERE, 3, 2)


@pytest.mark.parametrize("spaces", [ALL, *map(spaces_of, ALL.parts), BOXES, CHOOSING, binary(WHERE, 2, 2)], ids=str)
def test_spaces_of_environments_are_accepted(spaces: Spaces) -> None:
    spaces.check()


def lie(spaces: Spaces, **changes: Any) -> Spaces:
    return replace(spaces, **changes)


def observed(one: ObservationPart) -> Spaces:
    return spaces_of(one)


DEEP = (1,) * 40
LIES = {
    "no parts": (lie(ALL, parts=()), "0 parts"),
    "too many parts": (spaces_of(*[AGE] * (MAX_PARTS + 1)), f"{MAX_PARTS + 1} parts"),
    "a dtype that does not travel": (observed(part("numbers", "complex64", 2)), "dtype complex64"),
    "a dtype that is none": (lie(BOXES, action=BoxSpace((2,), "nonsense")), "action space has dtype nonsense"),
    "a negative shape": (observed(numbers(-1)), "shape [-1]"),
    "an empty shape": (observed(numbers(2, 0)), "shape [2, 0]"),
    "too many dimensions": (observed(numbers(*DEEP)), "shape"),
    "too many numbers": (observed(numbers(2**13, 2**13)), "shape"),
    "one huge dimension": (observed(numbers(MAX_SIZE + 1)), "shape"),
    "no choices": (observed(replace(TOOL, choices=())), "choices do not fit its shape"),
    "choices of another number": (observed(replace(HANDS, choices=(3,))), "choices do not fit its shape"),
    "choices from nothing": (observed(replace(TOOL, choices=(0,))), "choices do not fit its shape"),
    "choices beyond all bounds": (observed(replace(TOOL, choices=(MAX_SIZE + 1,))), "choices do not fit its shape"),
    "choices of numbers": (observed(replace(AGE, choices=(3,))), "choices do not fit its shape"),
    "choices that are floats": (observed(replace(TOOL, box=BoxSpace((), "float32"))), "choices has dtype float32"),
    "an image of floats": (observed(part("image", "float32", 40, 40)), "an image is float32"),
    "an image in a row": (observed(part("image", "uint8", 40)), "an image is uint8 [40]"),
    "an image of five axes": (observed(part("image", "uint8", 2, 2, 2, 2, 2)), "an image is"),
    "another observation than its parts": (lie(ALL, observation=BoxSpace((7,), "uint8")), "does not fit its parts"),
    "another observation than its part": (
        lie(BOXES, observation=BoxSpace((3, 2), "float32")),
        "observation space does not fit its parts",
    ),
    "categorical floats": (lie(CHOOSING, action=BoxSpace((2,), "float32")), "does not fit its distribution"),
    "a Gaussian of integers": (lie(BOXES, action=BoxSpace((2,), "int64")), "does not fit its distribution"),
    "a Gaussian with choices": (lie(BOXES, choices=(2, 2)), "does not fit its distribution"),
    "bits with choices": (lie(binary(WHERE, 1), choices=(2,)), "does not fit its distribution"),
    "bits that are bytes": (lie(binary(WHERE, 2), action=BoxSpace((2,), "uint8")), "does not fit its distribution"),
    "too few choices": (lie(CHOOSING, choices=(3,)), "does not fit its distribution"),
    "an action from nothing": (lie(CHOOSING, choices=(3, 0)), "outputs"),
    "a negative action": (lie(CHOOSING, choices=(3, -1)), "outputs"),
    "too many outputs": (lie(CHOOSING, choices=(MAX_SIZE, MAX_SIZE)), "outputs"),
    "an action of no shape": (lie(BOXES, action=BoxSpace((0,), "float32")), "action space has shape [0]"),
}


@pytest.mark.parametrize(("spaces", "reason"), LIES.values(), ids=LIES)
def test_spaces_that_no_environment_has_are_refused(spaces: Spaces, reason: str) -> None:
    with pytest.raises(ProtocolError) as refusal:
        spaces.check()
    assert reason in str(refusal.value)


def test_the_outputs_of_the_policy_are_as_many_as_its_distribution_needs() -> None:
    assert discrete(WHERE, 3).distribution_size == 3
    assert CHOOSING.distribution_size == 5
    assert BOXES.distribution_size == 2
    assert binary(WHERE, 2, 2).distribution_size == 4


# Valid values


def test_possible_observations_are_accepted() -> None:
    random = np.random.default_rng(0)
    for spaces in (ALL, *map(spaces_of, ALL.parts)):
        observations = stored(spaces, [random_part(one, random) for one in spaces.parts])
        spaces.check_observations(observations)
        spaces.check_observations(observations[:0])


IMPOSSIBLE = {
    "nan": (WHERE, np.nan, "not finite"),
    "inf": (WHERE, np.inf, "not finite"),
    "minus inf": (WHERE, -np.inf, "not finite"),
    "two": (FLAGS, 2, "neither 0 nor 1"),
    "minus one": (FLAGS, -1, "neither 0 nor 1"),
    "one choice too far": (TOOL, 4, "n = 4"),
    "minus one choice": (TOOL, -1, "0…n−1"),
    "the other number's choice": (HANDS, 2, "n = 2, 3"),
}


@pytest.mark.parametrize(("one", "value", "reason"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_observation_is_refused_alone_and_among_others(
    one: ObservationPart, value: float, reason: str
) -> None:
    for spaces in (spaces_of(one), ALL):
        arrays = [random_part(other, np.random.default_rng(0)) for other in spaces.parts]
        arrays[spaces.parts.index(one)].reshape(-1)[-1] = value
        with pytest.raises(ProtocolError) as refusal:
            spaces.check_observations(stored(spaces, arrays))
        assert reason in str(refusal.value)


@pytest.mark.parametrize(
    ("spaces", "good", "bad"),
    [
        (discrete(WHERE, 3), [0, 1, 2], [[0, 1, 3], [-1, 0, 0]]),
        (CHOOSING, [[2, 0], [0, 1]], [[[2, 0], [0, 2]], [[0, 0], [3, 0]], [[0, -1], [0, 0]]]),
        (binary(WHERE, 2), [[0, 1], [1, 0]], [[[0, 1], [0, 2]], [[-1, 0], [0, 0]]]),
        (BOXES, [[1e30, -1e30]], []),
    ],
    ids=["one choice", "choices", "bits", "box"],
)
def test_impossible_actions_are_refused(spaces: Spaces, good: list, bad: list) -> None:
    dtype = spaces.action.dtype
    spaces.check_actions(np.array(good, dtype))
    spaces.check_actions(np.array(good, dtype)[:0])
    for actions in bad:
        with pytest.raises(ProtocolError, match="action"):
            spaces.check_actions(np.array(actions, dtype))
