"""What passes between the learner and its actors: grants of rollouts, and the trajectories that come of them.

The roster knows who takes part, and the lane table who hosts what. This decides what is accepted and trained on.
"""

import time
from collections.abc import Callable
from typing import Any

from learner.faults import Faults
from learner.lanes import LaneTable
from learner.launcher import SHORTEST_PATIENCE, Launcher
from learner.ledger import SampleLedger
from learner.repeatability import Repeatability
from learner.roster import Roster
from learner.stopwatch import Pace
from learner.witness import Witness
from protocol.errors import ProtocolError
from protocol.execution import Execution
from protocol.experiment import Experiment
from protocol.messages import Grant, Hello, Progress, Ready, Release, SecondCollection, SecondGrant
from protocol.snapshot import PolicySnapshot
from protocol.spaces import Spaces
from protocol.trajectory import Trajectory
from protocol.transport import LearnerSocket, Received
from rundir.schedules import Horizon

POLL_SECONDS = 0.1  # A waiting learner looks that often whether it should stop.
LOOK_SECONDS = 0.1  # It looks that often whether an actor hangs or has gone.
SERVING_SECONDS = 0.05  # While there is something to learn from, messages are handled for so long at once…
SERVING_INTERVAL = 0.1  # …and looked for that often during an update.
WITNESS_SECONDS = 5.0  # Before its last update, and at its end, a run waits so long for second collections.
TOLERATED_SHARE_TOO_OLD = 0.25  # When more of the samples are too old in `async`, the user is warned.


