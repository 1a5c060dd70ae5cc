"""The learner's record of one actor."""

import math
from collections import deque
from dataclasses import dataclass, field

from protocol.events import ActorFacts
from protocol.execution import WITNESS
from protocol.messages import Progress

SHARE_WINDOW = 40  # An actor's share of acting is taken over so many messages of progress, two a second.


@dataclass
class ActorRecord:
    """An actor that has said hello. Times are those of the roster's clock, in seconds."""

    name: str
    user: str | None  # the key it connected with; None on this machine, and where there are no keys
    life: int
    connection: int
    pid: int  # Shown to people.
    local: bool  # whether the supervisor started it, and can kill it
    joined: float
    last_heard: float  # when its last message came, or its first grant after it had nothing to do
    ready: bool = False
    working: bool = False  # whether a trajectory of its was accepted
    versions: set[int] = field(default_factory=set)  # The policy versions it was sent.
    env_steps: int = 0  # Environment steps accepted from it.
    progress: deque[Progress] = field(default_factory=lambda: deque(maxlen=SHARE_WINDOW))  # Its last reports.

    @property
    def is_witness(self) -> bool:
        """Whether it hosts no lanes, and collects rollouts a second time."""
        return self.name == WITNESS

    def facts(self, lanes: list[int] | None, listened: float) -> ActorFacts:
        """What the supervisor is told: `lanes` are those that it hosts, and until `listened` all it said was heard."""
        return ActorFacts(
            name=self.name,
            life=self.life,
            pid=self.pid,
            state=self.state(hosts=lanes is not None),
            lanes=tuple(lanes or []),
            env_steps=self.env_steps,
            acting=self.acting_share,
            seconds_silent=max(0.0, listened - self.last_heard),
        )

    def state(self, hosts: bool) -> str:
        """The actor's state in one word; `hosts` tells whether it has lanes."""
        if not self.ready:
            return "starting"
        if not hosts:
            return "idle"
        return "working" if self.working else "ready"

    @property
    def acting_share(self) -> float | None:
        """The share of the last seconds that it spent acting; None while unknown, and where it tells nonsense."""
        if not self.progress:
            return None
        acting = self.progress[-1].acting - self.progress[0].acting
        seconds = acting + self.progress[-1].waiting - self.progress[0].waiting
        share = acting / seconds if seconds > 0 else math.nan
        return share if 0 <= share <= 1 else None
