"""Between what an environment shows and takes and what a policy does, by plain data: no gymnasium, so that an exported
policy passes observations and actions on exactly as training does."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from protocol.arrays import DTYPES
from protocol.errors import ProtocolError
from protocol.spaces import ObservationPart, Spaces

FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True)
class ObservationForm:
    """How an environment shows its observation; an entry for each of the parts that `Spaces` has, in its order."""

    paths: tuple[tuple[str | int, ...], ...]  # the keys of Dicts, and places in Tuples, that lead to it
    starts: tuple[tuple[int, ...], ...]  # The smallest value of each number of a `choices` part; empty for others.

    def check(self, spaces: Spaces) -> None:
        """Raise `ProtocolError` unless this is how observations of `spaces` can be shown."""
        parts = spaces.all_parts
        if not len(self.paths) == len(self.starts) == len(parts):
            raise ProtocolError("the observation's form does not fit its parts")
        if any(len(starts) != len(part.choices) for starts, part in zip(self.starts, parts, strict=True)):
            raise ProtocolError("the observation's starts do not fit its choices")

    def first(self, count: int) -> "ObservationForm":
        """That of the first parts alone."""
        return ObservationForm(self.paths[:count], self.starts[:count])


@dataclass(frozen=True)
class ActionForm:
    """How an environment takes its action."""

    dtype: str
    start: tuple[int, ...]  # the smallest value of each number of a categorical action
    low: tuple[float | None, ...]  # bounds of each number of a Gaussian one; None where there is none
    high: tuple[float | None, ...]

    def check(self, spaces: Spaces) -> None:
        """Raise `ProtocolError` unless this is how actions of `spaces` can be taken."""
        size = spaces.action.size
        kinds = {
            "categorical": (np.integer, (size, 0, 0)),
            "gaussian": (np.floating, (0, size, size)),
            "bernoulli": (np.int8, (0, 0, 0)),
        }
        kind, sizes = kinds[spaces.distribution]
        if self.dtype not in {dtype.name for dtype in DTYPES.values()} or not np.issubdtype(self.dtype, kind):
            raise ProtocolError(f"an action that is {spaces.distribution} has dtype {self.dtype:.40}")
        if (len(self.start), len(self.low), len(self.high)) != sizes:
            raise ProtocolError("the action's starts or bounds do not fit its shape")
        if any(bound is not None and not math.isfinite(bound) for bound in (*self.low, *self.high)):
            raise ProtocolError("a bound of the action is not a number")

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), flat, in the action's dtype, infinite where there is no bound."""
        low = [-np.inf if bound is None else bound for bound in self.low]
        high = [np.inf if bound is None else bound for bound in self.high]
        return np.array(low, self.dtype), np.array(high, self.dtype)


class ObservationConverter:
    """From an environment's observation to what a trajectory stores; raises `ValueError` on one not of its space.

    What it returns may be the environment's own array, to be copied before the environment goes on.
    """

    def __init__(self, form: ObservationForm, spaces: Spaces) -> None:
        self._leaves = [_Leaf(*leaf) for leaf in zip(form.paths, form.starts, spaces.all_parts, strict=True)]
        (part, *more) = spaces.all_parts
        as_it_is = not more and part.kind in ("numbers", "image")
        self._dtype = np.dtype(part.box.dtype) if as_it_is else None  # Set where an observation needs no conversion.
        self._shape = part.box.shape

    def __call__(self, observation: Any) -> np.ndarray:
        if type(observation) is np.ndarray and observation.dtype is self._dtype and observation.shape == self._shape:
            return observation
        if len(self._leaves) == 1:
            return self._leaves[0].convert(observation)
        arrays = [leaf.convert(observation) for leaf in self._leaves]
        for array in arrays:
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError("the observation is not finite")
        return np.concatenate([np.frombuffer(array.tobytes(), np.uint8) for array in arrays])


