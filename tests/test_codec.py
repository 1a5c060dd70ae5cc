"""The codec decodes what it encoded without a change, and refuses everything else with a reason."""

import math
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.codec import DTYPES, LARGE_ARRAY, MAX_DEPTH, MAX_DIMENSIONS, MAX_HEADER, MAX_ITEMS, decode, encode
from protocol.errors import ProtocolError

thorough = settings(deadline=None, max_examples=120)

LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": np.asarray,
    "Fortran": np.asfortranarray,
    "transposed": np.transpose,
    "reversed": lambda array: array[..., ::-1] if array.ndim else array,
    "strided": lambda array: array[::2] if array.ndim else array,
    "broadcast": lambda array: np.broadcast_to(array, (3, *array.shape)),
    "large": lambda array: np.resize(array, (2, LARGE_ARRAY // array.itemsize)) if array.size else array,
    "large, not contiguous": lambda array: np.resize(array, (LARGE_ARRAY, 3))[:, ::2] if array.size else array,
}
arrays = st.builds(
    lambda layout, array: LAYOUTS[layout](array),
    st.sampled_from(sorted(LAYOUTS)),
    hnp.arrays(
        st.sampled_from(list(DTYPES.values())),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(max_size=40)
)
values = st.recursive(
    scalars | arrays,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
maps = st.dictionaries(st.text(max_size=9), values, max_size=4)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    return a == b


def array_map(**changes: Any) -> dict[bytes, Any]:
    """An array of six zero bytes as a header contains it, with `changes`."""
    entries: dict[str, Any] = {"nd": True, "type": "|u1", "kind": b"", "shape": [2, 3], "data": bytes(6)}
    return {key.encode(): value for key, value in (entries | changes).items() if value is not ...}


def frames_of(value: Any, *frames: bytes) -> list[bytes]:
    packed = msgpack.packb({"field": value})
    assert packed is not None
    return [packed, *frames]


def reason(frames: list[Any]) -> str:
    with pytest.raises(ProtocolError) as refusal:
        decode(frames)
    return str(refusal.value)


def decodes_or_refuses(frames: list[Any]) -> None:
    try:
        decoded = decode(frames)
    except ProtocolError as error:
        assert 0 < len(str(error)) < 500
    else:
        assert all(type(key) is str for key in decoded)


@settings(deadline=None, max_examples=70)
@given(maps)
def test_what_is_encoded_decodes_equal(fields: dict[str, Any]) -> None:
    frames = encode(fields)
    assert same(fields, decode(frames))
    assert same(fields, decode([bytes(frame) for frame in frames]))
    assert same(fields, decode([memoryview(bytearray(frame)) for frame in frames]))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_dtype_travels_in_every_layout(dtype: np.dtype, layout: str) -> None:
    array = LAYOUTS[layout](np.arange(24).reshape(2, 3, 4).astype(dtype))
    assert same({"a": array}, decode(encode({"a": array})))


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, -0.0, 5e-324, 2**64 - 1, -(2**63), True])
def test_numbers_at_the_edges_keep_their_value_and_type(number: float) -> None:
    decoded = decode(encode({"x": number}))["x"]
    assert (type(decoded), str(decoded)) == (type(number), str(number))


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, LARGE_ARRAY)], ids=str)
def test_decoded_arrays_are_read_only(shape: tuple[int, ...]) -> None:
    frames = encode({"x": [np.zeros(shape)]})
    for received in (frames, [memoryview(bytearray(frame)) for frame in frames]):
        (array,) = decode(received)["x"]
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1


def test_only_large_arrays_take_frames_of_their_own_and_those_are_not_copied() -> None:
    small, large = np.zeros(LARGE_ARRAY - 1, np.uint8), np.zeros(LARGE_ARRAY, np.uint8)
    frames = encode({"small": small, "large": large})
    assert [len(frame) for frame in frames[1:]] == [LARGE_ARRAY]
    assert np.shares_memory(np.frombuffer(frames[1], np.uint8), large)
    assert np.shares_memory(decode(frames)["large"], large)


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array(["text"]),
        np.array([1j]),
        np.zeros(2, "M8[s]"),
        np.zeros(2, ">f4"),
        np.zeros(2, [("x", "f4")]),
        np.float32(1),
        object(),
        1j,
        {1, 2},
    ],
    ids=lambda value: str(getattr(value, "dtype", type(value).__name__)),
)
def test_what_cannot_be_decoded_is_not_encoded(value: object) -> None:
    with pytest.raises(TypeError, match=r"cannot be encoded|can not serialize"):
        encode({"x": value})


