"""Converts plain data and arrays to frames and back: one msgpack header, and a raw frame for each large array.

msgpack-numpy encodes the arrays but never decodes them: its decoder can be made to unpickle. The decoder here accepts
only the listed types and dtypes, and refuses everything else with a reason.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np

from protocol.arrays import DTYPES, MAX_DIMENSIONS
from protocol.errors import ProtocolError
from protocol.text import error_line

Frame = bytes | memoryview

LARGE_ARRAY = 4096  # Bytes. An array of this size or more gets a frame of its own, which is not copied.
MAX_HEADER = 2**20  # The largest header, in bytes.
MAX_DEPTH = 16
MAX_ITEMS = 65_536  # Most items in a header's lists and maps: in memory, an item may take 100 times its bytes.
_BOOL = DTYPES["|b1"]
_LIMITS: Any = {
    "max_str_len": 65_536,
    "max_bin_len": MAX_HEADER,
    "max_array_len": MAX_ITEMS,
    "max_map_len": MAX_ITEMS,
    "max_ext_len": 0,
}

_ARRAY_KEYS = {b"nd", b"type", b"kind", b"shape", b"data"}


def encode(fields: dict[str, Any]) -> list[Frame]:
    """Encode `fields`, msgpack types and arrays of the dtypes in `DTYPES`, as a header and a frame per large array."""
    frames: list[Frame] = [b""]
    small = 0  # Bytes of the arrays that are in the header.

    def encode_array(value: object) -> dict[bytes, Any]:
        nonlocal small
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{type(value).__name__} cannot be encoded")
        if value.dtype.str not in DTYPES:
            raise TypeError(f"arrays of dtype {value.dtype} cannot be encoded")
        value = np.ascontiguousarray(value).reshape(value.shape)
        encoded = msgpack_numpy.encode(value)
        if value.nbytes >= LARGE_ARRAY or small + value.nbytes > MAX_HEADER // 2:
            encoded[b"data"] = len(frames)
            frames.append(value.reshape(-1).view(np.uint8).data)
        else:
            encoded[b"data"] = value.tobytes()
            small += value.nbytes
        return encoded

    header = msgpack.packb(fields, default=encode_array, use_bin_type=True)
    assert header is not None
    frames[0] = header
    return frames


def decode(frames: Sequence[Frame]) -> dict[str, Any]:
    """Return the fields that `encode` was given. Arrays are read-only and may share memory with `frames`.

    Raises `ProtocolError`, and no other exception, on frames that `encode` could not have written.
    """
    if not frames:
        raise ProtocolError("the message has no frames")
    header = frames[0]
    if len(header) > MAX_HEADER:
        raise ProtocolError(f"the header has {len(header)} bytes; {MAX_HEADER} are allowed")
    try:
        _check_lengths(header)
        count = _counter()
        fields = msgpack.unpackb(
            header,
            raw=False,
            strict_map_key=True,
            object_hook=count,
            list_hook=count,
            ext_hook=_refuse_extension,
            **_LIMITS,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"the header is not the msgpack expected: {error_line(error)}") from None
    if not isinstance(fields, dict):
        raise ProtocolError("the header is not a map")
    unused = set(range(1, len(frames)))
    decoded = _decode_map(fields, frames, unused, depth=0)
    if unused:
        raise ProtocolError(f"{len(unused)} frames belong to no array")
    return decoded


def _check_lengths(header: Frame) -> None:
    """Parse `header` without building its values. Raises `ValueError`, or another error of msgpack.

    When msgpack builds a list, it allocates the claimed length at once, before it knows that the items are there.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=len(header), **_LIMITS)
    unpacker.feed(header)
    unpacker.skip()


def _counter() -> Callable[[Any], Any]:
    """A hook that msgpack calls with every list and map. It counts their items."""
    left = MAX_ITEMS

    def count(items: Any) -> Any:
        nonlocal left
        left -= 1 + len(items)
        if left < 0:
            raise ValueError(f"more than {MAX_ITEMS} items")
        return items

    return count


def _refuse_extension(code: int, data: bytes) -> None:
    raise ValueError(f"extension type {code} is not allowed")


def _decode_map(fields: dict, frames: Sequence[Frame], unused: set[int], depth: int) -> dict[str, Any]:
    if not all(isinstance(key, str) for key in fields):
        raise ProtocolError("a map has a key that is not text")
    return {key: _decode_value(value, frames, unused, depth + 1) for key, value in fields.items()}


def _decode_value(value: Any, frames: Sequence[Frame], unused: set[int], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ProtocolError(f"the header is nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        if b"nd" in value:
            return _decode_array(value, frames, unused)
        return _decode_map(value, frames, unused, depth)
    if isinstance(value, list):
        return [_decode_value(item, frames, unused, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise ProtocolError(f"a value of type {type(value).__name__} is not allowed")


def _decode_array(value: dict, frames: Sequence[Frame], unused: set[int]) -> np.ndarray:
    if value.keys() != _ARRAY_KEYS or value[b"nd"] is not True or value[b"kind"] != b"":
        raise ProtocolError("an array has other keys than nd, type, kind, shape and data")
    if not isinstance(value[b"type"], str) or value[b"type"] not in DTYPES:
        named = value[b"type"] if isinstance(value[b"type"], str | bytes) else type(value[b"type"])
        raise ProtocolError(f"an array of dtype {named!r:.80} is not allowed")
    dtype = DTYPES[value[b"type"]]
    shape, data = value[b"shape"], value[b"data"]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise ProtocolError(f"an array's shape is not a list of at most {MAX_DIMENSIONS} lengths")
    if not all(type(length) is int and 0 <= length < 2**48 for length in shape):
        raise ProtocolError("an array's shape holds something else than lengths")
    if type(data) is int:
        if data not in unused:
            raise ProtocolError(f"an array names frame {data}, which is missing or already taken")
        unused.remove(data)
        data = frames[data]
    elif not isinstance(data, bytes):
        raise ProtocolError("an array's data is neither bytes nor the number of a frame")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ProtocolError(f"an array of {dtype} {shape} comes with {len(data)} bytes")
    try:
        array = np.frombuffer(data, dtype).reshape(shape)
    except ValueError:  # One length is 0, but NumPy cannot hold the product of the others.
        raise ProtocolError(f"an array of shape {shape} is too large") from None
    if dtype is _BOOL and bytes(data).translate(None, b"\x00\x01"):  # NumPy would count other bytes wrongly.
        raise ProtocolError("an array of bool holds a byte that is neither 0 nor 1")
    array.flags.writeable = False
    return array
