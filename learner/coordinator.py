"""Who does what: the handshake with actors, the grants of lanes, the acceptance of trajectories.

One authority decides about lanes, and this is it: it takes a lane from an actor that has gone, hangs or has more than
its share, and grants it to another with the next serial. The supervisor decides about processes.
"""

import math
import re
import statistics
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty
from typing import Any

from learner.faults import EnvironmentsFailed, Faults
from learner.lanes import LaneBorder, LaneRecord, balance
from learner.ledger import SampleLedger
from learner.refusals import Quota, Refusals
from learner.supervision import SHORTEST_PATIENCE, Supervision
from learner.witness import Witness
from protocol.errors import ProtocolError
from protocol.experiment import Experiment
from protocol.messages import (
    Grant,
    Hello,
    Message,
    Progress,
    Ready,
    Refusal,
    Release,
    SecondCollection,
    SecondGrant,
    Stop,
    Welcome,
)
from protocol.snapshot import PolicySnapshot
from protocol.spaces import Spaces
from protocol.text import differences_in_words, one_line
from protocol.trajectory import Trajectory
from protocol.transport import LearnerSocket, Received

POLL_SECONDS = 0.1  # how often a waiting learner looks whether it should stop, and whether an actor hangs
SERVING_SECONDS = 0.05  # at once, while there is something to learn from
GATHERING_SECONDS = 5.0  # that lanes wait for actors which have not joined yet, once the first has
SERVING_INTERVAL = 0.1  # seconds between looks for messages during an update
LOSSES_TO_WAIT = 2  # of a lane's hosts in a row, after which a lane waits for a lost actor's replacement
FAREWELL_SECONDS = 1.0  # that remote actors have to hear that the run is over; who acts meanwhile hears it later
PROBING_SECONDS = 1.0  # after a connection was lost, in which the learner finds out whose
MAX_LOSSES = 20  # of own actors in a row on one rollout of a lane, before the run ends: the lane brings them down
MAX_REMOTE = 1024  # actors of other machines that take part; every one is looked at several times a second
TOLERATED_SHARE_TOO_OLD = 0.25  # of the samples in `async`; more are worth a warning
REPORT_SECONDS = 1.0  # between reports about the actors
SHARE_WINDOW = 40  # messages of progress, twice a second, over which an actor's share of acting is taken
ACTOR_NAME = re.compile(r"[A-Za-z0-9.-]{1,64}")


@dataclass
class ActorRecord:
    """An actor that has said hello."""

    name: str
    user: str | None  # the key it connected with; None on this machine, and where there are no keys
    life: int
    connection: int
    pid: int  # for people
    local: bool  # whether the supervisor started it, and can kill it
    joined: float  # time.monotonic()
    last_heard: float  # time.monotonic() of its last message, or of its first grant after it had nothing to do
    ready: bool = False
    working: bool = False  # whether a trajectory of its was accepted
    versions: set[int] = field(default_factory=set)  # of the snapshots it was sent
    env_steps: int = 0  # that were accepted from it
    progress: deque[Progress] = field(default_factory=lambda: deque(maxlen=SHARE_WINDOW))  # its last words on that

    def state(self, hosts: bool) -> str:
        """What it is about, in a word; `hosts` says whether it has lanes."""
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


