"""The messages between actors and learner. On the wire, each is a map whose fields have exactly the declared types."""

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

PROTOCOL_VERSION = 9


@dataclass(frozen=True)
class Hello:
    """Actor to learner: I am here. Sent until the learner answers, and whenever the actor has nothing to do.

    A name does not identify a sender: the learner may read a message of a killed process after its replacement has said
    hello. `life` and `connection` say which of the two is newer.
    """

    actor: str  # A newer process of the same name replaces an older one. The launcher's actors are numbered.
    life: int  # Grows with every process that the launcher starts; 0 for an actor that was started by hand.
    fingerprint: dict[str, str]  # Library versions and a digest of a fixed forward pass. Equal where results are equal.
    connection: int = 0  # Grows with every connection of this life that the actor notices.
    pid: int = 0  # The actor's process id, to be shown to people.


@dataclass(frozen=True)
class Welcome:
    """Learner to actor: this is the run, and this is its experiment."""

    run_id: str
    experiment: Experiment


@dataclass(frozen=True)
class Refusal:
    """Learner to actor: you cannot take part, for this reason."""

    reason: str


@dataclass(frozen=True)
class Ready:
    """Actor to learner: my environments are made. These are their spaces, and the packages that they use."""

    spaces: Spaces
    libraries: dict[str, str]  # Versions of packages that the fingerprint does not name.
    observations: str = ""  # Each observation's name and how it is treated, to be shown to people.


@dataclass(frozen=True)
class Grant:
    """Learner to actor: collect this rollout of this lane with this policy version, whose snapshot was sent before. In
    the schedule `async`, a newer version may be used."""

    run_id: str
    lane: int
    rollout_index: int
    policy_version: int
    fencing_token: int  # Grows whenever the lane gets another host; a trajectory with an older token is refused.
    state: LaneState | None  # None if the actor hosts the lane already, or the lane has no steps yet.
    progress: float = 0.0  # The share of training that is over, of which the episodes that begin are told.


@dataclass(frozen=True)
class SecondGrant:
    """Learner to actor: when you have time, collect this rollout a second time, with fresh environments."""

    grant: Grant


@dataclass(frozen=True)
class SecondCollection:
    """Actor to learner: the result of a rollout's second collection. It is compared, and never trained on."""

    fencing_token: int  # Copied from the grant.
    trajectory: Trajectory | None  # None if the environments could not be made.


@dataclass(frozen=True)
class Release:
    """Learner to actor: this lane has another host now. Forget the lane, and its grants that you have not begun."""

    lane: int
    fencing_token: int  # Grants with this token or an older one are void.


@dataclass(frozen=True)
class Progress:
    """Actor to learner, about twice a second: I am not hung, and this is how I spend my time."""

    steps: int  # Environment steps since the actor started, including replayed steps.
    acting: float  # Seconds since the start that were spent on lanes: stepping, making and rebuilding them.
    waiting: float  # The other seconds since the start, in which the actor had nothing to step.


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
    """The message in `frames`. Raises `ProtocolError`, and no other exception, if they hold no message."""
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
