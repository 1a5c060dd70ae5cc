"""The supervisor: one learner and N actors, started together, watched, and ended together.

It decides about processes only; the learner decides about lanes. All events arrive in one queue.
"""

import math
import queue
import time
from contextlib import suppress
from typing import Any

from protocol.errors import UserError
from protocol.events import (
    ActorDelivers,
    ActorExit,
    ActorHangs,
    ActorHello,
    ActorJoined,
    ActorLost,
    Alive,
    Caution,
    Evaluated,
    Event,
    Iteration,
    LearnerExit,
    SignalReceived,
    Summary,
)
from protocol.execution import WITNESS, Execution
from protocol.lifeline import ENVIRONMENT_ERROR, SUCCESS, USER_ERROR
from supervisor.address import SocketFolder
from supervisor.crashes import CRASHES_ALLOWED, Crashes, end_of, when
from supervisor.evaluation import Evaluation
from supervisor.report import Report
from supervisor.requests import requests
from supervisor.sinks import Sinks
from supervisor.workers import Events, Workers

STOP_SECONDS = 4.0  # Seconds that a learner has to save and end after it was asked to stop.
START_SECONDS = 120.0  # Seconds that an actor's process has to say hello to a learner that listens.
LEARNER_START_SECONDS = 600.0  # Seconds to a learner's first sign of life: it may load a large checkpoint.
STOPPED_SECONDS = 10.0  # Seconds after which a learner that a signal has stopped is replaced.
DISMISSED_SECONDS = 2.0  # Seconds. If the run outlasts an actor's exit with 0 by this, the actor was not dismissed.
LONGEST_LOOK = 1.0  # Seconds. More time between two looks does not count as listening: Ctrl-Z may have stopped us.


class RunFailed(Exception):
    """The run cannot go on. Its checkpoints are kept. The text says why."""