@thorough
@given(st.binary(max_size=100), st.lists(st.binary(max_size=20), max_size=3))
def test_random_bytes_are_refused_or_decode_to_a_map(header: bytes, frames: list[bytes]) -> None:
    decodes_or_refuses([header, *frames])


TOKENS = [msgpack.packb(x) for x in ({}, [], "x", b"nd", b"type", b"kind", b"shape", b"data", True, 1, b"", "<f4", 0.5)]
PREFIXES = [b"\x81", b"\x82", b"\x85", b"\x91", b"\x92", b"\xdc\xff\xff", b"\xdd\x00\x00\xff\xff", b"\xc7\x01", b"\xd6"]


@thorough
@given(st.lists(st.sampled_from([*TOKENS, *PREFIXES]), max_size=30))
def test_random_msgpack_is_refused_or_decodes_to_a_map(tokens: list[bytes]) -> None:
    decodes_or_refuses([b"\x81\xa1x" + b"".join(tokens)])


SAMPLE: dict[str, Any] = {
    "number": 7,
    "text": ["a", None, True, 0.5, b"bytes"],
    "small": np.arange(6, dtype=np.int16).reshape(2, 3),
    "large": {"one": np.ones((LARGE_ARRAY, 2), np.float32), "two": np.zeros((2, 0, LARGE_ARRAY), bool)},
    "larger": np.zeros(3 * LARGE_ARRAY, np.uint8),
}


@thorough
@given(st.data())
def test_a_damaged_message_is_refused_or_decodes_to_a_map(data: st.DataObject) -> None:
    header, *frames = (bytes(frame) for frame in encode(SAMPLE))
    damaged = bytearray(header)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(damaged) - 1, 0)))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    decodes_or_refuses([bytes(damaged), *data.draw(st.lists(st.sampled_from(frames), max_size=3))])


def test_a_truncated_header_is_refused() -> None:
    header, *frames = encode(SAMPLE)
    for end in range(len(header)):
        reason([header[:end], *frames])


def test_missing_and_exchanged_frames_are_refused() -> None:
    header, one, larger = encode(SAMPLE)
    for frames in ([one], [larger, one], [one, one], [one, larger, larger], [one[1:], larger], []):
        reason([header, *frames])


junk = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
lengths = st.lists(st.sampled_from([-1, 0, 1, 2, 3, 2**31, 2**47, 2**63]) | junk, max_size=10)


@thorough
@given(
    nd=st.just(True) | junk,
    type=st.sampled_from([*DTYPES, "|O", "O", ">f4", "f4", "|V8", "<U4", "<M8[s]"]) | junk,
    kind=st.just(b"") | st.sampled_from([b"O", b"V"]) | junk,
    shape=lengths | junk,
    data=st.binary(max_size=30) | st.integers(-2, 3) | junk,
)
@example(nd=True, type="<f8", kind=b"", shape=[0, 2**47, 2**47], data=b"")
@example(nd=True, type="<f8", kind=b"", shape=[2**40, 2**40, 2**40, 0], data=b"")
def test_a_made_up_array_is_refused_or_has_the_shape_it_names(**entries: Any) -> None:
    try:
        decoded = decode(frames_of(array_map(**entries), b"12345678"))["field"]
    except ProtocolError as error:
        assert 0 < len(str(error)) < 500
    else:
        assert list(decoded.shape) == entries["shape"] and decoded.dtype.str == entries["type"]


