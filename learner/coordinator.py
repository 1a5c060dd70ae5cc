"""Who does what: the handshake with actors, the grants of lanes, the acceptance of trajectories, the sample ledger."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from learner.lanes import LaneBorder
from protocol.errors import ProtocolError
from protocol.experiment import Experiment
from protocol.messages import Grant, Hello, Message, Ready, Refusal, Stop, Welcome
from protocol.snapshot import PolicySnapshot
from protocol.spaces import Spaces
from protocol.trajectory import Trajectory
from protocol.transport import LearnerSocket

POLL_SECONDS = 0.1  # how often a waiting learner looks whether it should stop


@dataclass
class ActorRecord:
    """An actor that has said hello."""

    index: int
    ready: bool = False
    versions: set[int] = field(default_factory=set)  # of the snapshots it was sent


@dataclass
class LaneRecord:
    """A lane: who hosts it, and what came of it that is not trained on yet."""

    borders: dict[int, LaneBorder]  # by rollout index, from the trained border to the newest accepted
    owner: bytes | None = None
    serial: int = 0  # rises each time the lane changes hands
    hosted: bool = False  # whether the owner was granted it before, and so needs no state to begin from
    accepted: dict[int, Trajectory] = field(default_factory=dict)  # by rollout index

    @property
    def newest(self) -> LaneBorder:
        return self.borders[max(self.borders)]


class SampleLedger:
    """Where every env-step went that reached the learner: produced = trained + dropped + in flight."""

    def __init__(self) -> None:
        self.produced = 0
        self.trained = 0
        self.dropped: Counter[str] = Counter()

    @property
    def in_flight(self) -> int:
        return self.produced - self.trained - self.dropped.total()

    def end_run(self) -> None:
        """Nothing that is in flight will be trained on."""
        if self.in_flight:
            self.dropped["end_of_run"] += self.in_flight

    def as_dict(self) -> dict[str, Any]:
        return {
            "produced": self.produced,
            "trained": self.trained,
            "dropped": dict(sorted(self.dropped.items())),
            "in_flight": self.in_flight,
        }

    def settled(self) -> dict[str, Any]:
        """The ledger as a checkpoint keeps it: what is in flight will be produced again after a restart."""
        return self.as_dict() | {"produced": self.produced - self.in_flight, "in_flight": 0}

    def restore(self, saved: dict[str, Any]) -> None:
        self.produced, self.trained, self.dropped = saved["produced"], saved["trained"], Counter(saved["dropped"])


class Coordinator:
    """The learner's side of every conversation with actors. One authority decides about lanes, and this is it."""

    def __init__(
        self,
        socket: LearnerSocket,
        experiment: Experiment,
        run_id: str,
        num_actors: int,
        total_iterations: int,
        check_stop: Callable[[], None],
        warn: Callable[[str], None],
    ) -> None:
        self.spaces: Spaces | None = None
        self.fingerprint: dict | None = None
        self.ledger = SampleLedger()
        self.wait_seconds = 0.0  # spent waiting for trajectories
        self.first_grant_time: float | None = None  # time.monotonic()
        self.lanes_not_replayable = 0
        self._socket = socket
        self._experiment = experiment
        self._run_id = run_id
        self._num_actors = num_actors
        self._total_iterations = total_iterations
        self._check_stop = check_stop  # raises when the run should stop
        self._warn = warn
        self._actors: dict[bytes, ActorRecord] = {}
        self._snapshots: dict[int, PolicySnapshot] = {}  # by version: the newest, and the one before
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
        for rollout_index in self._experiment.rollouts_acting_with(version):
            for lane in range(len(self._lanes)):
                self._grant(lane, rollout_index)

    def gather(self, rollout_index: int) -> list[Trajectory]:
        """Every lane's trajectory of a rollout, in lane order."""
        started = time.monotonic()
        while not all(rollout_index in lane.accepted for lane in self._lanes):
            self._serve(POLL_SECONDS)
        self.wait_seconds += time.monotonic() - started
        return [lane.accepted[rollout_index] for lane in self._lanes]

    def trained_on(self, rollout_index: int) -> None:
        """Forget a rollout that has been trained on; the lanes' trained border is now behind it."""
        self.ledger.trained += self._experiment.env_steps_per_iteration
        for lane in self._lanes:
            del lane.accepted[rollout_index], lane.borders[rollout_index]

    def trained_borders(self) -> list[LaneBorder]:
        """Every lane as of the border before the next rollout to train on."""
        return [lane.borders[min(lane.borders)] for lane in self._lanes]

    def restore(self, borders: list[LaneBorder]) -> None:
        """Continue from the lanes of a checkpoint."""
        for lane, border in zip(self._lanes, borders, strict=True):
            lane.borders = {border.rollout_index: border}

    def finish(self, reason: str) -> None:
        """Tell every actor to stop."""
        for identity in self._actors:
            self._socket.send(identity, Stop(reason))

    def _serve(self, timeout: float) -> None:
        self._check_stop()
        received = self._socket.receive(timeout)
        if received is None:
            return
        identity, message = received
        match message:
            case Hello():
                self._welcome(identity, message)
            case Ready():
                self._make_ready(identity, message)
            case Trajectory():
                self._accept(identity, message)
            case ProtocolError():
                self._refuse(identity, str(message))
            case _:
                self._refuse(identity, f"a learner takes no {type(message).__name__}")

    def _welcome(self, identity: bytes, hello: Hello) -> None:
        if identity in self._actors:
            return  # it repeated itself before the answer arrived
        if self.fingerprint is None:
            self.fingerprint = hello.fingerprint
        elif hello.fingerprint != self.fingerprint:
            names = sorted(k for k in self.fingerprint if self.fingerprint[k] != hello.fingerprint.get(k))
            theirs = ", ".join(f"{k} {hello.fingerprint.get(k)} instead of {self.fingerprint[k]}" for k in names)
            self._refuse(identity, f"this actor would compute other numbers than the run's first: {theirs}")
            return
        for other, record in list(self._actors.items()):
            if record.index == hello.actor:
                self._forget(other)  # its process was replaced
        self._actors[identity] = ActorRecord(hello.actor)
        self._send(identity, Welcome(self._run_id, self._experiment))

    def _make_ready(self, identity: bytes, ready: Ready) -> None:
        record = self._actors.get(identity)
        if record is None or record.ready:
            self._refuse(identity, "said ready out of turn")
            return
        if self.spaces is None:
            self.spaces = ready.spaces
        elif ready.spaces != self.spaces:
            self._refuse(identity, f"its environment has {ready.spaces}, the run's first actor had {self.spaces}")
            return
        record.ready = True
        for index, lane in enumerate(self._lanes):
            if lane.owner is None and index % self._num_actors == record.index % self._num_actors:
                lane.owner = identity
                lane.serial += 1
                lane.hosted = False
        for rollout_index in sorted(k for v in self._snapshots for k in self._experiment.rollouts_acting_with(v)):
            for index, lane in enumerate(self._lanes):
                if lane.owner == identity:
                    self._grant(index, rollout_index)

    def _grant(self, index: int, rollout_index: int) -> None:
        lane = self._lanes[index]
        border = lane.newest
        if lane.owner is None or not border.rollout_index <= rollout_index < self._total_iterations:
            return
        version = self._experiment.acting_version(rollout_index)
        record = self._actors[lane.owner]
        if version not in record.versions:
            record.versions.add(version)
            self._send(lane.owner, self._snapshots[version])
        state = border.state() if rollout_index > 0 and not lane.hosted else None
        lane.hosted = True
        self._send(lane.owner, Grant(self._run_id, index, rollout_index, version, lane.serial, state))
        if self.first_grant_time is None:
            self.first_grant_time = time.monotonic()

    def _accept(self, identity: bytes, trajectory: Trajectory) -> None:
        steps = self._experiment.lane_size * self._experiment.rollout_length
        self.ledger.produced += steps
        lane = self._lanes[trajectory.lane] if 0 <= trajectory.lane < len(self._lanes) else None
        if (
            lane is None
            or trajectory.run_id != self._run_id
            or lane.owner != identity
            or trajectory.serial != lane.serial
            or trajectory.rollout_index != lane.newest.rollout_index
            or trajectory.policy_version != self._experiment.acting_version(trajectory.rollout_index)
        ):
            self.ledger.dropped["stale"] += steps
            return
        assert self.spaces is not None
        try:
            trajectory.check(self._experiment, self.spaces)
        except ProtocolError as error:
            self.ledger.dropped["malformed"] += steps
            self._refuse(identity, f"lane {trajectory.lane}, rollout {trajectory.rollout_index}: {error}")
            return
        if trajectory.restarted.any():
            self.lanes_not_replayable += 1
            self._warn(
                f"lane {trajectory.lane} could not be rebuilt: {self._experiment.env} does not repeat itself after a"
                " seeded reset and the same actions, so this run is not reproducible"
            )
        border = lane.newest.after(trajectory)
        lane.accepted[trajectory.rollout_index] = trajectory
        lane.borders[border.rollout_index] = border

    def _refuse(self, identity: bytes, reason: str) -> None:
        self._warn(f"refused a message: {reason}")
        self._send(identity, Refusal(reason))
        self._forget(identity)

    def _send(self, identity: bytes, message: Message) -> None:
        if not self._socket.send(identity, message):
            self._forget(identity)

    def _forget(self, identity: bytes) -> None:
        """An actor is gone: its lanes wait for the next one that says hello in its place."""
        self._actors.pop(identity, None)
        for lane in self._lanes:
            if lane.owner == identity:
                lane.owner = None