class Coordinator:
    """The learner's side of every conversation with actors."""

    def __init__(
        self,
        socket: LearnerSocket,
        experiment: Experiment,
        run_id: str,
        num_actors: int,
        total_iterations: int,
        step_timeout: float,
        supervision: Supervision,
    ) -> None:
        self.spaces: Spaces | None = None
        self.observations = ""  # what its parts are taken for, as the first actor says
        self.fingerprint: dict[str, str] | None = None
        self.libraries: dict[str, str] | None = None  # of the environment, and their versions
        self.ledger = SampleLedger()
        self.refusals = Refusals()
        self.first_grant_time: float | None = None  # time.monotonic()
        self.lanes_not_replayable = 0
        self.faults = Faults(experiment, supervision.warn)
        self.moved_global_random = False
        self.witness = Witness(experiment, total_iterations)
        self._socket = socket
        self._experiment = experiment
        self._run_id = run_id
        self._wanted = {str(index) for index in range(num_actors)}  # actors that the supervisor has, or starts again
        self._total_iterations = total_iterations
        self._step_timeout = step_timeout
        self._supervision = supervision
        self._report = supervision.report
        self._warn = supervision.warn
        self._actors: dict[bytes, ActorRecord] = {}
        self._gathering = True  # whether lanes wait for actors that have not joined yet
        self._gathering_since: float | None = None  # time.monotonic(); None counts from the first actor's joining
        self._wait_for_replacements = False  # whether a lost actor's lanes wait for the one that replaces it
        self._newest_hello: dict[str, tuple[int, int]] = {}  # of actors of this machine, by name: (life, connection)
        self._ended_lives: set[int] = set()  # of actors of this machine
        self._next_serving = 0.0  # time.monotonic()
        self._told_not_replayable = False
        self._next_look = 0.0  # time.monotonic()
        self._unbroken = 0.0  # seconds of serving since there was nothing to serve
        self._news = Quota()  # for the comings and goings of remote actors
        self._next_report = 0.0  # time.monotonic()
        self._listened = 0.0  # time.monotonic() of the last message, or of the last look that found none
        self._probing_until = 0.0  # time.monotonic()
        self._unreachable: list[bytes] = []  # actors whose connection has gone
        self._snapshots: dict[int, PolicySnapshot] = {}  # by version: the newest, and the one before
        self._arrived: deque[Trajectory] = deque()  # in `async`: accepted and not gathered, in the order of arrival
        self._gathered: list[Trajectory] = []  # and not trained on yet
        self._fresh: set[int] = set()  # lanes at work on a rollout that was granted with the newest version
        self._told_too_old = False
        first = LaneBorder.first(experiment)
        self._lanes = [LaneRecord({0: first}) for _ in range(experiment.num_lanes)]

    def wait_for_spaces(self) -> Spaces:
        """Serve until the first actor has told what the environment looks like."""
        while self.spaces is None:
            self._serve(POLL_SECONDS)
        return self.spaces

    def publish(self, snapshot: PolicySnapshot) -> None:
        """Broadcast a policy version, and grant every lane the rollouts that act with it."""
        version = snapshot.policy_version
        self._snapshots = {v: s for v, s in self._snapshots.items() if v == version - 1} | {version: snapshot}
        for record in self._actors.values():
            record.versions &= self._snapshots.keys()
        self._fresh.clear()
        self._offer_all()

    def gather(self, version: int) -> list[Trajectory]:
        """As many trajectories as there are lanes, for policy version `version` to learn from, in the order of their
        lanes and rollouts: everyone's rollout of that index, or in `async` the first to arrive."""
        if self._asynchronous:
            self._gathered = self._gather_first(version)
        else:
            while not all(version in lane.accepted for lane in self._lanes):
                self._serve(POLL_SECONDS)
            self._gathered = [lane.accepted[version] for lane in self._lanes]
            self._ask_for_witness(version)
            self.serve_waiting()  # for actors that have no lane yet have not been heard, where all was there already
        self._report_actors()
        return self._gathered

    def serve_waiting(self) -> None:
        """Handle what has arrived, without waiting: in `async`, lanes go on while the learner learns."""
        until = time.monotonic() + SERVING_SECONDS
        for _ in self._lanes:  # no more than that at once, lest a flood keep the learner from learning
            if not self._serve(0) or time.monotonic() > until:
                return

    def serve_meanwhile(self) -> None:
        """During an update: handle what has arrived now and then, so that actors can join and hear an answer."""
        self._supervision.check_stop()
        if time.monotonic() >= self._next_serving:
            self.serve_waiting()
            self._next_serving = time.monotonic() + SERVING_INTERVAL

    def trained_on(self) -> None:
        """Forget what was gathered, since it has been trained on; the lanes' trained border is now behind it."""
        for trajectory in self._gathered:
            self._count_faults(trajectory)
            self._lanes[trajectory.lane].forget(trajectory.rollout_index)
        self.ledger.train(self._experiment.env_steps_per_iteration)
        self.ledger.check(in_flight=sum(len(lane.accepted) for lane in self._lanes) * self._lane_steps)

    def trained_borders(self) -> list[LaneBorder]:
        """Every lane as of the border before the next rollout to train on."""
        return [lane.borders[min(lane.borders)] for lane in self._lanes]

    def restore(self, borders: list[LaneBorder]) -> None:
        """Continue from the lanes of a checkpoint; nothing may have been published yet."""
        for lane, border in zip(self._lanes, borders, strict=True):
            lane.borders = {border.rollout_index: border}
            lane.granted = border.rollout_index

    def finish(self, reason: str) -> None:
        """Tell every actor to stop, and give remote ones, whom nobody else tells, the time to hear it."""
        self._next_report = 0.0
        self._report_actors()
        for identity in self._actors:
            self._socket.send(identity, Stop(reason))
        staying = [identity for identity, record in self._actors.items() if not record.local]
        until = time.monotonic() + FAREWELL_SECONDS
        while staying and time.monotonic() < until:
            time.sleep(0.01)
            staying = [identity for identity in staying if self._socket.reaches(identity)]

    @property
    def reproducible(self) -> bool:
        """Whether the environments have given no sign that another run would go another way."""
        return not (self.lanes_not_replayable or self.moved_global_random or self.witness.differences)

    @property
    def acting_share(self) -> float | None:
        """The mean share of their time that actors spend acting, as far as they have told."""
        shares = [record.acting_share for record in self._actors.values()]
        known = [share for share in shares if share is not None]
        return statistics.fmean(known) if known else None

    @property
    def _asynchronous(self) -> bool:
        return self._experiment.schedule == "async"

    @property
    def _lane_steps(self) -> int:
        return self._experiment.lane_size * self._experiment.rollout_length

    def _gather_first(self, version: int) -> list[Trajectory]:
        """The first trajectories to arrive that are not too old; while they are learned from, all lanes go on."""
        gathered: list[Trajectory] = []
        while len(gathered) < len(self._lanes):
            if not self._arrived:
                self._offer_all()
            while not self._arrived:
                self._serve(POLL_SECONDS)
            trajectory = self._arrived.popleft()
            if version - trajectory.policy_version <= self._experiment.max_lag:
                gathered.append(trajectory)
            else:
                self._expire(trajectory)
        self._offer_all()
        return sorted(gathered, key=lambda trajectory: (trajectory.lane, trajectory.rollout_index))

    def _expire(self, trajectory: Trajectory) -> None:
        self._lanes[trajectory.lane].forget(trajectory.rollout_index)
        self.ledger.expire(self._lane_steps, "too_old")
        share = self.ledger.dropped["too_old"] / self.ledger.produced
        if share > TOLERATED_SHARE_TOO_OLD and not self._told_too_old:
            self._told_too_old = True
            self._warn(
                f"{share:.0%} of the samples are dropped, lane {trajectory.lane}'s among them: they are more than"
                f" --max-lag {self._experiment.max_lag} versions old when they arrive. Raise it, or shorten"
                " --rollout-length"
            )

    def _serve(self, timeout: float) -> bool:
        """Handle one message, or what is to be done when there is none; returns whether there was one."""
        began = time.monotonic()
        self._supervision.check_stop()
        self._forget_lost()
        received = self._socket.receive(0)
        if received is None:
            self._unbroken = 0.0
        # Silence is an actor's own, not the learner's being busy, where nothing waits; and in a flood, which never
        # ends, where every sender has had its turn for long enough.
        self._look_after_actors(silence_counts=received is None or self._unbroken > self._step_timeout)
        if received is None:
            self._supervision.alive(max(self._step_timeout, SHORTEST_PATIENCE), listening=True)
            self._report_actors()
            received = self._socket.receive(timeout) if timeout else None
            if received is None:
                return False
            began = time.monotonic()
        self._handle(received)
        self._unbroken += time.monotonic() - began
        return True

    def _handle(self, received: Received) -> None:
        identity, message, record = received.identity, received.message, self._actors.get(received.identity)
        self._listened = time.monotonic()
        if not self._socket.allows(received.user):
            self._refuse(identity, "revoked key", "its key is no longer allowed")
            return
        if record is not None:
            if record.user != received.user:
                self._refuse(identity, "wrong user", f"not sent with the key that said hello as {record.name}")
                return
            record.last_heard = self._listened
        match message:
            case Hello():
                self._welcome(received, message)
            case Ready():
                self._make_ready(identity, message)
            case Trajectory():
                self._accept(identity, message)
            case SecondCollection():
                self._hear_witness(identity, message)
            case Progress() if record is None:
                self.refusals.counts["unknown sender"] += 1
            case Progress():
                if record is not None:
                    record.progress.append(message)
            case ProtocolError():
                self._refuse(identity, "malformed", str(message))
            case _:
                self._refuse(identity, "wrong kind", f"a learner takes no {type(message).__name__}")

    def _welcome(self, received: Received, hello: Hello) -> None:
        identity, user, local = received.identity, received.user, received.local
        if identity in self._actors:
            return  # it has nothing to do, and makes sure that it is known
        if ACTOR_NAME.fullmatch(hello.actor) is None or hello.actor.isdecimal() != local:
            self._refuse(identity, "name", "an actor's name that is none, or one of this machine's")
            return
        if self.spaces is None and self._wanted and not local:
            return  # this machine's say what is right; it will say hello again
        if not local and sum(not record.local for record in self._actors.values()) >= MAX_REMOTE:
            self._refuse(identity, "too many", f"{MAX_REMOTE} actors of other machines take part already")
            return
        namesakes = [other for other, record in self._actors.items() if record.name == hello.actor]
        if self._is_past(identity, hello, namesakes, local):
            self.refusals.counts["past life"] += 1
            return
        if any(self._actors[other].user != user for other in namesakes):
            self._refuse(identity, "wrong user", f"another key has said hello as {hello.actor}")
            return
        if self.fingerprint is None:
            self.fingerprint = hello.fingerprint
        elif hello.fingerprint != self.fingerprint and not self._asynchronous:
            theirs = differences_in_words(hello.fingerprint, self.fingerprint)
            reason = f"an actor that would compute other numbers than the run's first: {theirs}"
            self._refuse(identity, "fingerprint", reason)
            return
        for other in namesakes:
            self._forget(other)  # its process was replaced, or its connection
        if local:
            self._newest_hello[hello.actor] = hello.life, hello.connection
        now = time.monotonic()
        self._actors[identity] = ActorRecord(
            hello.actor, user, hello.life, hello.connection, hello.pid, local, joined=now, last_heard=now
        )
        self._send(identity, Welcome(self._run_id, self._experiment))
        self._announce(self._actors[identity], "actor_hello")

    def _is_past(self, identity: bytes, hello: Hello, namesakes: list[bytes], local: bool) -> bool:
        """Whether a Hello was said by a process that is no more, or over a connection that is no more.

        An idle actor repeats its Hello. After it was killed, the last one may wait here as long as an update takes, and
        its replacement may have said hello before it is read.
        """
        age = hello.life, hello.connection
        if local and (hello.life in self._ended_lives or age < self._newest_hello.get(hello.actor, age)):
            return True
        known = [(self._actors[other].life, self._actors[other].connection) for other in namesakes]
        return any(age < other for other in known) or (bool(known) and not self._socket.reaches(identity))

    def _make_ready(self, identity: bytes, ready: Ready) -> None:
        record = self._actors.get(identity)
        if record is None:  # it took so long that it was forgotten; once it is idle it says hello again
            self.refusals.counts["unknown sender"] += 1
            return
        try:
            ready.spaces.check()
        except ProtocolError as error:
            self._refuse(identity, "spaces", str(error))
            return
        if self.libraries not in (None, ready.libraries) and not self._asynchronous:
            theirs = differences_in_words(ready.libraries, self.libraries)
            reason = f"an actor whose environment is made of other versions than the run's first: {theirs}"
            self._refuse(identity, "fingerprint", reason)
            return
        if self.spaces not in (None, ready.spaces):
            theirs = differences_in_words(vars(ready.spaces), vars(self.spaces))
            self._refuse(identity, "spaces", f"its environment is not the one of the run's first actor: {theirs}")
            return
        if self.spaces is None:
            self.observations = one_line(ready.observations, 1000)
        self.spaces = ready.spaces
        if self.libraries is None:
            self.libraries = ready.libraries
        if record.ready:
            return  # it was welcomed twice, and says twice that it is ready
        record.ready = True
        self._announce(record, "actor_ready")
        self._rebalance()

    def _accept(self, identity: bytes, trajectory: Trajectory) -> None:
        lane = self._lanes[trajectory.lane] if 0 <= trajectory.lane < len(self._lanes) else None
        if (
            lane is None
            or trajectory.run_id != self._run_id
            or lane.owner != identity
            or trajectory.serial != lane.serial
            or not lane.outstanding
            or trajectory.rollout_index != lane.newest.rollout_index
            or not self._acted_with_a_granted_version(trajectory)
        ):
            self.ledger.drop(self._lane_steps, "stale")
            return
        assert self.spaces is not None
        try:
            trajectory.check(self._experiment, self.spaces)
            lane.newest.check_followed_by(trajectory)
        except ProtocolError as error:
            self.ledger.drop(self._lane_steps, "malformed")
            self._refuse(identity, "malformed", f"lane {trajectory.lane}, rollout {trajectory.rollout_index}: {error}")
            return
        self.ledger.accept(self._lane_steps)
        border = lane.newest.after(trajectory)
        lane.accepted[trajectory.rollout_index] = trajectory
        if self._asynchronous:
            self._arrived.append(trajectory)
        lane.borders[border.rollout_index] = border
        lane.losses = 0
        record = self._actors[identity]
        record.env_steps += self._lane_steps
        if not record.working:
            record.working = True
            self._announce(record, "actor_working", seconds=time.monotonic() - record.joined)
        self._note_environments(trajectory)
        if lane.moving_to is not None:
            self._move(trajectory.lane, lane.moving_to)
        self._offer(trajectory.lane)

    def _note_environments(self, trajectory: Trajectory) -> None:
        """Tell the user what the environments of a trajectory did wrong."""
        if trajectory.restarted.any():
            self._tell_not_replayable(f"an environment of lane {trajectory.lane} began a fresh episode")
        self._note_global_random(trajectory)
        self.faults.tell(trajectory, self._lanes[trajectory.lane].borders[trajectory.rollout_index])

    def _tell_not_replayable(self, sign: str) -> None:
        if not self._told_not_replayable:
            self._told_not_replayable = True
            self._warn(
                f"{self._experiment.env} does not repeat itself after reset(seed=…) and the same actions ({sign}), so"
                " this run is not reproducible. If its reset leaks state, --rebuild-env helps; a wrapper with a memory"
                " across episodes must forget it in reset; environments of a process must not share what changes"
            )

    def _note_global_random(self, trajectory: Trajectory) -> None:
        if trajectory.moved_global_random and not self.moved_global_random:
            self.moved_global_random = True
            self._warn(
                f"{self._experiment.env} draws from the global `random` or `np.random`, so this run is not"
                " reproducible; let it draw from self.np_random, which reset(seed=…) seeds"
            )

    def _count_faults(self, trajectory: Trajectory) -> None:
        """Count what was trained on, and so once, whoever delivered it and however often."""
        self.lanes_not_replayable += bool(trajectory.restarted.any())
        self.faults.train(trajectory, self._lanes[trajectory.lane].borders[trajectory.rollout_index])

    def _offer_all(self) -> None:
        for index in range(len(self._lanes)):
            self._offer(index)

    def _offer(self, index: int) -> None:
        """Grant a lane all that can be granted."""
        lane = self._lanes[index]
        if not lane.outstanding:
            self._fresh.discard(index)
        if lane.owner is None or lane.moving_to is not None:
            return
        while (version := self._version_to_grant(lane)) is not None:
            record = self._actors[lane.owner]
            rollout_index = lane.granted
            self._send_snapshot(lane.owner, version)
            if not lane.outstanding:
                record.last_heard = time.monotonic()
            state = lane.newest.state() if rollout_index > 0 and not lane.hosted else None
            lane.hosted = True
            lane.granted += 1
            self._fresh.add(index)
            self._send(lane.owner, Grant(self._run_id, index, rollout_index, version, lane.serial, state))
            if self.first_grant_time is None:
                self.first_grant_time = time.monotonic()

    def wait_for_witness(self, seconds: float) -> None:
        """Serve until the rollout that is being collected a second time is there, for `seconds` at most."""
        until = time.monotonic() + seconds
        while self.witness.asked is not None and time.monotonic() < until:
            self._serve(POLL_SECONDS)

    def _ask_for_witness(self, version: int) -> None:
        """Let a rollout that was gathered be collected a second time, in another process where there is one."""
        index = self.witness.choose(version, self._lanes, self.ledger.produced)
        owner = None if index is None else self._lanes[index].owner
        if index is None or owner is None:
            return
        lane, host = self._lanes[index], self._actors[owner]
        ready = [identity for identity, record in self._actors.items() if record.ready]
        others = [i for i in ready if (self._actors[i].local, self._actors[i].pid) != (host.local, host.pid)]
        if not (others or host.ready):
            return
        identity = others[self.witness.rollouts % len(others)] if others else owner
        border, trajectory = lane.borders[version], lane.accepted[version]
        number = self.witness.ask(identity, bool(others), border, trajectory)
        state = border.state() if version > 0 else None
        acted_with = trajectory.policy_version
        self._send_snapshot(identity, acted_with)
        self._send(identity, SecondGrant(Grant(self._run_id, index, version, acted_with, number, state)))

    def _hear_witness(self, identity: bytes, answer: SecondCollection) -> None:
        asked, second = self.witness.asked, answer.trajectory
        if asked is None or asked.witness != identity or asked.number != answer.serial:
            self.refusals.counts["unknown sender"] += 1
            return
        if second is None:
            self.witness.forget(identity)
            return
        assert self.spaces is not None
        try:
            second.check(self._experiment, self.spaces)
            if (second.lane, second.rollout_index) != (asked.trajectory.lane, asked.trajectory.rollout_index):
                raise ProtocolError("it is not what was asked for")
        except ProtocolError as error:
            self._refuse(identity, "malformed", f"a second collection of a rollout: {error}")
            return
        self._note_global_random(second)
        difference = self.witness.compare(second)
        if difference is not None:
            where = "another process" if asked.elsewhere else "fresh environments"
            self._tell_not_replayable(f"{difference} in {where}, with the same seed and actions")

    def _version_to_grant(self, lane: LaneRecord) -> int | None:
        """The policy version for the lane's next rollout; None where it is too early to grant it, or too late."""
        if self._asynchronous:
            # One at a time, so that it is acted with the newest version; and none once a batch is there, or will be
            # without the stragglers, since more would only grow old.
            wanted = not lane.outstanding and len(self._arrived) + len(self._fresh) < len(self._lanes)
            return max(self._snapshots, default=None) if wanted else None
        if lane.granted >= self._total_iterations:
            return None
        version = self._experiment.acting_version(lane.granted)
        return version if version in self._snapshots else None

    def _acted_with_a_granted_version(self, trajectory: Trajectory) -> bool:
        if self._asynchronous:
            return 0 <= trajectory.policy_version <= max(self._snapshots)
        return trajectory.policy_version == self._experiment.acting_version(trajectory.rollout_index)

    def _rebalance(self) -> None:
        """Let every lane have a host, and every actor its share."""
        ready = [identity for identity, record in self._actors.items() if record.ready]
        if self._gathering:
            now, since, patience = time.monotonic(), self._gathering_since, self._step_timeout
            if since is None:
                since = min((self._actors[identity].joined for identity in ready), default=now)
                patience = GATHERING_SECONDS
            self._gathering = len(ready) < len(self._wanted) and now - since < patience
        sharers = max(len(ready), len(self._wanted) if self._gathering else 1)
        owners = [lane.moving_to or lane.owner for lane in self._lanes]
        for index, wanted in enumerate(balance(owners, ready, quota=-(-len(self._lanes) // sharers))):
            lane = self._lanes[index]
            if wanted == lane.owner:
                lane.moving_to = None
            elif lane.owner is None or not self._is_at_work_on(index):
                self._move(index, wanted)
            else:
                lane.moving_to = wanted
            self._offer(index)

    def _move(self, index: int, owner: bytes | None) -> None:
        """Give a lane another host, and let the one it had forget it."""
        lane = self._lanes[index]
        if lane.owner is not None and lane.hosted:
            self._send(lane.owner, Release(index, lane.serial))
        lane.hand_over(owner)

    def _is_at_work_on(self, index: int) -> bool:
        """Whether the lane is the one that its host is stepping, as far as can be told from the order in which actors
        take their grants; the others wait for their turn."""
        owner = self._lanes[index].owner
        waiting = [
            (lane.newest.rollout_index, i)
            for i, lane in enumerate(self._lanes)
            if lane.owner == owner and lane.outstanding
        ]
        return min(waiting, default=None) == (self._lanes[index].newest.rollout_index, index)

    def _look_after_actors(self, silence_counts: bool) -> None:
        """Find actors that hang, and lanes that nobody hosts; a few times a second is enough."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + POLL_SECONDS
        if silence_counts:
            self._listened = now
            self._forget_hung(now)
        self._socket.listen_anew()
        self._look_at_connections(now)
        if any(lane.owner is None for lane in self._lanes):
            self._rebalance()

    def _forget_hung(self, now: float) -> None:
        busy = {lane.owner for lane in self._lanes if lane.outstanding}
        busy.add(self.witness.asked.witness if self.witness.asked else None)
        for identity, record in list(self._actors.items()):
            silence = now - record.last_heard
            if silence > self._step_timeout and (identity in busy or not record.ready):
                remedy = "is replaced" if record.local else "loses its lanes"
                reason = f"has made no progress for {silence:.1f} s (--step-timeout {self._step_timeout:g})"
                if record.local or self._news.take():
                    self._warn(f"actor {record.name} {reason} and {remedy}")
                if record.local:
                    self._ended_lives.add(record.life)  # it may yet say something before it is killed
                    self._report({"event": "kill", "actor": record.name, "life": record.life, "reason": reason})
                self._forget(identity)

    def _report_actors(self) -> None:
        """Tell what every actor is about, at most once a second."""
        now = time.monotonic()
        if now < self._next_report:
            return
        self._next_report = now + REPORT_SECONDS
        lanes: dict[bytes | None, list[int]] = {}
        for index, lane in enumerate(self._lanes):
            lanes.setdefault(lane.owner, []).append(index)
        actors = [
            {
                "name": record.name,
                "life": record.life,
                "pid": record.pid,
                "state": record.state(hosts=identity in lanes),
                "lanes": lanes.get(identity, []),
                "env_steps": record.env_steps,
                "acting": record.acting_share,
                "seconds_silent": max(0.0, self._listened - record.last_heard),
            }
            for identity, record in self._actors.items()
        ]
        self._report({"event": "actors", "actors": actors})

    def _look_at_connections(self, now: float) -> None:
        """Count who was not let in, and find out at once who has gone, where no supervisor tells."""
        seen = self._socket.disturbances()
        if seen.failed_handshakes:
            more = self.refusals.note("handshake", seen.failed_handshakes)
            if more is not None:
                self._warn(f"refused a connection: without a key that is allowed, or no actor at all{more}")
        if seen.disconnections:
            self._probing_until = now + PROBING_SECONDS
        if now < self._probing_until:
            self._unreachable += [identity for identity in self._actors if not self._socket.reaches(identity)]

    def _forget_lost(self) -> None:
        while self._unreachable:
            identity = self._unreachable.pop()
            record = self._actors.get(identity)
            if record is not None and not record.local:
                self._announce(record, "actor_gone")
            self._forget(identity)
        with suppress(Empty):
            while True:
                self._wanted = self._supervision.wanted.get_nowait()
        while True:
            try:
                life = self._supervision.lost.get_nowait()
            except Empty:
                return
            self._ended_lives.add(life)
            for identity, record in list(self._actors.items()):
                if record.local and record.life == life:
                    self._forget(identity)

    def _announce(self, record: ActorRecord, event: str, **facts: Any) -> None:
        """Tell the supervisor of an actor; of remote ones, which anyone may pretend to be, no more than can be read."""
        if record.local or self._news.take():
            self._report({"event": event, "actor": record.name, **facts})

    def _refuse(self, identity: bytes, reason: str, text: str) -> None:
        """Refuse a message, counted by its `reason`; warn and answer with `text`, unless there is too much of that."""
        more = self.refusals.note(reason)
        if more is not None:
            self._warn(f"refused a message: {text}{more}")
            self._socket.send(identity, Refusal(text))
        self._forget(identity)

    def _send_snapshot(self, identity: bytes, version: int) -> None:
        """Send a policy version, unless the actor has it."""
        if version not in self._actors[identity].versions:
            self._actors[identity].versions.add(version)
            self._send(identity, self._snapshots[version])

    def _send(self, identity: bytes, message: Message) -> None:
        if not self._socket.send(identity, message):
            self._unreachable.append(identity)

    def _forget(self, identity: bytes) -> None:
        """An actor is gone: its lanes go to the others."""
        record = self._actors.pop(identity, None)
        if record is None:
            return
        self.witness.forget(identity)
        # One of another machine may leave for reasons of its own, and one that is not wanted any more is not lost.
        lost = record.local and record.name in self._wanted
        if lost and self._wait_for_replacements:
            self._gathering, self._gathering_since = True, time.monotonic()
        for index, lane in enumerate(self._lanes):
            if lane.owner == identity:
                if lost:
                    self._count_loss(index, lane)
                lane.hand_over(None)
            elif lane.moving_to == identity:
                lane.moving_to = None
        self._rebalance()

    def _count_loss(self, index: int, lane: LaneRecord) -> None:
        lane.losses += lane.outstanding
        if lane.losses >= LOSSES_TO_WAIT:
            # It may be too much for a process that has other lanes, such as a simulator that each can have one of.
            self._wait_for_replacements = self._gathering = True
            self._gathering_since = time.monotonic()
        if lane.losses > MAX_LOSSES:
            raise EnvironmentsFailed(
                f"{lane.losses} actors in a row were lost with rollout {lane.newest.rollout_index} of lane {index}"
                f" (environments {index * self._experiment.lane_size} and following)"
            )