def test_the_unchanged_array_map_decodes() -> None:
    assert same(decode(frames_of(array_map())), {"field": np.zeros((2, 3), np.uint8)})
    assert same(decode(frames_of(array_map(data=1), bytes(6))), {"field": np.zeros((2, 3), np.uint8)})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"type": "|O"}, "dtype"),
        ({"type": ">f4"}, "dtype"),
        ({"type": b"|u1"}, "dtype"),
        ({"type": ["|u1"]}, "dtype"),
        ({"type": None}, "dtype"),
        ({"kind": b"O"}, "keys"),
        ({"kind": b"V"}, "keys"),
        ({"kind": ...}, "keys"),
        ({"data": ...}, "keys"),
        ({"nd": False}, "keys"),
        ({"nd": 1}, "keys"),
        ({"more": 1}, "keys"),
        ({"shape": [-2, -3]}, "lengths"),
        ({"shape": [6, -1]}, "lengths"),
        ({"shape": [True, 6]}, "lengths"),
        ({"shape": [2.0, 3.0]}, "lengths"),
        ({"shape": [6] + [1] * MAX_DIMENSIONS}, "at most 8"),
        ({"shape": 6}, "not a list"),
        ({"shape": [2**32, 2**32]}, "6 bytes"),
        ({"shape": [2**63, 2]}, "lengths"),
        ({"shape": [2**47, 2**47, 2**47], "data": b""}, "0 bytes"),
        ({"shape": [7]}, "6 bytes"),
        ({"shape": []}, "6 bytes"),
        ({"type": "<f4"}, "6 bytes"),
        ({"data": "text"}, "neither bytes"),
        ({"data": None}, "neither bytes"),
        ({"data": True}, "neither bytes"),
        ({"data": 0}, "frame 0"),
        ({"data": 1}, "frame 1"),
        ({"data": -1}, "frame -1"),
    ],
    ids=str,
)
def test_a_malformed_array_is_refused_with_its_fault(changes: dict[str, Any], says: str) -> None:
    assert says in reason(frames_of(array_map(**changes)))


@pytest.mark.parametrize("shape", [[0, 2**47, 2**47], [2**40, 2**40, 2**40, 0]], ids=str)
def test_an_empty_array_with_lengths_beyond_numpy_is_refused(shape: list[int]) -> None:
    reason(frames_of(array_map(shape=shape, data=b"")))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("as_frame", [False, True])
def test_a_pickled_array_is_refused_and_never_unpickled(tmp_path: Path, as_frame: bool) -> None:
    mark = tmp_path / "unpickled"
    bomb = pickle.dumps(Bomb(mark))
    armed = array_map(type="|O", kind=b"O", shape=[1], data=bomb)
    msgpack_numpy.decode(armed)
    assert mark.exists(), "the bomb works on msgpack-numpy's own decoder"
    mark.unlink()
    reason(frames_of(armed | {b"data": 1}, bomb) if as_frame else frames_of(armed))
    reason(frames_of(armed | {b"kind": b""}))
    assert not mark.exists()


def test_a_frame_that_no_array_names_is_refused() -> None:
    assert "1 frames belong to no array" in reason(frames_of(1, b"spare"))
    assert "1 frames belong to no array" in reason(frames_of(array_map(data=1), bytes(6), bytes(6)))


def test_a_frame_named_twice_is_refused() -> None:
    assert "already taken" in reason(frames_of([array_map(data=1), array_map(data=1)], bytes(6)))
    assert "already taken" in reason(frames_of([array_map(data=1), array_map(data=1)], bytes(6), bytes(6)))


def test_a_frame_of_another_length_is_refused() -> None:
    assert "comes with 5 bytes" in reason(frames_of(array_map(data=1), bytes(5)))


@pytest.mark.parametrize(
    "value", [msgpack.ExtType(5, b""), msgpack.ExtType(5, bytes(9)), msgpack.Timestamp(1), msgpack.Timestamp(2**40, 5)]
)
def test_extension_types_are_refused(value: object) -> None:
    reason(frames_of(value))
    reason(frames_of(array_map(data=value)))


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 1000, 1020, 100_000])
@pytest.mark.parametrize(("opening", "innermost"), [(b"\x91", b"\xc0"), (b"\x81\xa1x", b"\xc0")], ids=["lists", "maps"])
def test_deep_nesting_is_refused(depth: int, opening: bytes, innermost: bytes) -> None:
    reason([b"\x81\xa1x" + opening * depth + innermost])


@pytest.mark.parametrize("key", ["nd", "type", "kind", "shape", "data"])
def test_deep_nesting_within_an_array_is_refused(key: str) -> None:
    header = frames_of(array_map(**{key: "HERE"}))[0].replace(b"\xa4HERE", b"\x91" * 1015 + b"\xc0")
    reason([header])


def test_nesting_within_the_limit_decodes() -> None:
    value: Any = "innermost"
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert decode(encode({"x": value})) == {"x": value}


@pytest.mark.parametrize("key", [1, 1.5, None, True, b"bytes"], ids=repr)
def test_a_key_that_is_not_text_is_refused(key: object) -> None:
    packed = msgpack.packb({key: 1})
    assert packed is not None
    reason([packed])
    reason([b"\x81\xa1x" + packed])
    reason([b"\x81\xa1x\x91" + packed])


