"""The state of a run as its supervisor knows it: one record, which the terminal draws and status.json holds."""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from protocol.events import ActorFacts

SPEED_WINDOW = 30  # Reports, about a second apart, over which an actor's speed is taken.
SHARES_WINDOW = 20  # Iterations over which the learner's shares are taken.
HAPPENED = 100  # Most events that are remembered.
KEEP_GONE_SECONDS = 60.0  # Seconds for which an actor of another machine is shown after it has gone.
# Events that come often, and how many of each are remembered.
ROUTINE = {"checkpoint": 1, "evaluation": 10, "actor_restarted": 10, "actor_joined": 10}
SHARES = {  # Shares of the learner's time, and of the actors', by the name of the metric.
    "acting": "time/actor_acting_share",
    "waiting": "time/learner_wait_share",
    "learning": "time/learner_learn_share",
    "sending": "time/learner_send_share",
}
Point = tuple[float, float]  # (env-steps, value)


class History:
    """A curve of any length in bounded memory. When it is full, every two neighbouring points become one."""

    def __init__(self, capacity: int = 512) -> None:
        self._capacity = capacity
        self._stride = 1  # Values in a point.
        self._means: list[Point] = []  # The oldest first.
        self._newest: list[Point] = []  # Values that are in no mean yet.

    def append(self, steps: float, value: float) -> None:
        """Add a value. Values of `steps` and later go: a learner that begins again from a checkpoint repeats them."""
        if not math.isfinite(value):
            return
        for points in (self._newest, self._means):
            while points and points[-1][0] >= steps:
                points.pop()
        self._newest.append((steps, value))
        if len(self._newest) <= self._stride:
            return
        self._means.append(_mean(self._newest[:-1]))
        del self._newest[:-1]
        if len(self._means) >= self._capacity:
            self._means = [_mean(pair) for pair in zip(self._means[::2], self._means[1::2], strict=True)]
            self._stride *= 2

    def points(self) -> list[Point]:
        """(env-steps, value), the oldest first. The last one is the newest value itself."""
        unfinished = [_mean(self._newest[:-1])] if len(self._newest) > 1 else []
        return [*self._means, *unfinished, *self._newest[-1:]]


def _mean(points: Sequence[Point]) -> Point:
    return sum(steps for steps, _ in points) / len(points), sum(value for _, value in points) / len(points)


@dataclass
class ActorStatus:
    """The state of one actor."""

    name: str
    pid: int | None = None  # None for a thread, and while the actor is lost.
    state: str = "starting"  # Others: ready, working, idle (without lanes), lost, ended (with the run).
    lanes: list[int] = field(default_factory=list)
    env_steps: int = 0  # Environment steps accepted from the actor since the launcher started.
    env_steps_per_second: float | None = None
    acting: float | None = None  # The share of the actor's time that it spends stepping.
    restarts: int = 0
    memory: int | None = None  # Resident memory in bytes.
    seconds_silent: float = 0.0

    @property
    def local(self) -> bool:
        """Whether the supervisor started this actor."""
        return self.name.isdecimal()


class _Trace:
    """An actor's earlier values, from which its status is computed."""

    def __init__(self, now: float) -> None:
        self.since = now  # When the actor's state became `starting` or `lost`.
        self.life = 0  # The number of the actor's process.
        self.before = 0  # Environment steps of its earlier processes, or to earlier learners.
        self.reported = 0  # Environment steps since then.
        self.speeds: deque[tuple[float, int]] = deque(maxlen=SPEED_WINDOW)  # (time, env-steps)


@dataclass(frozen=True)
class Happening:
    """An event, to be shown to people."""

    time: float  # Unix seconds.
    event: str
    text: str
    brief: str = ""  # The same where there is less room.


