"""What the learner, the workers and the supervisor tell each other about a run; on a pipe, a JSON object a line."""

import json
from dataclasses import dataclass
from typing import Any

from protocol.errors import ProtocolError
from protocol.records import plain, typed


@dataclass(frozen=True)
class Alive:
    """The learner is at work."""

    patience: float  # seconds for which it may say nothing from now on
    listening: bool  # whether it has read all that actors have sent: whoever it does not know has not said hello


@dataclass(frozen=True)
class Note:
    """Something that a user may want to know."""

    text: str


@dataclass(frozen=True)
class Caution:
    """Something that a user should know. Its name in files is `warning`."""

    text: str


@dataclass(frozen=True)
class Started:
    """The learner has its first or restored version, and grants rollouts from now on."""

    policy_version: int
    parameters: int
    observations: str  # each by its name, with what it is taken for; empty where no actor was asked


@dataclass(frozen=True)
class Iteration:
    """The learner has completed a version."""

    row: dict[str, Any]  # A row of metrics.jsonl.


@dataclass(frozen=True)
class CheckpointSaved:
    policy_version: int
    path: str


@dataclass(frozen=True)
class Summary:
    """The run has ended."""

    facts: dict[str, Any]  # What the learner knows for summary.json.


@dataclass(frozen=True)
class Evaluated:
    """A version was evaluated."""

    text: str  # Shown to people.
    result: dict[str, Any]  # a row of evaluations.jsonl


@dataclass(frozen=True)
class ActorFacts:
    """The learner's record of one actor."""

    name: str
    life: int
    pid: int
    state: str  # starting, idle, ready or working
    lanes: tuple[int, ...]  # The lanes that it hosts.
    env_steps: int  # Environment steps that this learner accepted from it.
    acting: float | None  # the share of its last seconds that it spent acting
    seconds_silent: float


@dataclass(frozen=True)
class Actors:
    """All who take part now."""

    actors: tuple[ActorFacts, ...]


@dataclass(frozen=True)
class ActorHello:
    """An actor has reached the learner. It may yet have to make its environments."""

    actor: str


@dataclass(frozen=True)
class ActorJoined:
    """An actor can be given lanes."""

    actor: str


@dataclass(frozen=True)
class ActorDelivers:
    """An actor's first trajectory was accepted."""

    actor: str
    seconds: float  # Seconds since it said hello.


@dataclass(frozen=True)
class ActorLost:
    """An actor of another machine has gone. What becomes of its process is not known."""

    actor: str


@dataclass(frozen=True)
class ActorHangs:
    """An actor of this machine is to be killed."""

    actor: str
    life: int
    reason: str


@dataclass(frozen=True)
class ActorExit:
    """The process of an actor has ended."""

    actor: str
    life: int
    code: int
    last_line: str  # The last line that it printed.


@dataclass(frozen=True)
class LearnerExit:
    """The learner's process has ended."""

    code: int
    last_line: str  # The last line that it printed.


@dataclass(frozen=True)
class SignalReceived:
    """The launcher was sent a signal that ends runs."""

    name: str


Event = (
    Alive
    | Note
    | Caution
    | Started
    | Iteration
    | CheckpointSaved
    | Summary
    | Evaluated
    | Actors
    | ActorHello
    | ActorJoined
    | ActorDelivers
    | ActorLost
    | ActorHangs
    | ActorExit
    | LearnerExit
    | SignalReceived
)
_KINDS: dict[str, type] = {kind.__name__: kind for kind in Event.__args__}


def to_line(event: Event) -> str:
    return json.dumps({"event": type(event).__name__, **plain(event)})


def from_line(line: str | bytes) -> Event | None:
    """The event that a line holds; None for one that a library has said, or that a kill has torn."""
    try:
        fields = json.loads(line)
        kind = _KINDS[fields.pop("event")]
        return typed(fields, kind, kind.__name__)
    except (ValueError, KeyError, TypeError, AttributeError, ProtocolError):
        return None
