"""Who takes part: what actors say of themselves, and which of them are there, hang or have gone.

The supervisor decides about processes. The roster knows who is at the other end of each connection.
"""

import math
import re
import statistics
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from queue import Empty
from typing import Any

from learner.actor_record import ActorRecord
from learner.launcher import Launcher
from learner.refusals import Quota, Refusals
from protocol.errors import ProtocolError
from protocol.events import ActorDelivers, ActorHangs, ActorHello, ActorJoined, ActorLost, Actors, Event
from protocol.execution import WITNESS, Execution, is_launched, title_of
from protocol.experiment import Experiment
from protocol.messages import Hello, Message, Progress, Ready, Refusal, Stop, Welcome
from protocol.snapshot import PolicySnapshot
from protocol.spaces import Spaces
from protocol.text import differences_in_words, one_line
from protocol.transport import LearnerSocket, Received

GATHERING_SECONDS = 5.0  # Once the first actor has joined, lanes wait that long for the others.
FAREWELL_SECONDS = 1.0  # Remote actors have that long to hear that the run is over. Later they find out by themselves.
PROBING_SECONDS = 1.0  # When a connection was lost, the learner looks that long whose it was.
MAX_REMOTE = 1024  # So many actors of other machines may take part: each is looked at several times a second.
REPORT_SECONDS = 1.0  # The supervisor is told about the actors that often.
ACTOR_NAME = re.compile(r"[A-Za-z0-9.-]{1,64}")