class RunStatus:
    """One run, from its launcher's point of view."""

    def __init__(
        self, title: str, total_steps: int, clock: Callable[[], float] = time.monotonic, elsewhere: bool = False
    ) -> None:
        """`elsewhere` says that the actors' pids are those of other machines."""
        self._elsewhere = elsewhere
        self.title = title
        self.total_steps = total_steps
        self.state = "starting"  # Later: training, stopping, and finished, stopped or failed.
        self.row: dict[str, Any] = {}  # The last row of metrics.jsonl.
        self.seconds_left: float | None = None
        self.returns = History()
        self.happenings: deque[Happening] = deque(maxlen=HAPPENED)
        self.checkpoint: int | None = None  # The policy version of the newest checkpoint.
        self.learner_restarts = 0
        self.memory: dict[str, int | None] = {"launcher": None, "learner": None}
        self._clock = clock
        self._learner_pid: int | None = None
        self._actors: dict[str, ActorStatus] = {}
        self._traces: dict[str, _Trace] = {}
        self._first_row: tuple[float, int] | None = None  # (time, env-steps) of this launcher's first iteration
        self._shares: deque[dict[str, Any]] = deque(maxlen=SHARES_WINDOW)

    @property
    def env_steps(self) -> int:
        return self.row.get("env_steps", 0)

    @property
    def actors(self) -> list[ActorStatus]:
        """All actors: those that this launcher started, by number, then the others, by name."""
        return sorted(self._actors.values(), key=lambda a: (not a.local, int(a.name) if a.local else 0, a.name))

    @property
    def shares(self) -> dict[str, float | None]:
        """Shares of the learner's time and, under `acting`, of the actors' time; None while unknown."""
        means = {}
        for share, metric in SHARES.items():
            known = [row[metric] for row in self._shares if row.get(metric) is not None]
            means[share] = sum(known) / len(known) if known else None
        return means

    def learner_started(self, pid: int) -> None:
        """The learner's process is `pid`, or 0 for a thread."""
        self._learner_pid = pid or None

    def actor_started(self, name: str, pid: int, life: int, again: bool = False) -> None:
        """Actor `name` was started in its `life` as process `pid`, 0 if there is none here; `again` for a restart."""
        actor = self._actor(name)
        actor.pid, actor.state, actor.lanes, actor.memory = pid or None, "starting", [], None
        actor.restarts += again
        trace = self._traces[name]
        trace.since, trace.before, trace.reported = self._clock(), trace.before + trace.reported, 0
        trace.life = life

    def actor_removed(self, name: str) -> None:
        """Actor `name` is not wanted any more."""
        self._actors.pop(name, None)
        self._traces.pop(name, None)

    def begin_training(self) -> None:
        """The learner grants rollouts."""
        if self.state == "starting":
            self.state = "training"

    def lose_learner(self) -> None:
        """The learner's process has ended, and another will follow."""
        self.state = "starting"
        self.learner_restarts += 1

    def end(self, state: str) -> None:
        """The run is over: finished, stopped or failed."""
        self.state, self.seconds_left = state, None
        self.end_actors()

    def end_actors(self) -> None:
        """No actor works any more. What else was known of them last stays."""
        for actor in self._actors.values():
            actor.state, actor.pid, actor.memory = "ended", None, None

    def happened(self, happening: Happening) -> None:
        """Remember an event. One that comes often takes the place of an earlier one, so that others stay."""
        alike = [earlier for earlier in self.happenings if earlier.event == happening.event]
        if len(alike) >= ROUTINE.get(happening.event, HAPPENED):
            self.happenings.remove(alike[0])
        self.happenings.append(happening)

    def take_earlier(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take in the rows of metrics.jsonl that are of before this launch."""
        for row in rows:
            self._take_return(row)

    def measure(self) -> None:
        """Measure the memory of each process of this machine, and forget actors that have been gone for long."""
        now = self._clock()
        self.memory = {"launcher": memory_of(os.getpid()), "learner": memory_of(self._learner_pid)}
        for actor in list(self._actors.values()):
            since = now - self._traces[actor.name].since
            if actor.local:
                actor.memory = None if self._elsewhere else memory_of(actor.pid)
            elif actor.state == "lost" and since > KEEP_GONE_SECONDS:
                self.actor_removed(actor.name)
            if actor.state in ("starting", "lost"):
                actor.seconds_silent = since

    def as_dict(self) -> dict[str, Any]:
        """The content of status.json."""
        return {
            "time": time.time(),
            "state": self.state,
            "title": self.title,
            "env_steps": self.env_steps,
            "total_steps": self.total_steps,
            "seconds_left": self.seconds_left,
            "shares": self.shares,
            "memory": self.memory,
            "actors": [asdict(actor) for actor in self.actors],
        }

    def take_row(self, row: dict[str, Any]) -> None:
        """Take in the last iteration's row of metrics.jsonl."""
        now = self._clock()
        self.row = row
        self._shares.append(row)
        self._take_return(row)
        if self._first_row is None:
            self._first_row = now, row["env_steps"]
        began, first = self._first_row
        if row["env_steps"] > first and now > began:
            speed = (row["env_steps"] - first) / (now - began)
            self.seconds_left = (self.total_steps - row["env_steps"]) / speed

    def _take_return(self, row: dict[str, Any]) -> None:
        if row.get("rollout/episode_return_mean") is not None:
            self.returns.append(row["env_steps"], row["rollout/episode_return_mean"])

    def take_actors(self, actors: Sequence[ActorFacts]) -> None:
        """Take in what the learner knows of all actors that take part."""
        now = self._clock()
        for told in actors:
            name = told.name
            known = self._actors.get(name)
            if name.isdecimal() and (known is None or self._traces[name].life != told.life or known.state == "lost"):
                continue  # The learner does not know yet that this process has gone.
            actor, trace = self._actor(name), self._traces[name]
            if told.env_steps < trace.reported:  # An earlier learner counted the steps of before.
                trace.before += trace.reported
            trace.reported = told.env_steps
            if not actor.local:
                actor.pid = told.pid
            actor.env_steps = trace.before + trace.reported
            trace.speeds.append((now, actor.env_steps))
            began, first = trace.speeds[0]
            actor.env_steps_per_second = (actor.env_steps - first) / (now - began) if now > began else None
            actor.state, actor.lanes, actor.acting = told.state, list(told.lanes), told.acting
            actor.seconds_silent = told.seconds_silent
        reported = {told.name for told in actors}
        for actor in self._actors.values():
            if actor.name not in reported and actor.state in ("ready", "working", "idle"):
                if actor.local:  # The learner is new to this actor, or takes it to hang.
                    actor.state, actor.lanes, self._traces[actor.name].since = "starting", [], now
                else:
                    self.lose_actor(actor.name)

    def lose_actor(self, name: str) -> None:
        """Actor `name` has gone, and may come back."""
        actor = self._actors.get(name)
        if actor is None:
            return
        actor.state, actor.pid, actor.lanes, actor.memory = "lost", None, [], None
        actor.env_steps_per_second = actor.acting = None
        self._traces[name].since = self._clock()
        self._traces[name].speeds.clear()  # The actor's next process has a speed of its own.

    def _actor(self, name: str) -> ActorStatus:
        if name not in self._actors:
            self._actors[name], self._traces[name] = ActorStatus(name), _Trace(self._clock())
        return self._actors[name]


def memory_of(pid: int | None) -> int | None:
    """Resident memory of a process in bytes. None without a pid, for a process that has gone, and if the system
    does not say."""
    if pid is None:
        return None
    try:
        return psutil.Process(pid).memory_info().rss or None  # A zombie has none.
    except (psutil.Error, OSError):
        return None
