"""The messages, and their strict passage to and from the wire: a map whose fields have exactly the declared types."""

import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from protocol import codec
from protocol.errors import ProtocolError
from protocol.experiment import Experiment
from protocol.snapshot import PolicySnapshot
from protocol.spaces import Spaces
from protocol.trajectory import LaneState, Trajectory

PROTOCOL_VERSION = 2


@dataclass(frozen=True)
class Hello:
    """Actor to learner, until it is answered: I am here."""

    actor: str  # its name, a number if the launcher started it; a newer process of that name replaces the older one
    pid: int  # of its process, or the number that its supervisor gave it on another machine
    fingerprint: dict[str, str]  # library versions, and a digest of a fixed forward pass: equal where results are


@dataclass(frozen=True)
class Welcome:
    """Learner to actor: this is the run, and what is to be done in it."""

    run_id: str
    experiment: Experiment


@dataclass(frozen=True)
class Refusal:
    """Learner to actor: you cannot take part, and why."""

    reason: str


@dataclass(frozen=True)
class Ready:
    """Actor to learner: my environments are made, and these are their spaces."""

    spaces: Spaces


@dataclass(frozen=True)
class Grant:
    """Learner to actor: collect this rollout of this lane with this policy version, whose snapshot came before, or in
    the schedule `async` with a newer one."""

    run_id: str
    lane: int
    rollout_index: int
    policy_version: int
    serial: int  # rises each time the lane changes hands; a trajectory with an older one is refused
    state: LaneState | None  # for an actor that does not hold the lane yet; None for a lane that has not begun


@dataclass(frozen=True)
class Progress:
    """Actor to learner, at most twice a second while it works: I am not hung."""

    steps: int  # environment steps since it started, replayed ones among them


@dataclass(frozen=True)
class Stop:
    """Learner to actor: the run is over."""

    reason: str


Message = Hello | Welcome | Refusal | Ready | PolicySnapshot | Grant | Trajectory | Progress | Stop
_KINDS: dict[str, type] = {kind.__name__: kind for kind in typing.get_args(Message)}


def to_frames(message: Message) -> list[codec.Frame]:
    fields = _plain(message)
    return codec.encode({"protocol": PROTOCOL_VERSION, "kind": type(message).__name__, **fields})


def from_frames(frames: Sequence[codec.Frame]) -> Message:
    """The message in `frames`; raises `ProtocolError`, and nothing else, on anything that is not one."""
    fields = codec.decode(frames)
    version = fields.pop("protocol", None)
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the other side speaks protocol version {version!r:.20}, this one {PROTOCOL_VERSION};"
            " install the same release on both"
        )
    name = fields.pop("kind", None)
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ProtocolError(f"there is no message {name!r:.40}")
    return _typed(fields, kind, kind.__name__)


def _plain(record: Any) -> dict[str, Any]:
    """A dataclass as a map, one level at a time: arrays stay arrays."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain_value(item) for item in value]
    return _plain(value) if dataclasses.is_dataclass(value) else value


@cache
def _hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name: slow to find out, and asked for with every message."""
    return typing.get_type_hints(kind)


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` if it is exactly of the type `hint` (a dataclass is built from its map), else `ProtocolError`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = _hints_of(typing.cast(type, hint))
        if not isinstance(value, dict) or value.keys() != hints.keys():
            raise ProtocolError(f"{where} does not have exactly the fields {', '.join(hints)}")
        return typing.cast(Any, hint)(**{k: _typed(value[k], kind, f"{where}.{k}") for k, kind in hints.items()})
    if origin is types.UnionType:  # X | None
        return None if value is None else _typed(value, arguments[0], where)
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in arguments:
            raise ProtocolError(f"{where} is not one of {', '.join(arguments)}")
        return value
    if origin is tuple:  # tuple[X, ...]
        if not isinstance(value, list):
            raise ProtocolError(f"{where} is not a list")
        return tuple(_typed(item, arguments[0], where) for item in value)
    if origin is dict:  # dict[str, X]
        if not isinstance(value, dict):
            raise ProtocolError(f"{where} is not a map")
        return {k: _typed(v, arguments[1], f"{where}[{k:.40}]") for k, v in value.items()}
    if type(value) is not hint:
        raise ProtocolError(f"{where} is a {type(value).__name__} instead of a {hint.__name__}")
    if hint is int and not -(2**63) <= value < 2**63:
        raise ProtocolError(f"{where} is out of range")
    return value