class Coordinator:
    """The learner's side of every conversation with actors."""

    def __init__(
        self,
        socket: LearnerSocket,
        experiment: Experiment,
        execution: Execution,
        horizon: Horizon,
        launcher: Launcher,
        pace: Pace,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.roster = Roster(socket, experiment, execution, launcher, self._leave, clock)
        self.table = LaneTable(experiment, execution.run_id, horizon)
        self.ledger = SampleLedger()
        self.faults = Faults(experiment, launcher.warn, execution.run_dir, clock)
        self.witness = Witness(experiment, horizon.total)
        self.repeatability = Repeatability(experiment, launcher.warn)
        self._socket, self._experiment, self._run_id = socket, experiment, execution.run_id
        self._total_iterations, self._step_timeout = horizon.total, execution.step_timeout
        self._launcher, self._warn, self._pace, self._clock = launcher, launcher.warn, pace, clock
        self._asynchronous = experiment.schedule == "async"
        self._lane_steps = experiment.lane_size * experiment.rollout_length
        self._snapshots: dict[int, PolicySnapshot] = {}  # The newest version and the one before it.
        self._gathered: list[Trajectory] = []  # Rollouts that are complete and not trained on yet.
        self._next_serving = self._next_look = clock()
        self._unbroken = 0.0  # seconds of serving since there was nothing to serve
        self._told_too_old = False

    def wait_for_spaces(self) -> Spaces:
        """Serve until the first actor has told what the environment looks like."""
        while self.roster.spaces is None:
            self.serve(POLL_SECONDS)
        return self.roster.spaces

    def publish(self, snapshot: PolicySnapshot) -> None:
        """Broadcast a policy version, and grant every lane the rollouts that act with it."""
        version = snapshot.policy_version
        self._snapshots = {v: s for v, s in self._snapshots.items() if v == version - 1} | {version: snapshot}
        self.roster.keep_snapshots(self._snapshots.keys())
        self.table.publish(version)
        self._offer_all()

    def gather(self, version: int) -> list[Trajectory]:
        """As many trajectories as there are lanes, for policy version `version` to learn from, in the order of their
        lanes and rollouts: everyone's rollout of that index, or in `async` the first to arrive."""
        if self._asynchronous:
            self._gathered = self._gather_first(version)
        else:
            lanes = self.table.lanes
            while not all(version in lane.accepted for lane in lanes):
                self.serve(POLL_SECONDS)
            self._gathered = [lane.accepted[version] for lane in lanes]
            if version == self._total_iterations - 1:
                self.wait_for_witness()
            self._ask_for_witness(version)
            self.serve_waiting()  # Hear the actors that have no lane yet, too.
        self.roster.report(self.table.by_owner)
        return self._gathered

    def serve_waiting(self) -> None:
        """Handle what has arrived, without waiting: in `async`, lanes go on while the learner learns."""
        until = self._clock() + SERVING_SECONDS
        for _ in self.table.lanes:  # no more at once: a flood must not keep the learner from its work
            if not self.serve(0) or self._clock() > until:
                return

    def serve_meanwhile(self) -> None:
        """During an update: handle what has arrived now and then, so that actors can join and hear an answer."""
        self._launcher.check_stop()
        if self._clock() >= self._next_serving:
            self.serve_waiting()
            self._next_serving = self._clock() + SERVING_INTERVAL

    def wait_for_witness(self) -> None:
        """Serve until no rollout is being collected a second time, and whoever does that is there; not for long."""
        until = self._clock() + WITNESS_SECONDS
        while (self.witness.asked is not None or self.roster.awaits_witness) and self._clock() < until:
            self.serve(POLL_SECONDS)

    def trained_on(self) -> None:
        """Forget what was gathered, since it has been trained on; the lanes' trained border is now behind it."""
        for trajectory in self._gathered:
            lane = self.table.lanes[trajectory.lane]
            self.repeatability.train(trajectory)
            self.faults.train(trajectory, lane.borders[trajectory.rollout_index])
            lane.forget(trajectory.rollout_index)
        self.ledger.train(self._experiment.env_steps_per_iteration)
        self.ledger.check(in_flight=self.table.in_flight * self._lane_steps)

    def dismiss(self, reason: str) -> None:
        """Tell every actor that the run is over."""
        self.roster.report(self.table.by_owner, at_once=True)
        self.roster.dismiss(reason)

    @property
    def reproducible(self) -> bool:
        """Whether the environments have given no sign that another run would go another way."""
        return not (self.repeatability.is_broken or self.witness.differences)

    def account(self) -> dict[str, Any]:
        """Counts of everything that actors sent, for summary and metrics."""
        return {
            "samples": self.ledger.as_dict(),
            "witness": self.witness.state_dict(),
            "refused": dict(self.roster.refusals.counts),
        }

    def state_dict(self) -> dict[str, Any]:
        """The state after the last trained rollout, for a checkpoint. The lanes' borders are not part of it."""
        return {
            "samples": self.ledger.settled(),
            **self.repeatability.state_dict(),
            "witness": self.witness.state_dict(),
            **self.faults.state_dict(),
            **self.roster.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ledger.restore(state["samples"])
        self.repeatability.load_state_dict(state)
        self.witness.load_state_dict(state.get("witness", {}))  # Checkpoints of older releases have none.
        self.faults.load_state_dict(state)
        self.roster.load_state_dict(state)

    def _gather_first(self, version: int) -> list[Trajectory]:
        """The first trajectories to arrive that are not too old; while they are learned from, all lanes go on."""
        gathered: list[Trajectory] = []
        arrived = self.table.arrived
        while len(gathered) < len(self.table.lanes):
            if not arrived:
                self._offer_all()
            while not arrived:
                self.serve(POLL_SECONDS)
            trajectory = arrived.popleft()
            if version - trajectory.policy_version <= self._experiment.max_lag:
                gathered.append(trajectory)
            else:
                self._expire(trajectory)
        self._offer_all()
        return sorted(gathered, key=lambda trajectory: (trajectory.lane, trajectory.rollout_index))

    def _expire(self, trajectory: Trajectory) -> None:
        self.table.lanes[trajectory.lane].forget(trajectory.rollout_index)
        self.ledger.expire(self._lane_steps, "too_old")
        share = self.ledger.dropped["too_old"] / self.ledger.produced
        if share > TOLERATED_SHARE_TOO_OLD and not self._told_too_old:
            self._told_too_old = True
            self._warn(
                f"{share:.0%} of the samples are dropped, lane {trajectory.lane}'s among them: they are more than"
                f" --max-lag {self._experiment.max_lag} versions old when they arrive. Raise it, or shorten"
                " --rollout-length"
            )

    def serve(self, timeout: float) -> bool:
        """Handle one message, for which to wait up to `timeout` seconds, or what is to be done when there is none;
        returns whether there was one."""
        began = self._clock()
        self._launcher.check_stop()
        self.roster.forget_lost()
        received = self._socket.receive(0)
        if received is None:
            self._unbroken = 0.0
        # Silence is an actor's own, not the learner's being busy, where nothing waits; and in a flood, which never
        # ends, where every sender has had its turn for long enough.
        self._look_after_actors(silence_counts=received is None or self._unbroken > self._step_timeout)
        if received is None:
            self._launcher.alive(max(self._step_timeout, SHORTEST_PATIENCE), listening=True)
            self.roster.report(self.table.by_owner)
            received = self._socket.receive(timeout) if timeout else None
            if received is None:
                return False
            began = self._clock()
        self._handle(received)
        self._unbroken += self._clock() - began
        return True

    def _look_after_actors(self, silence_counts: bool) -> None:
        """Find actors that hang, and lanes that nobody hosts; a few times a second is enough."""
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        if silence_counts:
            asked = self.witness.asked
            self.roster.forget_hung({*self.table.busy, asked.witness if asked else None})
        self.roster.look_at_connections()
        if any(lane.owner is None for lane in self.table.lanes):
            self._share_lanes()

    def _handle(self, received: Received) -> None:
        identity, message = received.identity, received.message
        if not self.roster.admits(received):
            return
        match message:
            case Hello():
                self.roster.welcome(received, message)
            case Ready():
                if self.roster.make_ready(identity, message):
                    if self.roster.actors[identity].is_witness:
                        self.witness.trust_anew()
                    self._share_lanes()
            case Trajectory():
                self._accept(identity, message)
            case SecondCollection():
                self._hear_witness(identity, message)
            case Progress():
                self.roster.note_progress(identity, message)
            case ProtocolError():
                self.roster.refuse(identity, "malformed", str(message))
            case _:
                self.roster.refuse(identity, "wrong kind", f"a learner takes no {type(message).__name__}")

    def _accept(self, identity: bytes, trajectory: Trajectory) -> None:
        if not self.table.expects(identity, trajectory):
            self.ledger.drop(self._lane_steps, "stale")
            return
        assert self.roster.spaces is not None
        lane = self.table.lanes[trajectory.lane]
        try:
            trajectory.check(self._experiment, self.roster.spaces)
            lane.newest.check_followed_by(trajectory)
        except ProtocolError as error:
            self.ledger.drop(self._lane_steps, "malformed")
            text = f"lane {trajectory.lane}, rollout {trajectory.rollout_index}: {error}"
            self.roster.refuse(identity, "malformed", text)
            return
        self.ledger.accept(self._lane_steps)
        self.table.accept(trajectory)
        self.roster.note_work(identity, self._lane_steps)
        self.repeatability.look_at(trajectory)
        self.faults.tell(trajectory, lane.borders[trajectory.rollout_index])
        if lane.moving_to is not None:
            self._release(self.table.move(trajectory.lane, lane.moving_to))
        self._offer(trajectory.lane)

    def _offer_all(self) -> None:
        for index in range(len(self.table.lanes)):
            self._offer(index)

    def _offer(self, index: int) -> None:
        """Grant a lane all that can be granted."""
        lane = self.table.lanes[index]
        had_nothing_to_do = not lane.outstanding
        while (grant := self.table.next_grant(index)) is not None:
            assert lane.owner is not None
            self.roster.send_snapshot(lane.owner, self._snapshots[grant.policy_version])
            if had_nothing_to_do:
                self.roster.note_task(lane.owner)
                had_nothing_to_do = False
            self.roster.send(lane.owner, grant)
            self._pace.begin(self._clock())

    def _share_lanes(self) -> None:
        """Let every lane have a host, and every actor its share."""
        self._release(self.table.share(self.roster.ready, self.roster.sharers()))
        self._offer_all()

    def _release(self, releases: list[tuple[bytes, Release]]) -> None:
        for owner, release in releases:
            self.roster.send(owner, release)

    def _leave(self, identity: bytes, lost: bool) -> None:
        """An actor is gone: its lanes go to the others."""
        self.witness.forget(identity)
        if self.table.leave(identity, lost):
            self.roster.wait_for_replacements()
        self._share_lanes()

    def _ask_for_witness(self, version: int) -> None:
        """Let a rollout that was gathered be collected a second time, in another process where there is one."""
        index = self.witness.choose(version, self.table.lanes, self.ledger.produced)
        lane = None if index is None else self.table.lanes[index]
        if index is None or lane is None or lane.owner is None:
            return
        others = self.roster.others_than(lane.owner)
        if not (others or self.roster.actors[lane.owner].ready):
            return
        identity = others[self.witness.rollouts % len(others)] if others else lane.owner
        border, trajectory = lane.borders[version], lane.accepted[version]
        number = self.witness.ask(identity, bool(others), border, trajectory)
        state = border.state() if version > 0 else None
        acted_with = trajectory.policy_version
        self.roster.send_snapshot(identity, self._snapshots[acted_with])
        grant = Grant(self._run_id, index, version, acted_with, number, state, self.table.progress(version))
        self.roster.send(identity, SecondGrant(grant))

    def _hear_witness(self, identity: bytes, answer: SecondCollection) -> None:
        asked, second = self.witness.asked, answer.trajectory
        if asked is None or asked.witness != identity or asked.number != answer.fencing_token:
            self.roster.refusals.counts["unknown sender"] += 1
            return
        if second is None:
            self.witness.forget(identity)
            return
        assert self.roster.spaces is not None
        try:
            second.check(self._experiment, self.roster.spaces)
            if (second.lane, second.rollout_index) != (asked.trajectory.lane, asked.trajectory.rollout_index):
                raise ProtocolError("it is not what was asked for")
        except ProtocolError as error:
            self.roster.refuse(identity, "malformed", f"a second collection of a rollout: {error}")
            return
        self.repeatability.note_global_random(second)
        difference = self.witness.compare(second)
        if difference is not None:
            where = "another process" if asked.elsewhere else "fresh environments"
            self.repeatability.tell(f"{difference} in {where}, with the same seed and actions")
