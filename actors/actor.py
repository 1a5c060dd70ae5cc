"""An actor: joins the learner, and collects the rollouts it is granted until it is told to stop."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace

from actors.fingerprint import fingerprint, libraries_of
from actors.lane import Lane
from actors.policy import Policy
from actors.rollout import collect_rollout
from actors.simulation import Simulation
from actors.spaces import describe_observations
from protocol import trace
from protocol.errors import EnvironmentFault, ProtocolError, UserError
from protocol.experiment import Experiment
from protocol.keys import ActorKey
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
from protocol.text import one_line
from protocol.trajectory import Trajectory
from protocol.transport import ActorSocket
from protocol.trust import foreign_names

HELLO_INTERVAL = 0.5  # An actor that has nothing to do says hello that often: the learner may be a new one.
PROGRESS_INTERVAL = 0.5  # It reports progress that often, in seconds.
PATIENCE = 3.0  # After so many seconds without a learner, it says so.


class _Stopped(BaseException):
    """Ends what an actor is at; no Exception, since that may be caught on the way."""


class Actor:
    """One actor, alone in a process or as a thread among others."""

    def __init__(
        self,
        name: str,
        address: str,
        key: ActorKey | None = None,
        say: Callable[[str], None] = lambda _: None,
        life: int = 0,
        stop: threading.Event | None = None,
        trust: bool = True,
    ) -> None:
        """An actor for the learner at `address`; `say` takes lines for whoever started it by hand, `life` is the number
        that its supervisor gave this process, `stop` asks it to close its environments and return, and `trust` lets
        the learner name any module to import."""
        self._stop = stop or threading.Event()
        self._trust = trust
        self._hello = Hello(name, life, fingerprint(), pid=os.getpid())
        self._address = address
        self._say = say
        self._socket = ActorSocket(address, key)
        self._alone_since: float | None = time.monotonic()  # Since when no learner answers; None once reported.
        self._welcomed = False  # over the present connection
        self._experiment: Experiment | None = None
        self._spaces: Spaces | None = None
        self._policies: dict[int, Policy] = {}  # The policies it may act with, by version.
        self._lanes: dict[int, Lane] = {}
        self._fencing_tokens: dict[int, int] = {}  # By lane, that of the grant it was built for.
        self._grants: list[Grant] = []
        self._witness: tuple[Grant, Policy] | None = None  # a rollout to collect a second time
        self._steps = 0
        self._acting = self._waiting = 0.0  # seconds since it started…
        self._accounted = time.monotonic()  # …until then
        self._last_progress = 0.0

    def run(self) -> None:
        """Join, and act until told to stop. Raises `UserError` when refused, and `EnvironmentFault` where no
        environment can be made or no episode begins."""
        try:
            self._socket.send(self._hello)
            while True:
                message = self._receive()
                if isinstance(message, Stop):
                    self._say(message.reason)
                    return
                if isinstance(message, Refusal):
                    raise UserError(message.reason)
                if isinstance(message, Welcome):
                    self._prepare(message)
                elif isinstance(message, PolicySnapshot):
                    self._receive_policy(message)
                elif isinstance(message, Grant):
                    self._grants.append(message)
                elif isinstance(message, SecondGrant):
                    self._witness = message.grant, self._policies[message.grant.policy_version]
                elif isinstance(message, Release):
                    self._release(message)
                elif self._witness is not None and self._has_time_for(self._witness[0]):
                    self._collect_again(*self._witness)
                elif self._grants:
                    grant = min(self._grants, key=lambda grant: (grant.policy_version, grant.rollout_index, grant.lane))
                    self._grants.remove(grant)
                    self._account(acting=False)
                    trajectory = self._fulfil(grant)
                    self._account(acting=True)
                    with trace.span("send", lane=grant.lane, rollout=grant.rollout_index):
                        self._socket.send(trajectory)
                else:
                    self._socket.send(self._hello)
                    if self._welcomed:
                        self._account(acting=False)
                        self._report()
        except _Stopped:
            return
        except ProtocolError as error:
            raise UserError(f"the learner at {self._address} sent what it should not: {error}") from None
        finally:
            self._close_lanes()
            self._socket.close()

    def _receive(self) -> Message | None:
        """The next message; None where there is none and something is to be done, or was none for a while."""
        self._check_stop()
        if self._grants or self._witness is not None:
            message = self._socket.receive(timeout=0)
        else:
            with trace.span("wait"):
                message = self._socket.receive(timeout=HELLO_INTERVAL)
        self._note_connection()
        return message

    def _note_connection(self) -> None:
        """Say hello over every new connection, whose other end may be a new learner; say if there is none for long."""
        if self._socket.is_newly_connected():
            self._alone_since = time.monotonic()
            self._hello = replace(self._hello, connection=self._hello.connection + 1)
            self._socket.send(self._hello)
        elif not self._socket.connected and self._welcomed:
            self._alone_since, self._welcomed = time.monotonic(), False
        if self._alone_since is not None and time.monotonic() - self._alone_since > PATIENCE:
            self._alone_since = None
            self._say(f"waiting for the learner at {self._address}")

    def _prepare(self, welcome: Welcome) -> None:
        """Begin with a learner, or again with one that was restarted: whatever an older one granted is void."""
        experiment = welcome.experiment
        if not self._trust and (names := foreign_names(experiment)):
            raise UserError(
                f"the learner at {self._address} names code that would run here ({one_line(', '.join(names))}), and"
                " without a key anybody may be that learner: give this actor a key, or --trust"
            )
        self._alone_since, self._welcomed = None, True
        self._say(f"connected to run {welcome.run_id} of {experiment.env} at {self._address}")
        self._grants.clear()
        self._witness = None
        self._policies.clear()
        self._close_lanes()
        self._experiment = experiment
        with closing(Simulation(experiment)) as simulation:
            env = simulation.env
            assert env is not None
            libraries, observations = libraries_of(env), describe_observations(env, experiment)
            self._spaces = simulation.find_masks()
            ready = Ready(self._spaces, libraries, observations)
        self._socket.send(ready)

    def _receive_policy(self, snapshot: PolicySnapshot) -> None:
        assert self._experiment is not None and self._spaces is not None
        version = snapshot.policy_version
        # Grants name the newest version or the one before it, and no other; in `async` the newest serves them all.
        self._policies = {v: policy for v, policy in self._policies.items() if v >= version - 1}
        self._policies[version] = Policy(snapshot, self._spaces, self._experiment)

    def _release(self, release: Release) -> None:
        self._grants = [
            grant for grant in self._grants if grant.lane != release.lane or grant.fencing_token > release.fencing_token
        ]
        if release.lane in self._lanes and self._fencing_tokens[release.lane] <= release.fencing_token:
            self._lanes.pop(release.lane).close()
            del self._fencing_tokens[release.lane]

    def _fulfil(self, grant: Grant) -> Trajectory:
        assert self._experiment is not None and self._spaces is not None
        lane = self._lanes.get(grant.lane)
        if lane is None or self._fencing_tokens[grant.lane] != grant.fencing_token:
            if lane is not None:
                lane.close()
            lane = self._lanes[grant.lane] = Lane(grant.lane, self._experiment, self._spaces, self._progress)
            self._fencing_tokens[grant.lane] = grant.fencing_token
            self._bring(lane, grant)
        version = max(self._policies) if self._experiment.schedule == "async" else grant.policy_version
        with trace.span("rollout", lane=grant.lane, rollout=grant.rollout_index, policy_version=version):
            return collect_rollout(lane, self._policies[version], grant, self._experiment, self._spaces)

    def _bring(self, lane: Lane, grant: Grant) -> None:
        """Bring a new lane to where the granted rollout begins."""
        lane.progress = grant.progress
        if grant.state is None:
            lane.begin()
        else:
            assert self._experiment is not None and self._spaces is not None
            grant.state.check(self._experiment, self._spaces)
            with trace.span("rebuild", lane=grant.lane, rollout=grant.rollout_index):
                lane.rebuild(grant.state)

    def _has_time_for(self, witness: Grant) -> bool:
        """A second collection waits for what the learner needs next, but not for ever: some actors always have more to
        do."""
        return all(grant.policy_version > witness.policy_version + 1 for grant in self._grants)

    def _collect_again(self, grant: Grant, policy: Policy) -> None:
        """Collect a rollout a second time, in a lane that is made for it."""
        assert self._experiment is not None and self._spaces is not None
        self._witness = None
        trajectory = None
        with trace.span("witness", lane=grant.lane, rollout=grant.rollout_index), suppress(EnvironmentFault, UserError):
            lane = Lane(grant.lane, self._experiment, self._spaces, self._progress)
            with closing(lane):
                self._bring(lane, grant)
                trajectory = collect_rollout(lane, policy, grant, self._experiment, self._spaces)
        self._socket.send(SecondCollection(grant.fencing_token, trajectory))

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _progress(self) -> None:
        self._check_stop()
        self._steps += 1
        if time.monotonic() - self._last_progress >= PROGRESS_INTERVAL:
            self._account(acting=True)
            self._report()

    def _account(self, acting: bool) -> None:
        """The time since this was called last went into acting, or did not."""
        now = time.monotonic()
        if acting:
            self._acting += now - self._accounted
        else:
            self._waiting += now - self._accounted
        self._accounted = now

    def _report(self) -> None:
        self._last_progress = self._accounted
        self._socket.send(Progress(self._steps, self._acting, self._waiting))

    def _close_lanes(self) -> None:
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()
        self._fencing_tokens.clear()