class _Leaf:
    """One part of an observation."""

    def __init__(self, path: tuple[str | int, ...], starts: tuple[int, ...], part: ObservationPart) -> None:
        self._path, self._part = path, part
        self._name = f"the observation's part {'.'.join(map(str, path))}" if path else "the observation"
        self._shape, self._dtype = part.box.shape, np.dtype(part.box.dtype)
        if part.kind == "choices":
            self._start, self._choices = (np.reshape(x, self._shape) for x in (starts, part.choices))

    def convert(self, observation: Any) -> np.ndarray:
        """The part as it is stored; its memory may be the environment's."""
        for key in self._path:
            try:
                observation = observation[key]
            except (KeyError, IndexError, TypeError):
                raise ValueError(f"{self._name} is missing") from None
        array, stored = np.asarray(observation), self._dtype
        if array.shape != self._shape:  # an assignment would broadcast
            raise ValueError(f"{self._name} has shape {array.shape} instead of {self._shape}")
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{self._name} is no array of numbers, but of {array.dtype}")
        if stored.kind in "iub" and array.dtype.kind == "f":  # it would be cut off
            raise ValueError(f"{self._name} is {array.dtype}, the space {stored}")
        if self._part.kind == "choices":
            array = array.astype(np.int64) - self._start
            if not ((array >= 0) & (array < self._choices)).all():
                raise ValueError(f"{self._name} {observation!s:.80} is none of its space's choices")
        elif self._part.kind == "binary" and not np.isin(array, (0, 1)).all():
            raise ValueError(f"{self._name} {observation!s:.80} is not binary, as its space is")
        if array.dtype is not stored and stored.kind in "iub" and array.size:
            _check_range(array, stored, self._name)
        return array.astype(stored, copy=False)


def _check_range(array: np.ndarray, dtype: np.dtype, name: str) -> None:
    """Raise `ValueError` where numbers would be wrapped to fit `dtype`, an integer type or bool."""
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    least, most = array.min().item(), array.max().item()
    if least < low or most > high:
        wrong = least if least < low else most
        raise ValueError(f"{name} holds {wrong}, which {dtype} cannot")


def mask_of(shown: Any, spaces: Spaces, name: str = "the action mask") -> np.ndarray:
    """An action mask as environments tell it, as bool [distribution_size]: one array, or one for each number of an
    action. Raises `ValueError`, which calls it `name`, where it is none or allows no action."""
    arrays = _flat_arrays(shown, name)
    numbers = arrays[0] if len(arrays) == 1 else np.concatenate([np.zeros(0), *arrays])
    if len(numbers) != spaces.distribution_size:
        raise ValueError(f"{name} has {len(numbers)} entries; the actions have {spaces.distribution_size} choices")
    mask = numbers == 1
    if not (mask | (numbers == 0)).all():
        raise ValueError(f"{name} holds something else than 0 and 1, or False and True")
    if not all(mask[start:end].any() for start, end in spaces.groups):
        raise ValueError(f"{name} allows no action")
    return mask


def _flat_arrays(shown: Any, name: str) -> list[np.ndarray]:
    if isinstance(shown, tuple | list):
        return [array for part in shown for array in _flat_arrays(part, name)]
    array = np.asarray(shown)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} is no array of numbers, but of {array.dtype}")
    return [array.reshape(-1)]


class ActionConverter:
    """From a policy's action to what `env.step` takes: choices counted from their start, Box clipped to its bounds."""

    def __init__(self, form: ActionForm, spaces: Spaces) -> None:
        self._distribution, self._dtype = spaces.distribution, np.dtype(form.dtype)
        shape = spaces.action.shape
        if spaces.distribution == "categorical":
            self._start = np.reshape(form.start, shape)
        elif spaces.distribution == "gaussian":
            self._low, self._high = (bound.reshape(shape) for bound in form.bounds())

    def __call__(self, actions: np.ndarray) -> list:
        """One entry for each environment, from actions [N, *action]."""
        if self._distribution == "categorical":
            taken = (actions + self._start).astype(self._dtype, copy=False)
            if taken.ndim == 1:
                return list(taken)  # NumPy's integers, which gymnasium checks faster than an int
        elif self._distribution == "bernoulli":
            taken = actions
        else:
            taken = np.clip(actions, self._low, self._high).astype(self._dtype)
        return [action.copy() for action in taken]  # memory of its own: an environment may write into it, and keep it
