"""Events about a run, sent between the learner, the actors and the supervisor. On a pipe, each is one line of JSON."""

import json
from dataclasses import dataclass
from typing import Any

from protocol.errors import ProtocolError
from protocol.records import plain, typed


@dataclass(frozen=True)
class Alive:
    """The learner is at work."""

    patience: float  # Seconds for which the learner may send no event from now on.
    listening: bool  # Whether the learner has read all messages. An actor unknown to it has then not said hello.


@dataclass(frozen=True)
class Note:
    """Something that a user may want to know."""

    text: str


@dataclass(frozen=True)
class Caution:
    """Something that a user should know. Its name in files is `warning`."""

    text: str
    traceback: str = ""  # Of the user's code, where the text tells of an error in it.


@dataclass(frozen=True)
class Started:
    """The learner has its first or restored policy version, and grants rollouts from now on."""

    policy_version: int
    parameters: int
    observations: str  # Each observation's name and how it is treated; empty if no actor was asked.


@dataclass(frozen=True)
class Iteration:
    """The learner has completed a policy version."""

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
    """A policy version was evaluated."""

    text: str  # Shown to people.
    result: dict[str, Any]  # A row of evaluations.jsonl.
    brief: str  # Shown where there is less room.


@dataclass(frozen=True)
class ActorFacts:
    """The learner's record of one actor."""

    name: str
    life: int
    pid: int
    state: str  # One of starting, idle, ready, working.
    lanes: tuple[int, ...]  # The lanes that the actor hosts.
    env_steps: int  # Environment steps that this learner accepted from the actor.
    acting: float | None  # The share of the last seconds that the actor spent acting.
    seconds_silent: float


@dataclass(frozen=True)
class Actors:
    """Every actor that takes part in the run now."""

    actors: tuple[ActorFacts, ...]


@dataclass(frozen=True)
class ActorHello:
    """An actor has said hello to the learner. It may still have to make its environments."""

    actor: str


@dataclass(frozen=True)
class ActorJoined:
    """An actor is ready to host lanes."""

    actor: str


@dataclass(frozen=True)
class ActorDelivers:
    """An actor's first trajectory was accepted."""

    actor: str
    seconds: float  # Seconds since the actor said hello.


@dataclass(frozen=True)
class ActorLost:
    """An actor on another machine has gone. The state of its process is not known."""

    actor: str


@dataclass(frozen=True)
class ActorHangs:
    """An actor on this machine hangs and is to be killed."""

    actor: str
    life: int
    reason: str


@dataclass(frozen=True)
class ActorExit:
    """The process of an actor has ended."""

    actor: str
    life: int
    code: int
    last_line: str  # The last line that the process printed.


@dataclass(frozen=True)
class LearnerExit:
    """The learner's process has ended."""

    code: int
    last_line: str  # The last line that the process printed.


@dataclass(frozen=True)
class SignalReceived:
    """The launcher received a signal that ends the run."""

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
    """The event in a line; None for a line that a library printed, or that a kill cut short."""
    try:
        fields = json.loads(line)
        kind = _KINDS[fields.pop("event")]
        return typed(fields, kind, kind.__name__)
    except (ValueError, KeyError, TypeError, AttributeError, ProtocolError):
        return None