def test_a_key_that_is_a_list_is_refused() -> None:
    reason([b"\x81\x91\x01\x01"])


def test_text_that_is_not_utf_8_is_refused() -> None:
    reason([b"\x81\xa1x\xa2\xff\xff"])


@pytest.mark.parametrize("header", [[], [1], 1, "text", b"bytes", None, True], ids=repr)
def test_a_header_that_is_not_a_map_is_refused(header: object) -> None:
    packed = msgpack.packb(header)
    assert packed is not None
    assert reason([packed]) == "the header is not a map"


def test_a_header_that_is_an_array_is_refused() -> None:
    packed = msgpack.packb(array_map())
    assert packed is not None
    reason([packed])


def test_a_message_without_frames_is_refused() -> None:
    assert reason([]) == "the message has no frames"


def test_bytes_after_the_header_are_refused() -> None:
    reason([frames_of(1)[0] + b"\xc0"])


def test_a_header_beyond_its_limit_is_refused_before_it_is_parsed() -> None:
    assert f"{MAX_HEADER} are allowed" in reason([bytes(MAX_HEADER + 1)])


@pytest.mark.parametrize("opening", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
def test_a_length_beyond_the_header_is_refused(opening: bytes) -> None:
    reason([b"\x81\xa1x" + opening])


@pytest.mark.parametrize("opening", [b"\xdc\xff\xff", b"\xdc\x7f\xff", b"\xdd\x00\x00\xff\xff"])
def test_lengths_that_are_claimed_take_no_memory(opening: bytes) -> None:
    """3,000 bytes could claim half a gigabyte of lists within lists."""
    bomb = b"\x81\xa1x" + opening * 1000
    assert memory_taken([bomb]) < 100_000


@pytest.mark.parametrize("item", [b"\x80", b"\x90", b"\x81\xa0\xc0", b"\x91\xc0", b"\xa2ab", b"\xcd\x12\x34"])
@pytest.mark.parametrize("depth", [0, 1, 900])
def test_no_header_takes_much_more_memory_than_its_bytes(item: bytes, depth: int) -> None:
    room = (MAX_HEADER - 10 - 3 * depth) // len(item)
    if depth == 0:  # Lists one after the other, each as long as allowed.
        lists, each = divmod(room - room // MAX_ITEMS * 5, MAX_ITEMS - 1)[0], MAX_ITEMS - 1
        inner = b"\xdc" + lists.to_bytes(2, "big") + (b"\xdc" + each.to_bytes(2, "big") + item * each) * lists
    else:  # The last item of each list is the next list, so no list is complete before all are.
        each = min(room // depth, MAX_ITEMS - 2)
        inner = (b"\xdc" + (each + 1).to_bytes(2, "big") + item * each) * depth + b"\xc0"
    header = b"\x81\xa1x" + inner
    assert len(header) <= MAX_HEADER
    assert memory_taken([header]) < 48 * 2**20


def memory_taken(frames: list[bytes]) -> int:
    """The peak number of bytes allocated while `frames` are refused."""
    tracemalloc.start()
    try:
        reason(frames)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_items_are_counted_over_the_whole_header() -> None:
    half = [None] * (MAX_ITEMS // 2 - 3)
    assert decode(encode({"x": half, "y": half})) == {"x": half, "y": half}
    packed = msgpack.packb({"x": half, "y": half, "z": [None] * 10})
    assert packed is not None
    assert f"more than {MAX_ITEMS} items" in reason([packed])


def test_any_number_of_small_arrays_travels() -> None:
    fields = {str(i): np.full(LARGE_ARRAY - 1, i % 256, np.uint8) for i in range(600)}
    assert sum(array.nbytes for array in fields.values()) > 2 * MAX_HEADER
    assert same(fields, decode(encode(fields)))


@pytest.mark.parametrize("size", [6, LARGE_ARRAY])
def test_a_bool_that_is_neither_0_nor_1_is_refused(size: int) -> None:
    data = bytes([0, 1] * (size // 2 - 1) + [0, 2])
    for frames in (
        frames_of(array_map(type="|b1", shape=[size], data=data)),
        frames_of(array_map(type="|b1", shape=[size], data=1), data),
    ):
        assert "neither 0 nor 1" in reason(frames)
