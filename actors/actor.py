"""An actor: joins the learner, and collects the rollouts it is granted until it is told to stop."""

import os
import time

from actors.environment import describe_spaces, make_environment
from actors.fingerprint import fingerprint
from actors.lane import Lane
from actors.policy import Policy
from actors.rollout import collect_rollout
from protocol import trace
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.messages import Grant, Hello, Message, Progress, Ready, Refusal, Stop, Welcome
from protocol.snapshot import PolicySnapshot
from protocol.spaces import Spaces
from protocol.trajectory import Trajectory
from protocol.transport import ActorSocket

HELLO_INTERVAL = 0.5  # seconds of having nothing to do after which an actor says hello again: the learner may be new
PROGRESS_INTERVAL = 0.5  # seconds between reports of progress


class Actor:
    """One actor, alone in a process or as a thread among others."""

    def __init__(self, index: int, address: str) -> None:
        self._hello = Hello(index, os.getpid(), fingerprint())
        self._socket = ActorSocket(address)
        self._experiment: Experiment | None = None
        self._spaces: Spaces | None = None
        self._policies: dict[int, Policy] = {}  # by version
        self._lanes: dict[int, Lane] = {}
        self._serials: dict[int, int] = {}  # of the grants that each lane was built for
        self._grants: list[Grant] = []
        self._steps = 0
        self._last_progress = 0.0

    def run(self) -> None:
        """Join, and act until told to stop. Raises `UserError` when refused."""
        try:
            self._socket.send(self._hello)
            while True:
                message = self._receive()
                if isinstance(message, Stop):
                    return
                if isinstance(message, Refusal):
                    raise UserError(message.reason)
                if isinstance(message, Welcome):
                    self._prepare(message.experiment)
                elif isinstance(message, PolicySnapshot):
                    self._receive_policy(message)
                elif isinstance(message, Grant):
                    self._grants.append(message)
                elif self._grants:
                    grant = min(self._grants, key=lambda grant: (grant.policy_version, grant.rollout_index, grant.lane))
                    self._grants.remove(grant)
                    trajectory = self._fulfil(grant)
                    with trace.span("send", lane=grant.lane, rollout=grant.rollout_index):
                        self._socket.send(trajectory)
                else:
                    self._socket.send(self._hello)
        finally:
            self._close_lanes()
            self._socket.close()

    def _receive(self) -> Message | None:
        """The next message; None where there is none and something is to be done, or was none for a while."""
        if self._grants:
            return self._socket.receive(timeout=0)
        with trace.span("wait"):
            return self._socket.receive(timeout=HELLO_INTERVAL)

    def _prepare(self, experiment: Experiment) -> None:
        """Begin with a learner, or again with one that was restarted: whatever an older one granted is void."""
        self._grants.clear()
        self._policies.clear()
        self._close_lanes()
        self._experiment = experiment
        env = make_environment(experiment)
        self._spaces = describe_spaces(env, experiment)
        env.close()
        self._socket.send(Ready(self._spaces))

    def _receive_policy(self, snapshot: PolicySnapshot) -> None:
        assert self._experiment is not None and self._spaces is not None
        version = snapshot.policy_version
        # Grants name the newest version or the one before it, and no other; in `async` the newest serves them all.
        self._policies = {v: policy for v, policy in self._policies.items() if v >= version - 1}
        self._policies[version] = Policy(snapshot, self._spaces, self._experiment)

    def _fulfil(self, grant: Grant) -> Trajectory:
        assert self._experiment is not None and self._spaces is not None
        lane = self._lanes.get(grant.lane)
        if lane is None or self._serials[grant.lane] != grant.serial:
            if lane is not None:
                lane.close()
            lane = self._lanes[grant.lane] = Lane(grant.lane, self._experiment, self._spaces, self._progress)
            self._serials[grant.lane] = grant.serial
            if grant.state is None:
                lane.begin()
            else:
                grant.state.check(self._experiment, self._spaces)
                with trace.span("rebuild", lane=grant.lane, rollout=grant.rollout_index):
                    lane.rebuild(grant.state)
        version = max(self._policies) if self._experiment.schedule == "async" else grant.policy_version
        with trace.span("rollout", lane=grant.lane, rollout=grant.rollout_index, policy_version=version):
            return collect_rollout(lane, self._policies[version], grant, self._experiment, self._spaces)

    def _progress(self) -> None:
        self._steps += 1
        now = time.monotonic()
        if now - self._last_progress >= PROGRESS_INTERVAL:
            self._last_progress = now
            self._socket.send(Progress(self._steps))

    def _close_lanes(self) -> None:
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()
