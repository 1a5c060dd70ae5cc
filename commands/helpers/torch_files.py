"""The tensors of a file that `torch.save` wrote, without PyTorch and without unpickling.

Such a file is a zip archive: `data.pkl`, a pickle that lists the tensors by name, and their bytes in `data/0`, ….
What the pickle says is not done but read (commands/helpers/pickles.py): a few opcodes, and of names to call the three
below, build a plain description of the tensors. Anything else is refused.
"""

import io
import math
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np

from commands.helpers.pickles import Name, PickleReader, as_kind

MAX_NUMBERS = 2**24  # All tensors together have at most so many. That is far more than an MLP has.
MAX_FILE = 2**27  # A file that `torch.save` wrote may have so many bytes.
MAX_TEXT_FILE = 2**20  # A text, or a pickle that lists tensors, may have so many bytes.
MAX_DIMENSIONS = 8
TENSOR, ORDERED_DICT, STORAGE = "torch._utils _rebuild_tensor_v2", "collections OrderedDict", "torch FloatStorage"
NAMES = (TENSOR, ORDERED_DICT, STORAGE)


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
    return _Reader().read(data)


class _Reader(PickleReader):
    """Reads what a state dict needs."""

    ALLOWED = PickleReader.ALLOWED | {"GLOBAL", "BINPERSID"}

    def named(self, name: str) -> Any:
        if name not in NAMES:
            raise ValueError(f"its pickle would call {name.replace(' ', '.'):.80}, which is not allowed")
        return Name(name)

    def called(self, function: Any, arguments: Any) -> Any:
        return _call(function, arguments)

    def built(self, thing: Any, state: Any) -> None:
        as_kind(dict, thing)  # An OrderedDict: PyTorch keeps the versions of modules in its attributes.

    def persistent(self, identity: Any) -> Any:
        return _storage(identity)


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
