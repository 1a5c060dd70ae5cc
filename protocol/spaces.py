"""Observation and action spaces as plain data. The learner knows nothing else of an environment."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from protocol.arrays import DTYPES, MAX_DIMENSIONS
from protocol.errors import ProtocolError

MAX_SIZE = 2**24  # Most numbers in an observation, and most outputs of the policy network.
MAX_PARTS = 1024
ADDED_SPACES = {"has_action_masks": False, "critic_parts": []}  # Fields of `Spaces` that older files may lack.


Distribution = Literal["categorical", "gaussian", "bernoulli"]


@dataclass(frozen=True)
class BoxSpace:
    """Arrays of one shape and dtype, as stored in trajectories."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize

    def check(self, name: str) -> None:
        """Raise `ProtocolError` unless an array can have this shape and dtype."""
        if self.dtype not in {dtype.name for dtype in DTYPES.values()}:
            raise ProtocolError(f"the {name} space has dtype {self.dtype:.40}")
        if len(self.shape) >= MAX_DIMENSIONS - 1:
            possible = f"{MAX_DIMENSIONS - 2} dimensions are possible"
            raise ProtocolError(f"the {name} space has shape {list(self.shape)}; {possible}")
        if any(not 0 < n <= MAX_SIZE for n in self.shape) or self.size > MAX_SIZE:
            raise ProtocolError(
                f"the {name} space has shape {list(self.shape)}; 1 to {MAX_SIZE:,} numbers are possible"
            )


@dataclass(frozen=True)
class ObservationPart:
    """One leaf of the observation space, and how a network sees this leaf."""

    # `numbers`: as float32, normalised. `binary`: as float32. `choices`: one-hot. `image`: by a convolutional network.
    kind: Literal["numbers", "binary", "choices", "image"]
    box: BoxSpace
    choices: tuple[int, ...]  # Of a `choices` part: the number of values of each entry. Values count from 0.


def groups_of(choices: tuple[int, ...]) -> list[tuple[int, int]]:
    """(start, end) of each entry's choices, where those of all entries stand side by side."""
    ends = itertools.accumulate(choices)
    return [(end - n, end) for end, n in zip(ends, choices, strict=True)]


def stored_as(parts: tuple[ObservationPart, ...]) -> BoxSpace:
    """How observations are stored: one part as it is, several parts as their bytes, one after the other."""
    return parts[0].box if len(parts) == 1 else BoxSpace((sum(part.box.nbytes for part in parts),), "uint8")


