"""The observation statistics in a file that VecNormalize of Stable-Baselines3 has saved, which is a pickle. Nothing in
it is unpickled."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commands.helpers.pickles import Name, PickleReader
from protocol.errors import UserError
from protocol.observations import OBSERVATION_CLIP
from protocol.text import one_line

MAX_FILE = 2**26  # Such a file may have so many bytes.
MAX_NUMBERS = 2**20
CLASS = "stable_baselines3.common.vec_env.vec_normalize VecNormalize"
RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
FROM_BUFFER = ("numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer")
SCALAR = ("numpy.core.multiarray scalar", "numpy._core.multiarray scalar")


OPCODES = "GLOBAL STACK_GLOBAL NEWOBJ EMPTY_LIST APPEND APPENDS BINFLOAT BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"


@dataclass
class Made:
    """What a pickle would have made: by which call, and with which attributes."""

    name: str
    arguments: Any
    state: Any = None


@dataclass(frozen=True)
class Statistics:
    """Running statistics of observations."""

    mean: np.ndarray  # float64 [size]
    variance: np.ndarray  # float64 [size], with VecNormalize's epsilon
    count: int


class _Reader(PickleReader):
    ALLOWED = PickleReader.ALLOWED | frozenset(OPCODES.split())

    def named(self, name: str) -> Any:
        return Name(name)

    def called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Name):
            raise ValueError("its pickle calls what it has made")
        return Made(function.name, arguments)

    def built(self, thing: Any, state: Any) -> None:
        if not isinstance(thing, Made):
            raise ValueError("its pickle sets attributes of plain data")
        thing.state = state


def read_statistics(path: Path) -> Statistics:
    """The statistics in the file; raises `UserError` if it has none that can be used here."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise ValueError(f"it is larger than {MAX_FILE:,} bytes")
        found = _Reader().read(path.read_bytes())
        return _statistics(found)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no file that VecNormalize has saved: {one_line(error)}") from None


def _statistics(found: Any) -> Statistics:
    if not (isinstance(found, Made) and found.name == CLASS):
        raise ValueError("it holds something else")
    state = found.state
    if not state["norm_obs"]:
        raise ValueError("it does not normalise observations (norm_obs=False)")
    if state["clip_obs"] != OBSERVATION_CLIP:
        raise ValueError(
            f"it clips observations to {state['clip_obs']}, and here they are clipped to {OBSERVATION_CLIP}"
        )
    statistics = state["obs_rms"]
    if not isinstance(statistics, Made):
        raise ValueError("it has statistics for each part of a Dict, which is not supported")
    mean, variance = (_array(statistics.state[name]).reshape(-1) for name in ("mean", "var"))
    count, epsilon = _number(statistics.state["count"]), _number(state["epsilon"])
    if mean.shape != variance.shape or not (np.isfinite([*mean, *variance]).all() and (variance >= 0).all()):
        raise ValueError("its mean and its variance do not fit")
    return Statistics(mean, variance + epsilon, round(count))


def _number(value: Any) -> float:
    if isinstance(value, Made) and value.name in SCALAR:
        dtype, data = value.arguments
        value = np.frombuffer(_bytes(data), _dtype(dtype))[0]
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise ValueError("a number is something else")
    return float(value)


def _array(value: Any) -> np.ndarray:
    """An array of floats, in either of the forms that NumPy pickles one in."""
    match value:
        case Made(name=name, state=(_, tuple(shape), dtype, False, data)) if name in RECONSTRUCT:
            pass
        case Made(name=name, arguments=(bytes() | bytearray() as data, dtype, tuple(shape), "C")) if (
            name in FROM_BUFFER
        ):
            pass
        case _:
            raise ValueError("an array is something else")
    if not all(type(n) is int and 0 <= n <= MAX_NUMBERS for n in shape):
        raise ValueError("an array has an impossible shape")
    return np.frombuffer(_bytes(data), _dtype(dtype)).reshape(shape).astype(np.float64)


def _bytes(value: Any) -> bytes:
    """Bytes, which older protocols have as a text."""
    if isinstance(value, Made) and value.name == "_codecs encode" and value.arguments[1] == "latin1":
        return value.arguments[0].encode("latin1")
    if not isinstance(value, bytes | bytearray):
        raise ValueError("the numbers of an array are something else")
    return bytes(value)


def _dtype(value: Any) -> np.dtype:
    match value:
        case Made(name="numpy dtype", arguments=(("f4" | "f8") as code, *_), state=(_, "<" | "=", *_)):
            return np.dtype("<" + code)
    raise ValueError("an array is not of floats")
