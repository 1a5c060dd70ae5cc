"""The messages, and their strict passage to and from the wire: a map whose fields have exactly the declared types."""

import typing
from collections.abc import Sequence
from dataclasses import dataclass

from protocol import codec
from protocol.errors import ProtocolError
from protocol.experiment import Experiment
from protocol.records import plain, typed
from protocol.snapshot import PolicySnapshot
from protocol.spaces import Spaces
from protocol.trajectory import LaneState, Trajectory

PROTOCOL_VERSION = 7


@dataclass(frozen=True)
class Hello:
    """Actor to learner, until it is answered and whenever it has nothing to do: I am here.

    A name is not enough to know a sender by: what a process said before it was killed may be read after its
    replacement has said hello. Life and connection say which of the two is newer.
    """

    actor: str  # A newer process of the same name replaces an older one. The launcher's actors are numbered.
    life: int  # rises with every process that the launcher starts, and is 0 for one that was started by hand
    fingerprint: dict[str, str]  # library versions, and a digest of a fixed forward pass: equal where results are
    connection: int = 0  # rises with every connection of this life, as far as it can tell
    pid: int = 0  # Shown to people.


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
    """Actor to learner: my environments are made, these are their spaces, and this is what they are made of."""

    spaces: Spaces
    libraries: dict[str, str]  # versions of packages, beside those that the fingerprint names
    observations: str = ""  # each by its name, with what it is taken for, to be shown


@dataclass(frozen=True)
class Grant:
    """Learner to actor: collect this rollout of this lane with this policy version, whose snapshot came before, or in
    the schedule `async` with a newer one."""

    run_id: str
    lane: int
    rollout_index: int
    policy_version: int
    fencing_token: int  # rises each time the lane changes hands; a trajectory with an older one is refused
    state: LaneState | None  # None if the actor holds the lane already, or nothing has happened in it.


@dataclass(frozen=True)
class SecondGrant:
    """Learner to actor: when you have time, collect this rollout a second time, with fresh environments."""

    grant: Grant


@dataclass(frozen=True)
class SecondCollection:
    """Actor to learner: what the second collection of a rollout gave. It is compared, and never trained on."""

    fencing_token: int  # Copied from the grant.
    trajectory: Trajectory | None  # None where the environments could not be made


@dataclass(frozen=True)
class Release:
    """Learner to actor: this lane has another host now; forget it, and what of it was granted and has not begun."""

    lane: int
    fencing_token: int  # Grants with this token or an older one are void.


@dataclass(frozen=True)
class Progress:
    """Actor to learner, about twice a second: I am not hung, and this is how I spend my time."""

    steps: int  # environment steps since it started, replayed ones among them
    acting: float  # seconds since it started that it spent on lanes: stepping, and making and rebuilding them
    waiting: float  # the other seconds, in which it had nothing to step


@dataclass(frozen=True)
class Stop:
    """Learner to actor: the run is over."""

    reason: str


Message = (
    Hello
    | Welcome
    | Refusal
    | Ready
    | PolicySnapshot
    | Grant
    | SecondGrant
    | Release
    | Trajectory
    | SecondCollection
    | Progress
    | Stop
)
_KINDS: dict[str, type] = {kind.__name__: kind for kind in typing.get_args(Message)}


def to_frames(message: Message) -> list[codec.Frame]:
    fields = plain(message)
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
    return typed(fields, kind, kind.__name__)