@dataclass(frozen=True)
class Spaces:
    """An environment's two spaces. The first actor to join defines them; later ones must match."""

    observation: BoxSpace  # As it is stored, see `stored_as`.
    parts: tuple[ObservationPart, ...]  # What the policy sees.
    action: BoxSpace  # As it is stored.
    distribution: Distribution
    choices: tuple[int, ...]  # Of a categorical distribution: the number of values of each entry.
    has_action_masks: bool = False  # Whether the environment tells which actions it allows.
    critic_parts: tuple[ObservationPart, ...] = ()  # What only the critic sees; stored behind the other parts.

    @property
    def all_parts(self) -> tuple[ObservationPart, ...]:
        """The parts in the order in which they are stored."""
        return self.parts + self.critic_parts

    @property
    def of_policy(self) -> "Spaces":
        """These spaces without what only the critic sees."""
        return replace(self, observation=stored_as(self.parts), critic_parts=()) if self.critic_parts else self

    @property
    def groups(self) -> list[tuple[int, int]]:
        """(start, end) of each entry's choices among the outputs of a categorical policy."""
        return groups_of(self.choices)

    @property
    def mask_bytes(self) -> int:
        """Bytes of a packed action mask."""
        return -(-self.distribution_size // 8)

    def unpack_masks(self, packed: np.ndarray) -> np.ndarray:
        """bool [..., distribution_size] of packed action masks uint8 [..., mask_bytes]."""
        return np.unpackbits(packed, axis=-1, count=self.distribution_size).view(bool)

    @property
    def distribution_size(self) -> int:
        """How many outputs the policy network has."""
        return sum(self.choices) if self.distribution == "categorical" else self.action.size

    def unpack(self, observations: np.ndarray) -> list[np.ndarray]:
        """What the policy sees of stored observations [B, *observation]: an array [B, *part] for each of `parts`; views
        if the parts allow it."""
        if len(self.parts) == 1 and not self.critic_parts:
            return [observations]
        return self._columns(observations, self.parts, 0)

    def unpack_critic(self, observations: np.ndarray) -> list[np.ndarray]:
        """What only the critic sees of stored observations [B, *observation]: an array for each of `critic_parts`."""
        return self._columns(observations, self.critic_parts, sum(part.box.nbytes for part in self.parts))

    def _columns(self, observations: np.ndarray, parts: tuple[ObservationPart, ...], start: int) -> list[np.ndarray]:
        """These parts, which are stored from byte `start` on."""
        arrays = []
        for part in parts:
            end = start + part.box.nbytes
            columns = np.ascontiguousarray(observations[:, start:end])
            arrays.append(columns.view(part.box.dtype).reshape(len(observations), *part.box.shape))
            start = end
        return arrays

    def check_observations(self, observations: np.ndarray, name: str = "an observation") -> None:
        """Raise `ProtocolError` unless all stored observations [B, *observation] are possible. Errors say `name`."""
        arrays = self.unpack(observations) + self.unpack_critic(observations)
        for part, array in zip(self.all_parts, arrays, strict=True):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ProtocolError(f"{name} holds a value that is not finite")
            if part.kind == "binary" and not np.isin(array, (0, 1)).all():
                raise ProtocolError("a binary observation is neither 0 nor 1")
            if part.kind == "choices":
                _check_choices(array, part.choices, "an observation")

    def check_actions(self, actions: np.ndarray) -> None:
        """Raise `ProtocolError` unless all actions [B, *action] are possible."""
        if self.distribution == "categorical":
            _check_choices(actions, self.choices, "an action")
        elif self.distribution == "bernoulli" and not np.isin(actions, (0, 1)).all():
            raise ProtocolError("a binary action is neither 0 nor 1")

    def check_masks(self, packed: np.ndarray, actions: np.ndarray) -> None:
        """Raise `ProtocolError` unless packed action masks [B, mask_bytes] allow the possible actions [B, *action]."""
        allowed = self.unpack_masks(packed)
        chosen = actions.reshape(len(actions), -1)
        for i, (start, end) in enumerate(self.groups):
            if not np.take_along_axis(allowed[:, start:end], chosen[:, i : i + 1], axis=1).all():
                raise ProtocolError("an action is one that its mask does not allow")

    def check(self) -> None:
        """Raise `ProtocolError` unless these can be the spaces of an environment."""
        self.observation.check("observation")
        self.action.check("action")
        if not 0 < len(self.parts) <= MAX_PARTS - len(self.critic_parts):
            raise ProtocolError(f"the observation space has {len(self.all_parts)} parts")
        for part in self.all_parts:
            part.box.check("observation")
            numbers = part.box.size if part.kind == "choices" else 0
            if len(part.choices) != numbers:
                raise ProtocolError("an observation's choices do not fit its shape")
            if not all(0 < n <= MAX_SIZE for n in part.choices):
                most = max(part.choices, key=abs)
                possible = f"there are {most:,}, and 1 to {MAX_SIZE:,} are possible"
                raise ProtocolError(f"an observation's choices do not fit its shape: {possible}")
            if part.kind == "choices" and np.dtype(part.box.dtype).kind not in "iu":
                raise ProtocolError(f"an observation of choices has dtype {part.box.dtype}")
            if part.kind == "image" and (part.box.dtype != "uint8" or not 2 <= len(part.box.shape) <= 4):
                raise ProtocolError(f"an image is {part.box.dtype} {list(part.box.shape)}")
        if self.observation != stored_as(self.all_parts):
            raise ProtocolError("the observation space does not fit its parts")
        forms = {
            "categorical": ("int64", self.action.size),
            "gaussian": ("float32", 0),
            "bernoulli": ("int8", 0),
        }
        if (self.action.dtype, len(self.choices)) != forms[self.distribution]:
            raise ProtocolError("the action space does not fit its distribution")
        if self.has_action_masks and self.distribution != "categorical":
            raise ProtocolError("only actions that are choices can have masks")
        if not all(0 < n <= MAX_SIZE for n in self.choices) or not 0 < self.distribution_size <= MAX_SIZE:
            raise ProtocolError(f"the policy would have {self.distribution_size:,} outputs; {MAX_SIZE:,} are possible")


def _check_choices(array: np.ndarray, choices: tuple[int, ...], name: str) -> None:
    chosen = array.reshape(-1, len(choices))
    if len(chosen) and not ((chosen >= 0).all() and (chosen.max(axis=0) < choices).all()):
        limits = sorted(set(choices))
        raise ProtocolError(f"{name} lies outside 0…n−1, for n = {', '.join(map(str, limits[:8]))}")