class Supervisor:
    """Watches over the workers of one run."""

    def __init__(
        self,
        workers: Workers,
        execution: Execution,
        sockets: SocketFolder | None,
        events: Events,
        report: Report,
        evaluation: Evaluation,
        sinks: Sinks,
    ) -> None:
        self.summary: dict[str, Any] | None = None
        self.restarts = {"actor_restarts": 0, "learner_restarts": 0}
        self._workers = workers
        self._execution = execution
        self._sockets = sockets
        self._sockets_lost = False  # Whether the sockets could not be restored, and this was reported.
        self._events = events
        self._report = report
        self._status = report.status
        self._evaluation = evaluation
        self._sinks = sinks
        self._slots: dict[str, Crashes] = {}  # The crashes of each wanted actor, except the witness, by name.
        self._witness = Crashes() if execution.witness else None  # None also after it was given up.
        self._learner_crashes = Crashes()
        self._learning = False  # Whether an iteration was completed. From then on every end has a summary.
        self._started_lives = 0  # Each actor process gets the next number.
        self._lives: dict[str, int] = {}  # The number of each actor's present process.
        self._pids: dict[str, int] = {}  # The pid of each actor's present process.
        self._hung: dict[int, str] = {}  # Lives that are killed at the learner's request, and why.
        self._awake, self._looked = 0.0, time.monotonic()  # Seconds spent listening, and until when they count.
        self._heard = 0.0  # When the learner last gave a sign of life.
        self._silent_after = math.inf  # After this time, the learner is taken to hang.
        self._lost_at: dict[str, float] = {}  # Lost actors that do not deliver again yet, and when they were lost.
        self._joining: dict[str, float] = {}  # Actors that have not said hello yet, and when they were started.
        self._due: dict[str, float] = {}  # Actors to be started again, and when.
        self._learner_due: float | None = None  # When a learner is to be started again.
        self._deadline: float | None = None  # When the learner's summary must be there.
        self._hurried = False  # Whether the run was asked twice to end.
        self._failure: str | None = None  # Why the learner was asked to stop, unless by a signal.

    def start(self) -> None:
        for _ in requests(self._execution.run_dir):
            pass  # These requests were for a run that has ended.
        self._slots = {str(index): Crashes() for index in range(self._execution.num_actors)}
        self._start_learner()
        for name in self._wanted:
            self._start_actor(name)

    def watch(self) -> None:
        """Watch the run until the learner has summarized it. Raises `UserError` or `RunFailed` if it cannot."""
        while self.summary is None:
            now = time.monotonic()
            self._awake += min(now - self._looked, LONGEST_LOOK)
            self._looked = now
            if self._deadline is not None and self._awake > self._deadline:
                raise RunFailed(self._failure or f"the learner did not end within {STOP_SECONDS:.0f} s and was killed")
            self._look_after_sockets()
            if self._deadline is None:
                self._start_what_is_due(now)
            stopped = self._awake - self._heard > STOPPED_SECONDS and self._workers.learner_is_stopped()
            if stopped or self._awake > self._silent_after:
                self._lose_patience_with_learner()
            self._adjust_actors()
            self._evaluation.poll()
            self._report.tick()
            with suppress(queue.Empty):
                self._handle(self._events.get(timeout=0.1))
        if self._failure or self.summary["status"] == "failed":
            raise RunFailed(self._failure or self.summary["error"])

    def _start_what_is_due(self, now: float) -> None:
        if self._learner_due is not None and self._learner_due <= now:
            self._start_learner()
        for name in [name for name, due in self._due.items() if due <= now]:
            del self._due[name]
            self._start_actor(name, again=True)

    def conclude(self) -> None:
        """After the workers have ended: finish pending evaluations if the run is finished, and close the sinks."""
        self._status.end_actors()
        if self.summary and self.summary["status"] == "finished":
            self._evaluation.finish(self._handle, self._report.tick)
        self._evaluation.end()
        self._handle_the_rest()
        self._sinks.close()
        self._handle_the_rest()

    def _handle_the_rest(self) -> None:
        while not self._events.empty():
            if isinstance(event := self._events.get(), Evaluated | Caution):
                self._handle(event)

    def _handle(self, event: Event) -> None:
        self._sinks.feed(event)
        match event:
            case Summary(facts):
                self.summary = facts
            case SignalReceived(name):
                self._report.tell("signal", f"{name}: saving and ending", signal=name)
                self._hurried = self._deadline is not None  # A user who asks twice will not wait for a slow disk.
                self._deadline = None
                self._stop()
            case ActorHangs(actor, life, reason):
                self._hung[life] = reason
                if not self._workers.kill_actor(actor, life):
                    self._stop(f"actor {actor} {reason}, and a thread cannot be killed")
            case Alive(patience, listening):
                self._heard, self._silent_after = self._awake, self._awake + patience
                if self._deadline is not None and not self._hurried:
                    self._deadline = max(self._deadline, self._silent_after)  # It is saving, and a disk may be slow.
                if listening:
                    self._restart_actors_that_do_not_join()
            case ActorHello(actor):
                self._joining.pop(actor, None)
            case ActorJoined(actor) if actor == WITNESS:
                self._witness = self._witness and Crashes()
            case ActorJoined(actor):
                # The supervisor did not start an actor of another machine, so its arrival is worth a line.
                self._report.tell("actor_joined", f"actor {actor} has joined", not actor.isdecimal(), actor=actor)
            case ActorLost(actor):
                self._status.lose_actor(actor)
                self._report.tell("actor_lost", f"actor {actor} has gone; its lanes go to the others", actor=actor)
            case ActorDelivers(actor, seconds):
                self._note_delivery(actor, seconds)
            case LearnerExit(code, last_line):
                self._lost_learner(code, last_line)
            case ActorExit():
                self._lost_actor(event)
            case Iteration():
                self._learning = True
                self._learner_crashes.in_a_row = 0
                self._report.take(event)
            case _:
                self._report.take(event)

    def _note_delivery(self, name: str, seconds: float) -> None:
        """An actor delivered its first trajectory, `seconds` after it joined."""
        if name in self._slots:
            self._slots[name] = Crashes()
        lost_at = self._lost_at.pop(name, None)
        if lost_at is not None:
            away = time.monotonic() - lost_at
            self._report.tell(
                "actor_delivers",
                f"actor {name} delivers again, {away:.1f} s after it was lost ({seconds:.1f} s after it joined,"
                " rebuilding lanes included)",
                brief=f"actor {name} delivers again after {away:.1f} s",
                actor=name,
            )

    def _stop(self, failure: str | None = None) -> None:
        """Ask the learner to save and end. The run ends with its summary."""
        self._failure = self._failure or failure
        if self._learner_due is not None:
            self._start_learner()  # Only a learner can summarize its newest checkpoint.
        self._status.state = "stopping"
        self._workers.stop_learner()
        self._deadline = self._deadline or self._awake + STOP_SECONDS

    def _start_learner(self) -> None:
        self._learner_due = None
        self._status.learner_started(self._workers.start_learner())
        self._workers.tell_wanted(self._wanted)
        self._heard, self._silent_after = self._awake, self._awake + LEARNER_START_SECONDS

    def _look_after_sockets(self) -> None:
        """Restore a removed folder of sockets, so that restarted actors find the learner. The learner makes its socket
        file again when it sees that the file is gone."""
        if self._sockets is None:
            return
        try:
            if self._sockets.restore():
                self._report.tell("warning", f"{self._sockets.path} was removed, and is made again")
            self._sockets_lost = False
        except OSError as error:
            if not self._sockets_lost:
                self._report.tell("warning", f"{self._sockets.path} is gone, so that no actor can join: {error}")
            self._sockets_lost = True

    def _lose_patience_with_learner(self) -> None:
        """The learner hangs: a new one goes on from the newest checkpoint."""
        self._heard = self._silent_after = math.inf
        text = "the learner has given no sign of life for too long"
        if self._workers.kill_learner():
            self._report.tell("warning", f"{text} and is replaced")
        else:
            self._stop(f"{text}, and a thread cannot be killed")

    def _restart_actors_that_do_not_join(self) -> None:
        """Restart actors that have not said hello in time. Call this only when the learner has read all messages:
        before that, an actor may only be waiting for the learner."""
        now = time.monotonic()
        for name in [name for name, since in self._joining.items() if now - since > START_SECONDS]:
            del self._joining[name]
            self._report.tell("warning", f"actor {name} has not said hello within {START_SECONDS:.0f} s")
            self._workers.restart_actor(name)

    @property
    def _wanted(self) -> list[str]:
        """The names of the actors that run or will be started again."""
        return [*self._slots, *([WITNESS] if self._witness else [])]

    def _start_actor(self, name: str, again: bool = False) -> None:
        self._started_lives += 1
        self._lives[name] = self._started_lives
        pid = self._pids[name] = self._workers.start_actor(name, self._started_lives)
        if name == WITNESS:
            return  # The run does not wait for the witness, and the status does not show it.
        self._joining[name] = time.monotonic()
        self._status.actor_started(name, pid, self._started_lives, again)
        if again:
            text = f"actor {name} was started again"
            self._report.tell("actor_restarted", text, False, actor=name, pid=pid)

    def _lost_learner(self, code: int, last_line: str) -> None:
        self._heard = self._silent_after = math.inf
        if code == USER_ERROR:
            raise UserError(last_line.removeprefix("learner: "))
        cause = f"the learner {end_of(code, last_line)}"
        backoff = self._learner_crashes.next_backoff() if self._execution.can_restart else None
        if backoff is None or self._deadline is not None:
            raise RunFailed(self._failure or cause)
        self._learner_due = time.monotonic() + backoff
        self.restarts["learner_restarts"] += 1
        text = f"{cause}; it starts again from its newest checkpoint {when(backoff)}"
        self._status.lose_learner()
        self._report.tell("learner_lost", text, code=code)

    def _lost_actor(self, ended: ActorExit) -> None:
        actor, life, code, last_line = ended.actor, ended.life, ended.code, ended.last_line
        self._workers.tell_lost(life)
        hung = self._hung.pop(life, None)
        if self._lives.get(actor) != life:
            return  # Another process has this actor's place already.
        self._joining.pop(actor, None)
        if actor == WITNESS and self._deadline is None:
            self._lost_witness(ended)
        if self._deadline is not None or actor not in self._slots:
            return
        if code == USER_ERROR and not self._learning:
            raise UserError(last_line.removeprefix(f"actor {actor}: "))
        if code == ENVIRONMENT_ERROR and not self._learning:
            self._stop(last_line.removeprefix(f"actor {actor}: "))  # Another process would fail alike.
            return
        cause = f"actor {actor} {hung} and was killed" if hung else f"actor {actor} {end_of(code, last_line)}"
        # With exit code 0, the run is over in a moment, unless the actor ended by itself, or the learner is lost in
        # that moment and the next learner needs the actor.
        dismissed = code == SUCCESS
        if not self._execution.can_restart:
            if not dismissed:
                self._stop(cause)
            return
        backoff = self._slots[actor].next_backoff()
        if backoff is not None and dismissed:
            self._due[actor] = time.monotonic() + max(backoff, DISMISSED_SECONDS)
            return
        if backoff is not None:
            self._due[actor] = time.monotonic() + backoff
            self._lost_at.setdefault(actor, time.monotonic())
            self.restarts["actor_restarts"] += 1
            text = f"{cause}; it starts again {when(backoff)}"
            self._status.lose_actor(actor)
            self._report.tell("actor_lost", text, actor=actor, pid=self._pids[actor], code=code)
            return
        del self._slots[actor]
        self._workers.tell_wanted(self._wanted)
        text = f"{cause}; it is given up after {CRASHES_ALLOWED} starts in a row"
        self._report.tell("actor_retired", text, actor=actor, pid=self._pids[actor], code=code)
        self._status.actor_removed(actor)
        if not self._slots:
            self._stop(f"no actor is left: {cause}")

    def _lost_witness(self, ended: ActorExit) -> None:
        """The run goes on without the witness. Meanwhile the learner asks other actors for second collections."""
        given_up = ended.code in (USER_ERROR, ENVIRONMENT_ERROR)  # Another process would fail alike.
        backoff = None if given_up or self._witness is None else self._witness.next_backoff()
        if backoff is not None:
            self._due[WITNESS] = time.monotonic() + (backoff or DISMISSED_SECONDS)
            return
        self._witness = None
        self._workers.tell_wanted(self._wanted)
        cause = end_of(ended.code, ended.last_line.removeprefix(f"{WITNESS}: "))
        self._report.tell("note", f"the process that collects rollouts a second time {cause}; it is not started again")

    def _adjust_actors(self) -> None:
        """Follow the requests of `launch.py actors`. The number of threads cannot change."""
        for count in requests(self._execution.run_dir) if self._execution.can_restart else ():
            self._have_actors(count)

    def _have_actors(self, number: int) -> None:
        had = self._slots
        self._slots = {name: had.get(name) or Crashes() for name in map(str, range(number))}
        self._workers.tell_wanted(self._wanted)
        for name in sorted(had.keys() - self._slots.keys(), key=int):
            self._due.pop(name, None)
            self._joining.pop(name, None)
            self._workers.end_actor(name)
            self._status.actor_removed(name)
            self._report.tell("actor_retired", f"actor {name} is not wanted any more", False, actor=name)
        for name in sorted(self._slots.keys() - had.keys(), key=int):
            self._start_actor(name)
        self._report.tell("note", f"now with {number} actors")