class Roster:
    """The actors that take part in one run, by the identities of their connections."""

    def __init__(
        self,
        socket: LearnerSocket,
        experiment: Experiment,
        execution: Execution,
        launcher: Launcher,
        on_leave: Callable[[bytes, bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_leave` is called with the identity of an actor that has gone, and whether a replacement will come."""
        self.actors: dict[bytes, ActorRecord] = {}
        self.spaces: Spaces | None = None
        self.observations = ""  # How the first actor reads the observations.
        self.fingerprint: dict[str, str] | None = None
        self.libraries: dict[str, str] | None = None  # Packages of the environment, with versions.
        self.refusals = Refusals(clock)
        self._socket, self._experiment, self._run_id = socket, experiment, execution.run_id
        self._launcher, self._on_leave, self._clock = launcher, on_leave, clock
        self._report, self._warn = launcher.report, launcher.warn
        self._step_timeout = execution.step_timeout
        self._wanted = set(execution.actors)  # whom the supervisor starts (again)
        self._gathering = True  # whether lanes wait for actors that have not joined yet
        self._gathering_since: float | None = None  # None counts from the first actor's joining
        self._waits_for_replacements = False  # whether a lost actor's lanes wait for the one that replaces it
        self._newest_hello: dict[str, tuple[int, int]] = {}  # (life, connection) of this machine's actors by name.
        self._ended_lives: set[int] = set()  # Processes of this machine's actors that have ended.
        self._news = Quota(clock)  # Limits how often remote actors are reported.
        self._next_report = -math.inf
        self._listened = -math.inf  # when the last message came, or the last look found none
        self._probing_until = -math.inf
        self._unreachable: list[bytes] = []  # actors whose connection has gone

    @property
    def ready(self) -> list[bytes]:
        """The actors that can host lanes, in the order in which they joined."""
        return [identity for identity, record in self.actors.items() if record.ready and not record.is_witness]

    @property
    def acting_share(self) -> float | None:
        """The mean share of their time that actors spend acting, as far as they have told."""
        shares = [record.acting_share for record in self.actors.values() if not record.is_witness]
        known = [share for share in shares if share is not None]
        return statistics.fmean(known) if known else None

    @property
    def awaits_witness(self) -> bool:
        """Whether an actor that only collects rollouts a second time is to come."""
        return WITNESS in self._wanted and self._witness is None

    @property
    def _witness(self) -> bytes | None:
        return next((i for i, record in self.actors.items() if record.ready and record.is_witness), None)

    def sharers(self) -> int:
        """Among how many actors the lanes are to be shared: those that are ready, or whom one still waits for."""
        ready, wanted = self.ready, len(self._wanted - {WITNESS})
        if self._gathering:
            now, since, patience = self._clock(), self._gathering_since, self._step_timeout
            if since is None:
                since = min((self.actors[identity].joined for identity in ready), default=now)
                patience = GATHERING_SECONDS
            self._gathering = len(ready) < wanted and now - since < patience
        return max(len(ready), wanted if self._gathering else 1)

    def wait_for_replacements(self) -> None:
        """From now on, the lanes of an actor that was lost wait for the one that replaces it."""
        self._waits_for_replacements = self._gathering = True
        self._gathering_since = self._clock()

    def others_than(self, host: bytes) -> list[bytes]:
        """Who may collect a rollout of `host`'s a second time, in another process: the witness, where it is there.

        A process that hosts no lanes differs from all that do: in its age, and in what else it has stepped.
        """
        if self._witness is not None:
            return [self._witness]
        process = self.actors[host].local, self.actors[host].pid
        return [i for i in self.ready if (self.actors[i].local, self.actors[i].pid) != process]

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "libraries": self.libraries}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fingerprint, self.libraries = state["fingerprint"], state.get("libraries")
        if self.fingerprint is not None:
            self.fingerprint.setdefault("hashing", "fixed")  # Checkpoints of older releases do not say it.

    def admits(self, received: Received) -> bool:
        """Whether a message may be listened to; its sender was heard then."""
        identity, record = received.identity, self.actors.get(received.identity)
        self._listened = self._clock()
        if not self._socket.allows(received.user):
            self.refuse(identity, "revoked key", "its key is no longer allowed")
            return False
        if record is not None:
            if record.user != received.user:
                self.refuse(identity, "wrong user", f"not sent with the key that said hello as {record.name}")
                return False
            record.last_heard = self._listened
        return True

    def welcome(self, received: Received, hello: Hello) -> None:
        """Take an actor in that has said hello, or refuse it."""
        identity, user, local = received.identity, received.user, received.local
        if identity in self.actors:
            return  # it has nothing to do, and makes sure that it is known
        if ACTOR_NAME.fullmatch(hello.actor) is None or is_launched(hello.actor) != local:
            self.refuse(identity, "name", "an actor's name that is none, or one of this machine's")
            return
        if self.spaces is None and self._wanted and not local:
            return  # this machine's say what is right; it will say hello again
        if hello.actor == WITNESS and not any(record.working for record in self.actors.values()):
            return  # some simulators are alone on a machine: those who act come first
        if not local and sum(not record.local for record in self.actors.values()) >= MAX_REMOTE:
            self.refuse(identity, "too many", f"{MAX_REMOTE} actors of other machines take part already")
            return
        namesakes = [other for other, record in self.actors.items() if record.name == hello.actor]
        if self._is_past(identity, hello, namesakes, local):
            self.refusals.counts["past life"] += 1
            return
        if any(self.actors[other].user != user for other in namesakes):
            self.refuse(identity, "wrong user", f"another key has said hello as {hello.actor}")
            return
        if self.fingerprint is None:
            self.fingerprint = hello.fingerprint
        elif hello.fingerprint != self.fingerprint and self._experiment.schedule != "async":
            theirs = differences_in_words(hello.fingerprint, self.fingerprint)
            reason = f"an actor that would compute other numbers than the run's first: {theirs}"
            self.refuse(identity, "fingerprint", reason)
            return
        for other in namesakes:
            self.forget(other)  # A newer process or connection has replaced it.
        if local:
            self._newest_hello[hello.actor] = hello.life, hello.connection
        now = self._clock()
        self.actors[identity] = ActorRecord(
            hello.actor, user, hello.life, hello.connection, hello.pid, local, joined=now, last_heard=now
        )
        self.send(identity, Welcome(self._run_id, self._experiment))
        self._announce(self.actors[identity], ActorHello(hello.actor))

    def _is_past(self, identity: bytes, hello: Hello, namesakes: list[bytes], local: bool) -> bool:
        """Whether a Hello was said by a process that is no more, or over a connection that is no more.

        An idle actor repeats its Hello. After it was killed, the last one may wait here as long as an update takes, and
        its replacement may have said hello before it is read.
        """
        age = hello.life, hello.connection
        if local and (hello.life in self._ended_lives or age < self._newest_hello.get(hello.actor, age)):
            return True
        known = [(self.actors[other].life, self.actors[other].connection) for other in namesakes]
        return any(age < other for other in known) or (bool(known) and not self._socket.reaches(identity))

    def make_ready(self, identity: bytes, ready: Ready) -> bool:
        """Let an actor have lanes, or refuse it; returns whether it was not ready before."""
        record = self.actors.get(identity)
        if record is None:  # it took so long that it was forgotten; once it is idle it says hello again
            self.refusals.counts["unknown sender"] += 1
            return False
        try:
            ready.spaces.check()
        except ProtocolError as error:
            self.refuse(identity, "spaces", str(error))
            return False
        if self.libraries not in (None, ready.libraries) and self._experiment.schedule != "async":
            theirs = differences_in_words(ready.libraries, self.libraries)
            reason = f"an actor whose environment is made of other versions than the run's first: {theirs}"
            self.refuse(identity, "fingerprint", reason)
            return False
        if self.spaces not in (None, ready.spaces):
            theirs = differences_in_words(vars(ready.spaces), vars(self.spaces))
            self.refuse(identity, "spaces", f"its environment is not the one of the run's first actor: {theirs}")
            return False
        if self.spaces is None:
            self.observations = one_line(ready.observations, 1000)
        self.spaces = ready.spaces
        if self.libraries is None:
            self.libraries = ready.libraries
        if record.ready:
            return False  # it was welcomed twice, and says twice that it is ready
        record.ready = True
        self._announce(record, ActorJoined(record.name))
        return True

    def note_progress(self, identity: bytes, progress: Progress) -> None:
        if identity in self.actors:
            self.actors[identity].progress.append(progress)
        else:
            self.refusals.counts["unknown sender"] += 1

    def note_work(self, identity: bytes, env_steps: int) -> None:
        """An actor has delivered so many environment steps that were accepted."""
        record = self.actors[identity]
        record.env_steps += env_steps
        if not record.working:
            record.working = True
            self._announce(record, ActorDelivers(record.name, self._clock() - record.joined))

    def note_task(self, identity: bytes) -> None:
        """An actor that had nothing to do has something now: its silence counts from here."""
        self.actors[identity].last_heard = self._clock()

    def send(self, identity: bytes, message: Message) -> None:
        if not self._socket.send(identity, message):
            self._unreachable.append(identity)

    def send_snapshot(self, identity: bytes, snapshot: PolicySnapshot) -> None:
        """Send a policy version, unless the actor has it."""
        versions = self.actors[identity].versions
        if snapshot.policy_version not in versions:
            versions.add(snapshot.policy_version)
            self.send(identity, snapshot)

    def keep_snapshots(self, versions: Collection[int]) -> None:
        """Only these versions will be sent from now on."""
        for record in self.actors.values():
            record.versions.intersection_update(versions)

    def refuse(self, identity: bytes, reason: str, text: str) -> None:
        """Refuse a message, counted by its `reason`; warn and answer with `text`, unless there is too much of that."""
        more = self.refusals.note(reason)
        if more is not None:
            self._warn(f"refused a message: {text}{more}")
            self._socket.send(identity, Refusal(text))
        self.forget(identity)

    def forget(self, identity: bytes) -> None:
        """An actor is gone, or takes part no longer."""
        record = self.actors.pop(identity, None)
        if record is None:
            return
        # One of another machine may leave for reasons of its own, and one that is not wanted any more is not lost.
        lost = record.local and record.name in self._wanted
        if lost and not record.is_witness and self._waits_for_replacements:
            self._gathering, self._gathering_since = True, self._clock()
        self._on_leave(identity, lost)

    def forget_lost(self) -> None:
        """Forget whose process or connection has ended."""
        while self._unreachable:
            identity = self._unreachable.pop()
            record = self.actors.get(identity)
            if record is not None and not record.local:
                self._announce(record, ActorLost(record.name))
            self.forget(identity)
        with suppress(Empty):
            while True:
                self._wanted = self._launcher.wanted.get_nowait()
        with suppress(Empty):
            while True:
                life = self._launcher.lost.get_nowait()
                self._ended_lives.add(life)
                for identity, record in list(self.actors.items()):
                    if record.local and record.life == life:
                        self.forget(identity)

    def forget_hung(self, busy: Collection[bytes | None]) -> None:
        """Forget who says nothing though it is one of the `busy`, or is not ready yet. The learner has to have read
        all that was sent."""
        now = self._listened = self._clock()
        for identity, record in list(self.actors.items()):
            silence = now - record.last_heard
            if silence > self._step_timeout and (identity in busy or not record.ready):
                remedy = "is replaced" if record.local else "loses its lanes"
                reason = f"has made no progress for {silence:.1f} s (--step-timeout {self._step_timeout:g})"
                if record.local or self._news.take():
                    self._warn(f"{title_of(record.name)} {reason} and {remedy}")
                if record.local:
                    self._ended_lives.add(record.life)  # it may yet say something before it is killed
                    self._report(ActorHangs(record.name, record.life, reason))
                self.forget(identity)

    def look_at_connections(self) -> None:
        """Count who was not let in, and find out at once who has gone, where no supervisor tells."""
        self._socket.listen_anew()
        seen = self._socket.disturbances()
        if seen.failed_handshakes:
            more = self.refusals.note("handshake", seen.failed_handshakes)
            if more is not None:
                self._warn(f"refused a connection: without a key that is allowed, or no actor at all{more}")
        now = self._clock()
        if seen.disconnections:
            self._probing_until = now + PROBING_SECONDS
        if now < self._probing_until:
            self._unreachable += [identity for identity in self.actors if not self._socket.reaches(identity)]

    def report(self, lanes: dict[bytes | None, list[int]], at_once: bool = False) -> None:
        """Tell what every actor is about, at most once a second; `lanes` are those that each hosts."""
        now = self._clock()
        if now < self._next_report and not at_once:
            return
        self._next_report = now + REPORT_SECONDS
        known = [entry for entry in self.actors.items() if not entry[1].is_witness]
        self._report(Actors(tuple(record.facts(lanes.get(i), self._listened) for i, record in known)))

    def dismiss(self, reason: str) -> None:
        """Tell every actor to stop, and give remote ones, whom nobody else tells, the time to hear it."""
        for identity in self.actors:
            self._socket.send(identity, Stop(reason))
        staying = [identity for identity, record in self.actors.items() if not record.local]
        until = time.monotonic() + FAREWELL_SECONDS
        while staying and time.monotonic() < until:
            time.sleep(0.01)
            staying = [identity for identity in staying if self._socket.reaches(identity)]

    def _announce(self, record: ActorRecord, event: Event) -> None:
        """Tell the supervisor of an actor; of remote ones, which anyone may pretend to be, no more than can be read."""
        if record.local or self._news.take():
            self._report(event)
