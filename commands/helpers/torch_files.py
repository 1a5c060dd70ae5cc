"""The tensors of a file that `torch.save` wrote, without PyTorch and without unpickling.

Such a file is a zip archive: `data.pkl`, a pickle that lists the tensors by name, and their bytes in `data/0`, ….
What the pickle says is not done but read: a few opcodes, and of names to call the three below, build a plain
description of the tensors; anything else is refused, and nothing is ever imported or called.
"""

import io
import math
import pickletools
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np

MAX_NUMBERS = 2**24  # All tensors together have at most so many. That is far more than an MLP has.
MAX_FILE = 2**27  # A file that `torch.save` wrote may have so many bytes.
MAX_TEXT_FILE = 2**20  # A text, or a pickle that lists tensors, may have so many bytes.
MAX_DIMENSIONS = 8
TENSOR, ORDERED_DICT, STORAGE = "torch._utils _rebuild_tensor_v2", "collections OrderedDict", "torch FloatStorage"
NAMES = (TENSOR, ORDERED_DICT, STORAGE)


class Name(NamedTuple):
    """What a pickle would import."""

    name: str


class Storage(NamedTuple):
    """The bytes that tensors lie in."""

    key: str
    size: int  # float32 numbers


class Tensor(NamedTuple):
    """A tensor that is still to be read."""

    storage: Storage
    offset: int  # numbers
    shape: tuple[int, ...]


def read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A file of at most `limit` bytes within an archive; raises `ValueError` if it is not there, damaged or larger."""
    try:
        size, kind = archive.getinfo(name).file_size, archive.getinfo(name).compress_type
        if size > limit:
            raise ValueError(f"{name} is larger than {limit:,} bytes")
        if kind not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack more at once than one asks for
            raise ValueError(f"{name} is compressed as neither PyTorch nor Stable-Baselines3 does")
        with archive.open(name) as file:
            data = file.read(size)  # no more than that, whatever comes out
        if len(data) != size:
            raise ValueError(f"{name} ends too early")
        return data
    except KeyError:
        raise ValueError(f"it has no {name}") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{name} cannot be read: {error}") from None


def read_tensors(data: bytes) -> dict[str, np.ndarray]:
    """float32 arrays by name, of a state dict that `torch.save` wrote. Raises `ValueError` on anything else."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise ValueError(f"it is no zip archive, as torch.save has written since 1.6: {error}") from None
    with archive:
        folder = next((name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("data.pkl")), None)
        if folder is None:
            raise ValueError("it has no data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and read_member(archive, order, MAX_TEXT_FILE) != b"little":
            raise ValueError("its numbers are not little-endian")
        found = read_pickle(read_member(archive, f"{folder}data.pkl", MAX_TEXT_FILE))
        if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
            raise ValueError("it holds something else than tensors by name")
        storages = {tensor.storage for tensor in found.values()}
        for sizes in ([storage.size for storage in storages], [math.prod(tensor.shape) for tensor in found.values()]):
            if sum(sizes) > MAX_NUMBERS:
                raise ValueError(f"its tensors have more than {MAX_NUMBERS:,} numbers, which no MlpPolicy has")
        numbers = {storage: _numbers(archive, folder, storage) for storage in storages}
        return {name: _array(numbers[tensor.storage], tensor) for name, tensor in found.items()}


def _numbers(archive: zipfile.ZipFile, folder: str, storage: Storage) -> np.ndarray:
    data = read_member(archive, f"{folder}data/{storage.key}", 4 * storage.size)
    if len(data) != 4 * storage.size:
        raise ValueError(f"data/{storage.key} is shorter than its pickle says")
    return np.frombuffer(data, "<f4")


def _array(numbers: np.ndarray, tensor: Tensor) -> np.ndarray:
    end = tensor.offset + math.prod(tensor.shape)
    if end > len(numbers):
        raise ValueError(f"a tensor of shape {list(tensor.shape)} lies outside its bytes")
    return numbers[tensor.offset : end].reshape(tensor.shape).astype(np.float32)


def read_pickle(data: bytes) -> Any:
    """What a pickle of tensors describes: containers, plain values, and `Tensor`s. Raises `ValueError` on any other."""
    try:
        return _Reader().read(data)
    except (IndexError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise ValueError(f"its pickle is malformed: {type(error).__name__}") from None


class _Reader:
    """A stack machine with the opcodes that a state dict needs."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        stack = self._stack
        argument: Any
        for opcode, argument, _ in pickletools.genops(data):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINUNICODE":
                    stack.append(argument)
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_TUPLE":
                    stack.append(())
                case "MARK":
                    self._marks.append(len(stack))
                case "TUPLE":
                    stack.append(tuple(self._since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                case "BINPUT" | "LONG_BINPUT":
                    self._memo[argument] = stack[-1]
                case "MEMOIZE":
                    self._memo[len(self._memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(self._memo[argument])
                case "GLOBAL":
                    if argument not in NAMES:
                        raise ValueError(
                            f"its pickle would call {argument.replace(' ', '.'):.80}, which is not allowed"
                        )
                    stack.append(Name(argument))
                case "BINPERSID":
                    stack.append(_storage(stack.pop()))
                case "REDUCE":
                    arguments = stack.pop()
                    stack.append(_call(stack.pop(), arguments))
                case "SETITEM" | "SETITEMS":
                    items = self._since_mark() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                    for name in items[::2]:
                        _as(str, name)  # Hashing nested tuples may never end.
                    _as(dict, stack[-1]).update(zip(items[::2], items[1::2], strict=True))
                case "BUILD":  # the attributes of an OrderedDict: PyTorch keeps the versions of modules there
                    stack.pop()
                    _as(dict, stack[-1])
                case "STOP":
                    return stack.pop()
                case name:
                    raise ValueError(f"its pickle has the opcode {name}, which is not allowed")
        raise ValueError("its pickle has no end")

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items


def _as(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"its pickle has a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def _storage(identity: Any) -> Storage:
    match identity:
        case ("storage", Name(name=name), str(key), str(), int(size)) if name == STORAGE and size >= 0:
            return Storage(key, size)
    raise ValueError("its pickle has a storage that is not one of float32 numbers")


def _call(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case Name(name=name), () if name == ORDERED_DICT:
            return {}
        case Name(name=name), (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_) if name == TENSOR:
            numbers = (offset, *shape, *strides)
            if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and 0 <= n <= MAX_NUMBERS for n in numbers):
                raise ValueError("its pickle has a tensor of an impossible shape")
            contiguous = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
            if any(n > 1 and a != b for n, a, b in zip(shape, strides, contiguous, strict=True)):
                raise ValueError("a tensor is not contiguous")
            return Tensor(storage, offset, shape)
    raise ValueError("its pickle makes something else than tensors")
