"""The coordinator: which actor hosts which lane, which messages are accepted, and whether the ledger balances."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import discrete, numbers

from learner.coordinator import Coordinator
from learner.faults import MAX_FAULTS, EnvironmentsFailed
from learner.lanes import balance
from learner.launcher import Launcher
from learner.ledger import SampleLedger
from learner.refusals import AT_ONCE
from learner.roster import MAX_REMOTE, REPORT_SECONDS
from learner.stopwatch import Pace
from protocol.errors import ProtocolError
from protocol.events import ActorFacts, ActorHangs, Actors, Caution, Event
from protocol.execution import Execution
from protocol.experiment import Experiment
from protocol.messages import Grant, Hello, Message, Progress, Ready, Refusal, Release, Stop, Welcome
from protocol.snapshot import PolicySnapshot
from protocol.spaces import BoxSpace
from protocol.trajectory import DIGEST_SIZE, MAX_FAULTS_TOLD, Fault, Trajectory
from protocol.transport import Disturbances, Received
from rundir.schedules import Horizon

EXPERIMENT = Experiment(num_envs=8, lane_size=2, rollout_length=3)
SPACES = discrete(numbers(4), 2)
STEPS = 6  # Env-steps of a lane in a rollout.


class Clock:
    """A clock that only tests advance."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator checks its actors at every call of `serve`."""
    monkeypatch.setattr("learner.coordinator.LOOK_SECONDS", 0.0)


class FakeSocket:
    """Replaces a LearnerSocket; the test plays its peers."""

    def __init__(self) -> None:
        self.inbox: list[Received] = []
        self.sent: list[tuple[bytes, Message]] = []
        self.gone: set[bytes] = set()
        self.chatter: Received | None = None  # A message that always arrives before a wait is over.
        self.revoked: set[str] = set()
        self.seen = Disturbances()

    def receive(self, timeout: float) -> Received | None:
        if self.inbox:
            return self.inbox.pop(0)
        return self.chatter if timeout else None

    def send(self, identity: bytes, message: Message) -> bool:
        if identity in self.gone:
            return False
        self.sent.append((identity, message))
        return True

    def allows(self, user: str | None) -> bool:
        return user not in self.revoked

    def reaches(self, identity: bytes) -> bool:
        return identity not in self.gone

    def disturbances(self) -> Disturbances:
        seen, self.seen = self.seen, Disturbances()
        return seen

    def listen_anew(self) -> None:
        pass

    def close(self) -> None:
        pass

    def take(self, kind: type, identity: bytes | None = None) -> list[Any]:
        """Remove and return the messages of `kind` sent so far, only those to `identity` if it is given."""
        taken = [(i, m) for i, m in self.sent if isinstance(m, kind) and identity in (None, i)]
        self.sent = [entry for entry in self.sent if entry not in taken]
        return [message for _, message in taken]


class Conversation:
    """A coordinator, and methods that send it messages as actors do."""

    def __init__(
        self,
        num_actors: int = 2,
        schedule: str = "pipelined",
        step_timeout: float = 60.0,
        witness: bool = False,
        total_iterations: int = 10,
    ) -> None:
        self.socket = FakeSocket()
        self.events: list[Event] = []
        self.launcher = Launcher(self.events.append)
        self.pace = Pace()
        self.clock = Clock()
        self.coordinator = Coordinator(
            self.socket,  # pyright: ignore[reportArgumentType]
            replace(EXPERIMENT, schedule=schedule),
            Execution(Path("run"), num_actors, witness, step_timeout),
            Horizon((total_iterations,)),
            self.launcher,
            self.pace,
            clock=self.clock,
        )
        self.roster, self.lanes = self.coordinator.roster, self.coordinator.table.lanes

    def say(
        self, identity: bytes, message: Message | ProtocolError, user: str | None = None, local: bool = True
    ) -> None:
        self.socket.inbox.append(Received(identity, user, message, local and user is None))
        self.serve()

    def serve(self) -> None:
        self.coordinator.serve(0.001)

    def join(self, index: int | str, **hello: Any) -> bytes:
        identity = f"actor-{index}-{len(self.socket.sent)}".encode()
        life = hello.get("pid", 1000 + (index if isinstance(index, int) else 999))
        self.say(identity, Hello(str(index), life, hello.get("fingerprint", {"numpy": "2"})))
        self.say(identity, Ready(SPACES, hello.get("libraries", {})))
        return identity

    def join_remotely(self, name: str) -> bytes:
        identity = f"{name}-{len(self.socket.sent)}".encode()
        self.say(identity, Hello(name, 1, {"numpy": "2"}), local=False)
        self.say(identity, Ready(SPACES, {}), local=False)
        return identity

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def publish(self, version: int) -> None:
        zeros = np.zeros(4, np.float32)
        self.coordinator.publish(PolicySnapshot(version, {"w": zeros}, zeros, zeros))


def fulfil(grant: Grant, **changes: Any) -> Trajectory:
    t, n = EXPERIMENT.rollout_length, EXPERIMENT.lane_size
    trajectory = Trajectory(
        run_id=grant.run_id,
        lane=grant.lane,
        rollout_index=grant.rollout_index,
        policy_version=grant.policy_version,
        fencing_token=grant.fencing_token,
        observations=np.zeros((t, n, 4), np.float32),
        last_observations=np.zeros((n, 4), np.float32),
        actions=np.zeros((t, n), np.int64),
        behaviour_log_probs=np.zeros((t, n), np.float32),
        rewards=np.zeros((t, n), np.float32),
        terminated=np.zeros((t, n), bool),
        truncated=np.zeros((t, n), bool),
        final_observations=np.zeros((0, 4), np.float32),
        episode_returns=np.zeros(0),
        episode_lengths=np.zeros(0, np.int64),
        episode_indices=np.zeros(n, np.int64),
        restarted=np.zeros(n, bool),
        failed_resets=np.zeros(n, np.int64),
        digests=np.zeros((n, DIGEST_SIZE), np.uint8),
        extras={},
        faults=(),
        fault_count=0,
        moved_global_random=False,
    )
    return replace(trajectory, **changes)


@given(
    owners=st.lists(st.sampled_from([b"a", b"b", b"c", b"gone", None]), min_size=1, max_size=20),
    ready=st.lists(st.sampled_from([b"a", b"b", b"c"]), unique=True),
)
def test_lanes_are_shared_as_evenly_as_can_be_and_no_more_than_need_to_move(
    owners: list[bytes | None], ready: list[bytes]
) -> None:
    wanted = balance(owners, ready, quota=len(owners))
    loads = Counter(wanted)
    if not ready:
        assert set(wanted) == {None}
        return
    assert set(loads) <= set(ready)
    shares = [loads[actor] for actor in ready]
    assert max(shares) - min(shares) <= 1
    before = Counter(owner for owner in owners if owner in ready)
    kept = sum(w == o for w, o in zip(wanted, owners, strict=True))
    low, extra = divmod(len(owners), len(ready))
    shares_kept = sorted((before[actor] for actor in ready), reverse=True)
    assert kept == sum(min(had, low + (i < extra)) for i, had in enumerate(shares_kept))


def test_the_first_actor_leaves_lanes_for_those_that_are_expected() -> None:
    talk = Conversation(num_actors=2)
    talk.publish(0)
    first = talk.join(0)
    assert {grant.lane for grant in talk.socket.take(Grant, first)} == {0, 1}
    second = talk.join(1)
    assert {grant.lane for grant in talk.socket.take(Grant, second)} == {2, 3}


def test_a_grant_is_preceded_by_its_snapshot_once() -> None:
    talk = Conversation(num_actors=1)
    talk.publish(0)
    talk.join(0)
    kinds = [type(message) for _, message in talk.socket.sent]
    assert kinds.count(PolicySnapshot) == 1
    assert kinds.index(PolicySnapshot) < kinds.index(Grant)


@pytest.mark.parametrize(("schedule", "granted"), [("sync", [0]), ("pipelined", [0, 1])])
def test_a_version_grants_the_rollouts_that_act_with_it(schedule: str, granted: list[int]) -> None:
    talk = Conversation(num_actors=1, schedule=schedule)
    talk.publish(0)
    talk.join(0)
    assert sorted({grant.rollout_index for grant in talk.socket.take(Grant)}) == granted


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "other"},
        {"fencing_token": 0},
        {"fencing_token": 9},
        {"rollout_index": 1},
        {"lane": 3},
        {"lane": 99},
        {"lane": -1},
        {"policy_version": 1},
    ],
    ids=str,
)
def test_what_was_not_granted_is_dropped_and_counted(change: dict[str, Any]) -> None:
    talk = Conversation(num_actors=2)
    talk.publish(0)
    actor = talk.join(0)
    grant = talk.socket.take(Grant)[0]
    talk.say(actor, fulfil(grant, **change))
    ledger = talk.coordinator.ledger
    assert (ledger.produced, ledger.in_flight, ledger.dropped) == (STEPS, 0, {"stale": STEPS})


def test_each_rollout_of_a_lane_is_accepted_once() -> None:
    talk = Conversation(num_actors=1)
    talk.publish(0)
    actor = talk.join(0)
    grant = talk.socket.take(Grant)[0]
    for _ in range(3):
        talk.say(actor, fulfil(grant))
    ledger = talk.coordinator.ledger
    assert (ledger.produced, ledger.in_flight, ledger.dropped) == (3 * STEPS, STEPS, {"stale": 2 * STEPS})


def test_a_malformed_trajectory_is_refused_with_its_reason_and_its_lanes_move() -> None:
    talk = Conversation(num_actors=2)
    talk.publish(0)
    bad, good = talk.join(0), talk.join(1)
    grant = talk.socket.take(Grant, bad)[0]
    talk.socket.take(Grant)
    talk.say(bad, fulfil(grant, rewards=np.full((3, 2), np.nan, np.float32)))
    assert "rewards" in talk.socket.take(Refusal, bad)[0].reason
    assert {moved.lane for moved in talk.socket.take(Grant, good)} == {0, 1}
    assert talk.coordinator.ledger.dropped == {"malformed": STEPS}


def test_the_lanes_of_a_lost_actor_are_granted_again_with_their_state_and_a_new_fencing_token() -> None:
    talk = Conversation(num_actors=2)
    talk.publish(0)
    first, second = talk.join(0), talk.join(1)
    grant = next(g for g in talk.socket.take(Grant, first) if (g.lane, g.rollout_index) == (0, 0))
    talk.say(first, fulfil(grant))
    talk.socket.take(Grant)
    talk.launcher.lost.put(1000)
    talk.serve()
    moved = {(g.lane, g.rollout_index): g for g in talk.socket.take(Grant, second)}
    assert set(moved) == {(0, 1), (1, 0), (1, 1)}
    assert moved[0, 1].fencing_token > grant.fencing_token
    assert moved[0, 1].state is not None
    assert moved[0, 1].state.episode_steps.tolist() == [3, 3]
    assert moved[1, 0].state is None
    talk.say(first, fulfil(replace(grant, rollout_index=1)))
    assert talk.coordinator.ledger.dropped == {"stale": STEPS}


def test_lanes_that_wait_for_their_turn_move_to_a_newcomer_at_once() -> None:
    talk = Conversation(num_actors=1)
    talk.publish(0)
    first = talk.join(0)
    grants = talk.socket.take(Grant, first)
    second = talk.join(1)
    moved = talk.socket.take(Grant, second)
    assert {(g.lane, g.rollout_index) for g in moved} == {(2, 0), (2, 1), (3, 0), (3, 1)}
    assert [(r.lane, r.fencing_token) for r in talk.socket.take(Release, first)] == [
        (2, grants[4].fencing_token),
        (3, grants[6].fencing_token),
    ]
    assert all(grant.fencing_token > grants[4].fencing_token for grant in moved)
    for grant in [*grants[:4], *moved]:
        talk.say(second if grant in moved else first, fulfil(grant))
    assert not talk.coordinator.ledger.dropped


def test_a_lane_that_is_being_stepped_moves_at_its_next_border() -> None:
    talk = Conversation(num_actors=1)
    talk.publish(0)
    first = talk.join(0)
    grants = talk.socket.take(Grant, first)
    for grant in grants[:6]:
        talk.say(first, fulfil(grant))
    second = talk.join(1)  # Only the last lane still has both rollouts to deliver.
    assert {release.lane for release in talk.socket.take(Release, first)} == {2}
    assert not talk.socket.take(Grant, second)
    talk.say(first, fulfil(grants[6]))
    assert [release.lane for release in talk.socket.take(Release, first)] == [3]
    (moved,) = talk.socket.take(Grant, second)
    assert (moved.lane, moved.rollout_index) == (3, 1)
    assert moved.state is not None
    talk.say(first, fulfil(grants[7]))  # The actor had begun this rollout before the release arrived.
    assert talk.coordinator.ledger.dropped == {"stale": STEPS}


def test_nobody_is_told_to_forget_a_lane_that_was_never_granted() -> None:
    talk = Conversation(num_actors=1)
    talk.join(0)
    talk.join(1)
    talk.publish(0)
    assert not talk.socket.take(Release)


def test_an_actor_that_makes_no_progress_is_to_be_killed_and_one_that_does_is_not() -> None:
    talk = Conversation(num_actors=2, step_timeout=0.5)
    talk.publish(0)
    talk.join(0)
    alive = talk.join(1)
    talk.clock.now += 1
    talk.say(alive, Progress(1, 0.5, 0.5))
    talk.serve()
    assert [event.actor for event in talk.told(ActorHangs)] == ["0"]
    assert {g.lane for g in talk.socket.take(Grant, alive)} == {0, 1, 2, 3}


def reports(talk: Conversation) -> dict[str, ActorFacts]:
    """The facts about each actor that the coordinator reports now, by name."""
    talk.clock.now += REPORT_SECONDS
    talk.serve()
    return {actor.name: actor for actor in talk.told(Actors)[-1].actors}


def test_the_supervisor_is_told_what_every_actor_is_about() -> None:
    talk = Conversation(num_actors=1)
    talk.say(b"new", Hello("7", 77, {"numpy": "2"}))
    assert reports(talk)["7"].state == "starting"
    first = talk.join(0)
    talk.publish(0)
    assert (reports(talk)["0"].state, reports(talk)["0"].lanes) == ("ready", (0, 1, 2, 3))
    talk.say(first, fulfil(talk.socket.take(Grant, first)[0]))
    talk.say(first, Progress(10, acting=2.0, waiting=1.0))
    for index in range(1, 5):
        talk.join(index)
    told = reports(talk)
    assert (told["0"].state, told["0"].env_steps, told["0"].life) == ("working", STEPS, 1000)
    assert (told["1"].state, told["1"].lanes, told["1"].env_steps) == ("ready", (2,), 0)
    assert (told["4"].state, told["4"].lanes, told["4"].env_steps) == ("idle", (), 0)
    assert told["0"].acting is None  # The share is known only after two messages.
    talk.say(first, Progress(20, acting=5.0, waiting=2.0))
    assert reports(talk)["0"].acting == talk.roster.acting_share == 0.75


def test_actors_are_told_about_at_most_once_a_second() -> None:
    talk = Conversation()
    for _ in range(20):
        talk.serve()
    assert len(talk.told(Actors)) == 1


@pytest.mark.parametrize(("before", "after"), [(1.0, float("nan")), (1.0, float("inf")), (1.0, 0.5), (1e308, -1e308)])
def test_an_actor_that_tells_nonsense_about_its_time_is_not_believed(before: float, after: float) -> None:
    talk = Conversation(num_actors=1)
    actor = talk.join(0)
    talk.say(actor, Progress(1, acting=before, waiting=0.5))
    talk.say(actor, Progress(2, acting=after, waiting=1.5))
    assert reports(talk)["0"].acting is None
    assert talk.roster.acting_share is None


def test_silence_while_the_learner_does_not_listen_is_not_an_actors() -> None:
    talk = Conversation(num_actors=1)
    actor = talk.join(0)
    talk.clock.now += 30  # The learner learned for half a minute.
    talk.roster.report({None: [], actor: []})
    assert talk.told(Actors)[-1].actors[0].seconds_silent == 0


def test_a_hung_actor_is_found_however_much_the_others_say() -> None:
    talk = Conversation(num_actors=2, step_timeout=0.5)
    talk.publish(0)
    talk.join(0)
    alive = talk.join(1)
    talk.socket.chatter = Received(alive, None, Progress(1, 0.5, 0.5))
    for _ in range(10):
        talk.clock.now += 0.1
        talk.serve()
    assert [event.actor for event in talk.told(ActorHangs)] == ["0"]


def test_an_environment_that_keeps_failing_ends_the_run_once_trained_on() -> None:
    talk = Conversation(num_actors=1, schedule="sync")
    talk.publish(0)
    actor = talk.join(0)
    for grant in talk.socket.take(Grant):
        fault = Fault(grant.lane * EXPERIMENT.lane_size, 0, 1, "step", 3, 2, f"lane {grant.lane} broke")
        told = (fault,) * MAX_FAULTS_TOLD
        talk.say(actor, fulfil(grant, faults=told, fault_count=MAX_FAULTS))
    assert talk.coordinator.faults.count == 0
    talk.coordinator.gather(0)
    with pytest.raises(EnvironmentsFailed, match="lane 1 broke"):
        talk.coordinator.trained_on()


def test_an_actor_with_nothing_to_do_may_be_silent() -> None:
    talk = Conversation(num_actors=1)
    talk.join(0)
    talk.clock.now += 1e6
    talk.serve()
    assert not talk.told(ActorHangs)


def test_an_actor_whose_connection_has_gone_is_forgotten() -> None:
    talk = Conversation(num_actors=2)
    first, second = talk.join(0), talk.join(1)
    talk.socket.gone.add(first)
    talk.publish(0)
    talk.serve()
    assert {g.lane for g in talk.socket.take(Grant, second)} == {0, 1, 2, 3}


def test_an_actor_that_computes_otherwise_is_refused_and_told_why() -> None:
    talk = Conversation()
    talk.join(0, fingerprint={"numpy": "2.4.6", "arithmetic": "a"})
    other = talk.join(1, fingerprint={"numpy": "2.3.0", "arithmetic": "a"})
    reason = talk.socket.take(Refusal, other)[0].reason
    assert "numpy 2.3.0 instead of 2.4.6" in reason
    assert "arithmetic" not in reason


def test_an_actor_whose_environment_is_of_another_version_is_refused_and_told_why() -> None:
    talk = Conversation()
    talk.publish(0)
    talk.join(0, libraries={"mujoco": "3.3.0", "my_robots": "1"})
    other = talk.join(1, libraries={"mujoco": "3.2.1", "my_robots": "1"})
    assert talk.socket.take(Refusal, other)[0].reason.endswith("than the run's first: mujoco 3.2.1 instead of 3.3.0")
    assert not talk.socket.take(Grant, other)
    assert talk.roster.refusals.counts["fingerprint"] == 1


def test_an_actor_that_is_refused_for_its_versions_says_nothing_about_spaces() -> None:
    talk = Conversation(num_actors=0)
    talk.roster.libraries = {"robots": "1.0"}  # These come from the checkpoint that the run resumes from.
    talk.say(b"other", Hello("a", 1, {"numpy": "2"}), local=False)
    talk.say(b"other", Ready(replace(SPACES, choices=(3,)), {"robots": "1.1"}), local=False)
    assert "robots 1.1 instead of 1.0" in talk.socket.take(Refusal, b"other")[0].reason
    talk.say(b"right", Hello("b", 2, {"numpy": "2"}), local=False)
    talk.say(b"right", Ready(SPACES, {"robots": "1.0"}), local=False)
    assert talk.roster.spaces == SPACES
    assert not talk.socket.take(Refusal)


def test_a_version_that_only_the_newcomer_names_is_named() -> None:
    talk = Conversation()
    talk.join(0)
    other = talk.join(1, libraries={"robots": "1.1"})
    assert talk.socket.take(Refusal, other)[0].reason.endswith("first: robots 1.1 instead of None")


def test_in_async_where_no_bits_are_promised_it_is_welcome() -> None:
    talk = Conversation(schedule="async")
    talk.join(0, fingerprint={"arithmetic": "a"}, libraries={"mujoco": "1"})
    other = talk.join(1, fingerprint={"arithmetic": "b"}, libraries={"mujoco": "2"})
    assert talk.socket.take(Welcome, other) and not talk.socket.take(Refusal)


def test_a_remote_actor_that_is_first_does_not_put_out_the_runs_own() -> None:
    talk = Conversation(num_actors=1)
    remote = Hello("laptop", 1, {"arithmetic": "b"})
    talk.say(b"remote", remote, local=False)
    own = talk.join(0, fingerprint={"arithmetic": "a"})
    assert talk.socket.take(Welcome, own)
    talk.say(b"remote", remote, local=False)
    assert "arithmetic b instead of a" in talk.socket.take(Refusal, b"remote")[0].reason


def test_where_all_actors_are_remote_the_first_of_them_decides() -> None:
    talk = Conversation(num_actors=0)
    talk.say(b"remote", Hello("laptop", 1, {"arithmetic": "b"}), local=False)
    assert talk.socket.take(Welcome, b"remote")


def remote_actor(talk: Conversation, name: str, user: str) -> bytes:
    identity = f"{name} of {user}".encode()
    talk.say(identity, Hello(name, 1, {"numpy": "2"}), user)
    talk.say(identity, Ready(SPACES, {}), user)
    return identity


def test_a_message_with_another_key_than_its_hello_is_refused_with_all_that_follows() -> None:
    """It does not matter how the other sender obtained the connection's identity."""
    talk = Conversation(num_actors=0)
    talk.publish(0)
    actor = remote_actor(talk, "laptop", "key")
    grant = talk.socket.take(Grant, actor)[0]
    talk.say(actor, fulfil(grant), "another key")
    assert talk.roster.refusals.counts == {"wrong user": 1}
    assert "laptop" in talk.socket.take(Refusal, actor)[0].reason
    assert not talk.coordinator.ledger.produced
    talk.say(actor, fulfil(grant), "key")
    assert talk.coordinator.ledger.dropped == {"stale": STEPS}


def test_no_other_key_takes_over_an_actors_name_and_its_own_does() -> None:
    talk = Conversation(num_actors=0)
    talk.publish(0)
    actor = remote_actor(talk, "laptop", "key")
    impostor = remote_actor(talk, "laptop", "another key")
    assert "another key" in talk.socket.take(Refusal, impostor)[0].reason
    assert talk.roster.refusals.counts["wrong user"] == 1
    assert talk.socket.take(Grant, actor) and not talk.socket.take(Grant, impostor)
    talk.say(b"again", Hello("laptop", 2, {"numpy": "2"}), "key")
    assert talk.socket.take(Welcome, b"again") and not talk.socket.take(Refusal)


def test_no_key_takes_the_name_of_an_actor_of_this_machine() -> None:
    talk = Conversation(num_actors=1)
    talk.join(0)
    impostor = remote_actor(talk, "0", "key")
    assert talk.socket.take(Refusal, impostor) and not talk.socket.take(Welcome, impostor)
    assert talk.roster.refusals.counts["name"] == 1


def test_what_a_revoked_key_sends_is_refused_and_its_lanes_go_to_the_others() -> None:
    talk = Conversation(num_actors=0)
    talk.publish(0)
    actor = remote_actor(talk, "laptop", "key")
    grants = talk.socket.take(Grant, actor)
    other = remote_actor(talk, "desk", "another key")
    talk.socket.revoked.add("key")
    talk.say(actor, fulfil(grants[0]), "key")
    assert "no longer allowed" in talk.socket.take(Refusal, actor)[0].reason
    assert {grant.lane for grant in talk.socket.take(Grant, other)} == {0, 1, 2, 3}
    assert not talk.coordinator.ledger.produced


def test_a_run_that_is_over_waits_until_remote_actors_have_heard_it(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation(num_actors=0)
    remote_actor(talk, "laptop", "key")
    asked: list[bytes] = []

    def reaches(identity: bytes) -> bool:
        asked.append(identity)
        return len(asked) < 3  # From the third call on, the actor is gone.

    monkeypatch.setattr(talk.socket, "reaches", reaches)
    talk.coordinator.dismiss("the run is over")
    assert len(talk.socket.take(Stop)) == 1
    assert len(asked) == 3


def test_a_run_that_is_over_does_not_wait_for_ever() -> None:
    talk = Conversation(num_actors=0)
    remote_actor(talk, "laptop", "key")
    talk.coordinator.dismiss("the run is over")
    assert len(talk.socket.take(Stop)) == 1


def test_an_actor_with_other_spaces_is_refused() -> None:
    talk = Conversation()
    talk.join(0)
    talk.say(b"other", Hello("1", 2, {"numpy": "2"}))
    assert len(talk.socket.take(Welcome, b"other")) == 1
    talk.say(b"other", Ready(replace(SPACES, choices=(3,)), {}))
    assert talk.socket.take(Refusal, b"other")


@pytest.mark.parametrize(
    "change",
    [
        {"choices": (0,)},
        {"choices": (2**40,)},
        {"observation": BoxSpace((-1,), "float32"), "parts": (numbers(-1),)},
        {"observation": BoxSpace((2**20, 2**20), "float32"), "parts": (numbers(2**20, 2**20),)},
        {"observation": BoxSpace((4,), "nonsense"), "parts": (numbers(4, dtype="nonsense"),)},
        {"observation": BoxSpace((5,), "float32")},
        {"parts": ()},
        {"action": BoxSpace((3,), "int64")},
    ],
    ids=str,
)
def test_spaces_that_no_environment_has_are_refused(change: dict[str, Any]) -> None:
    talk = Conversation()
    talk.say(b"first", Hello("0", 1, {"numpy": "2"}))
    talk.say(b"first", Ready(replace(SPACES, **change), {}))
    assert talk.socket.take(Refusal, b"first")
    assert talk.roster.spaces is None


def test_garbage_is_answered_with_its_reason() -> None:
    talk = Conversation()
    talk.say(b"stranger", ProtocolError("the header is not a map"))
    assert talk.socket.take(Refusal, b"stranger")[0].reason == "the header is not a map"


def test_a_lane_that_brings_its_actors_down_ends_the_run() -> None:
    talk = Conversation(num_actors=1)
    talk.publish(0)
    with pytest.raises(Exception, match="actors in a row were lost with rollout 0 of lane 0"):
        for _ in range(100):
            talk.join(0)


def test_remote_actors_that_leave_never_end_the_run() -> None:
    """Otherwise a stranger could end the run by repeatedly taking a lane and sending invalid messages."""
    talk = Conversation(num_actors=0)
    talk.publish(0)
    for i in range(100):
        stranger = talk.join_remotely(f"stranger{i}")
        assert talk.socket.take(Grant, stranger)
        talk.say(stranger, ProtocolError("nonsense"), local=False)
    assert talk.roster.refusals.counts == {"malformed": 100}


def flood(talk: Conversation) -> None:
    """Make every `receive` return a stranger's message, which takes a millisecond to handle."""

    def receive(timeout: float) -> Received:
        talk.clock.now += 0.001
        return Received(b"flood", None, ProtocolError("nonsense"), local=False)

    talk.socket.receive = receive


def test_a_hung_actor_is_found_in_a_flood_too() -> None:
    talk = Conversation(num_actors=2, step_timeout=0.05)
    talk.publish(0)
    talk.join(0)
    flood(talk)
    began = talk.clock.now
    while not talk.told(ActorHangs):
        assert talk.clock.now < began + 1
        talk.serve()


def test_an_actor_is_not_taken_to_hang_because_the_learner_was_busy() -> None:
    """The learner was busy for so long that the actor's messages are still in the queue."""
    talk = Conversation(num_actors=1, step_timeout=0.5)
    talk.publish(0)
    slow = talk.join(0)
    talk.clock.now += 1
    talk.socket.inbox += [Received(b"other", None, Progress(1, 0.0, 0.0)), Received(slow, None, Progress(1, 0.0, 0.0))]
    talk.serve()
    talk.serve()
    talk.serve()
    assert not talk.told(ActorHangs)


def test_failed_handshakes_are_counted_in_a_flood_too() -> None:
    talk = Conversation()
    flood(talk)
    talk.socket.seen = Disturbances(failed_handshakes=7)
    talk.serve()
    assert talk.roster.refusals.counts["handshake"] == 7


def test_nobody_elsewhere_can_take_the_name_of_an_actor_of_this_machine() -> None:
    talk = Conversation(num_actors=1, step_timeout=0.5)
    talk.publish(0)
    own = talk.join(0)
    talk.say(b"stranger", Hello("0", 1, {"numpy": "2"}), local=False)
    assert talk.roster.refusals.counts == {"name": 1}
    assert list(talk.roster.actors) == [own]


def test_actors_of_this_machine_say_what_is_right_where_there_are_any() -> None:
    talk = Conversation(num_actors=1)
    talk.say(b"stranger", Hello("stranger", 1, {"numpy": "1"}), local=False)
    assert not talk.socket.sent
    own = talk.join(0)
    assert talk.roster.fingerprint == {"numpy": "2"}
    talk.say(b"stranger", Hello("stranger", 1, {"numpy": "1"}), local=False)
    assert talk.socket.take(Refusal, b"stranger") and not talk.socket.take(Refusal, own)


def test_ten_thousand_hellos_take_no_more_than_so_many_places_and_are_forgotten() -> None:
    talk = Conversation(num_actors=1)
    own = talk.join(0)
    for i in range(10_000):
        talk.say(f"{i}".encode(), Hello(f"stranger{i}", 1, {"numpy": "2"}), local=False)
    assert len(talk.roster.actors) == MAX_REMOTE + 1
    assert talk.roster.refusals.counts == {"too many": 10_000 - MAX_REMOTE}
    talk.clock.now += 100
    talk.serve()
    assert list(talk.roster.actors) == [own]


def test_no_more_is_said_of_strangers_that_come_and_go_than_can_be_read() -> None:
    talk = Conversation(num_actors=1, step_timeout=0.5)
    talk.publish(0)
    talk.join(0)
    for i in range(200):
        talk.socket.gone.add(talk.join_remotely(f"stranger{i}"))
    talk.socket.seen = Disturbances(disconnections=200)
    talk.serve()
    for i in range(200):
        talk.join_remotely(f"silent{i}")
    talk.clock.now += 1
    talk.serve()
    assert AT_ONCE <= len(talk.events) < 100


def test_a_lane_cannot_be_left_with_episodes_that_it_never_had() -> None:
    """Otherwise the next actor of the lane would refuse the state that the learner sends, and the run would end."""
    talk = Conversation(num_actors=1)
    talk.publish(0)
    actor = talk.join(0)
    for indices in ([-1, 0], [1, 0], [0, 2**62]):
        grant = talk.socket.take(Grant)[0]
        talk.say(actor, fulfil(grant, episode_indices=np.array(indices)))
        assert "episode_indices" in talk.socket.take(Refusal, actor)[0].reason
        actor = talk.join(0)


def test_a_newcomer_is_heard_where_the_learner_never_has_to_wait() -> None:
    talk = Conversation(num_actors=1, schedule="sync")
    talk.publish(0)
    actor = talk.join(0)
    for grant in talk.socket.take(Grant):
        talk.say(actor, fulfil(grant))
    talk.socket.inbox.append(Received(b"newcomer", None, Hello("newcomer", 1, {"numpy": "2"}), local=False))
    talk.coordinator.gather(0)
    assert talk.socket.take(Welcome, b"newcomer")


def test_progress_of_nobody_is_counted() -> None:
    talk = Conversation()
    talk.say(b"stranger", Progress(1, 0.0, 0.0), local=False)
    assert talk.roster.refusals.counts == {"unknown sender": 1}


def test_gathered_trajectories_are_in_lane_order_and_forgotten_once_trained_on() -> None:
    talk = Conversation(num_actors=1, schedule="sync")
    talk.publish(0)
    actor = talk.join(0)
    for grant in reversed(talk.socket.take(Grant)):
        talk.say(actor, fulfil(grant))
    assert [trajectory.lane for trajectory in talk.coordinator.gather(0)] == [0, 1, 2, 3]
    talk.coordinator.trained_on()
    assert talk.coordinator.ledger.trained == 4 * STEPS
    assert [border.rollout_index for border in talk.coordinator.table.trained_borders()] == [1, 1, 1, 1]


class Talk(Conversation):
    """A conversation with schedule `async`: actor `fast` fulfils its grants while the learner waits."""

    fast: bytes
    version = 0  # Policy version that `fast` acts with.

    def gather(self, version: int) -> list[tuple[int, int]]:
        """Gather while only `fast` delivers; returns (lane, rollout) of each trajectory."""

        def receive(timeout: float) -> Received | None:
            grants = self.socket.take(Grant, self.fast) if timeout else []
            self.socket.sent += [(self.fast, grant) for grant in grants[1:]]
            return Received(self.fast, None, fulfil(grants[0], policy_version=self.version)) if grants else None

        before, self.socket.receive = self.socket.receive, receive
        gathered = self.coordinator.gather(version)
        self.socket.receive = before
        return [(trajectory.lane, trajectory.rollout_index) for trajectory in gathered]

    def learn(self, version: int) -> None:
        """Publish the next version, and discard the trajectories that it was learned from."""
        self.publish(version + 1)
        self.version = version + 1
        self.coordinator.trained_on()


def test_async_learns_from_the_first_to_arrive() -> None:
    talk = Talk(num_actors=4, schedule="async")
    talk.publish(0)
    talk.fast, other, *_ = [talk.join(i) for i in range(4)]
    (waiting,) = talk.socket.take(Grant, other)
    assert (waiting.lane, waiting.rollout_index, waiting.policy_version) == (1, 0, 0)
    assert talk.gather(0) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    talk.learn(0)
    assert [border.rollout_index for border in talk.coordinator.table.trained_borders()] == [4, 0, 0, 0]
    talk.say(other, fulfil(waiting))
    (following,) = talk.socket.take(Grant, other)
    assert (following.rollout_index, following.policy_version) == (1, 1)
    assert talk.gather(1) == [(0, 4), (0, 5), (0, 6), (1, 0)]


def test_async_lets_lanes_go_on_while_the_learner_learns_until_a_batch_is_there() -> None:
    talk = Talk(num_actors=4, schedule="async")
    talk.publish(0)
    talk.fast, *_ = [talk.join(i) for i in range(4)]
    talk.gather(0)
    talk.learn(0)  # The other three rollouts began before this version, so the batch does not count on them.
    for delivered in range(4):
        (grant,) = talk.socket.take(Grant, talk.fast)
        assert grant.rollout_index == 4 + delivered
        talk.socket.inbox.append(Received(talk.fast, None, fulfil(grant)))
        talk.coordinator.serve_waiting()
    assert not talk.socket.take(Grant, talk.fast)


def test_async_wants_one_rollout_of_each_lane_where_all_are_equally_fast() -> None:
    talk = Talk(num_actors=1, schedule="async")
    talk.publish(0)
    talk.fast = talk.join(0)
    assert talk.gather(0) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    for grant in talk.socket.take(Grant):
        talk.say(talk.fast, fulfil(grant))
    assert not talk.socket.take(Grant), "they would act with weights that are about to be replaced"
    talk.learn(0)
    assert talk.gather(1) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert [grant.policy_version for grant in talk.socket.take(Grant)] == [1, 1, 1, 1]


def test_async_drops_what_is_older_than_max_lag() -> None:
    talk = Talk(num_actors=2, schedule="async")
    limit = EXPERIMENT.max_lag
    talk.publish(0)
    slow, talk.fast = talk.join(0), talk.join(1)
    late = talk.socket.take(Grant, slow)
    for version in range(limit + 1):
        talk.gather(version)
        talk.learn(version)
    assert {border.rollout_index for border in talk.coordinator.table.trained_borders()[:2]} == {0}
    for grant in late:
        talk.say(slow, fulfil(grant))
    assert {lane for lane, _ in talk.gather(limit + 1)} == {2, 3}
    ledger = talk.coordinator.ledger
    assert ledger.dropped == {"too_old": 2 * STEPS}
    talk.learn(limit + 1)
    assert {border.rollout_index for border in talk.coordinator.table.trained_borders()[:2]} == {1}
    assert not talk.told(Caution)


def test_async_says_when_much_is_dropped() -> None:
    talk = Talk(num_actors=1, schedule="async")
    talk.publish(0)
    talk.fast = talk.join(0)
    talk.publish(EXPERIMENT.max_lag + 1)
    for grant in talk.socket.take(Grant):
        talk.say(talk.fast, fulfil(grant, policy_version=0))
    talk.version = EXPERIMENT.max_lag + 1
    talk.gather(EXPERIMENT.max_lag + 1)
    (warning,) = [event.text for event in talk.told(Caution)]
    assert "more than --max-lag 4 versions old" in warning


def test_async_takes_no_rollout_that_was_not_granted() -> None:
    talk = Conversation(num_actors=1, schedule="async")
    talk.publish(0)
    actor = talk.join(0)
    for grant in talk.socket.take(Grant):
        talk.say(actor, fulfil(grant))
        talk.say(actor, fulfil(grant, rollout_index=1))
    assert talk.coordinator.ledger.dropped == {"stale": 4 * STEPS}


def test_async_takes_no_rollout_of_a_version_that_there_is_not() -> None:
    talk = Conversation(num_actors=1, schedule="async")
    talk.publish(0)
    actor = talk.join(0)
    grants = talk.socket.take(Grant)
    talk.say(actor, fulfil(grants[0], policy_version=1))
    talk.say(actor, fulfil(grants[1], policy_version=-1))
    assert talk.coordinator.ledger.dropped == {"stale": 2 * STEPS}


def test_books_that_do_not_balance_are_an_error() -> None:
    ledger = SampleLedger()
    ledger.accept(10)
    ledger.check(in_flight=10)
    with pytest.raises(RuntimeError, match="does not balance"):
        ledger.check(in_flight=5)
    ledger.produced += 1
    with pytest.raises(RuntimeError, match="does not balance"):
        ledger.check(in_flight=10)


def test_a_settled_ledger_leaves_out_what_will_be_produced_again() -> None:
    ledger = SampleLedger()
    ledger.accept(30)
    ledger.drop(5, "stale")
    ledger.train(20)
    assert ledger.settled() == {"produced": 25, "trained": 20, "dropped": {"stale": 5}, "in_flight": 0}


LAST_WORDS: list[Message] = [
    Hello("0", 1, {"numpy": "2"}),  # From a killed actor, which repeated the message while it was idle.
    Hello("0", 2, {"numpy": "2"}),  # From the actor's replacement.
    Hello("0", 2, {"numpy": "2"}),  # The replacement repeats the message, too.
    Ready(SPACES, {}),
    Ready(SPACES, {}),
]


def in_every_order(count: int) -> Iterator[tuple[int, ...]]:
    """Orders in which messages of a killed actor, the news of its loss, and its replacement's messages can be read."""
    dead, lost, alive = (0, 1), 2, (3, 4, 5, 6)
    for order in permutations(range(count)):
        kept = [[i for i in order if i in who] for who in (dead, alive)]  # Each actor's own messages keep their order.
        if kept == [sorted(who) for who in kept] and lost in order:
            yield order


@pytest.mark.parametrize("welcomed", [True, False])
def test_the_last_words_of_a_killed_actor_change_nothing_in_whatever_order_they_are_read(welcomed: bool) -> None:
    for order in in_every_order(7):
        talk = Conversation(num_actors=2)
        other = talk.join(1, pid=10)
        if welcomed:
            talk.say(b"dead", Hello("0", 1, {"numpy": "2"}))
            talk.say(b"dead", Ready(SPACES, {}))
        talk.publish(0)
        talk.socket.sent.clear()

        def speak(step: int, talk: Conversation = talk) -> None:
            hello, ready = LAST_WORDS[1], LAST_WORDS[3]
            match step:
                case 0 | 1:
                    talk.say(b"dead", LAST_WORDS[0] if step == 0 else ready)
                case 2:
                    talk.launcher.lost.put(1)
                    talk.serve()
                case _:
                    talk.say(b"alive", hello if step < 5 else ready)

        for step in order:
            speak(step)
        talk.say(b"alive", LAST_WORDS[1])  # The idle replacement repeats its hello.
        if talk.socket.take(Welcome, b"alive"):
            talk.say(b"alive", LAST_WORDS[3])  # Once welcomed, it sends that it is ready.
        assert not talk.socket.take(Refusal), order
        assert talk.roster.refusals.counts.keys() <= {"past life", "unknown sender"}, order
        owners = Counter(lane.owner for lane in talk.lanes)
        assert owners == {other: 2, b"alive": 2}, order


def test_words_over_a_connection_that_is_gone_do_not_put_out_the_actor_that_came_back() -> None:
    talk = Conversation(num_actors=0)
    first = Hello("desk", 0, {"numpy": "2"}, connection=1)
    talk.say(b"old", first, local=False)
    talk.say(b"old", Ready(SPACES, {}), local=False)
    talk.say(b"new", replace(first, connection=2), local=False)
    talk.say(b"new", Ready(SPACES, {}), local=False)
    talk.say(b"old", first, local=False)
    assert {lane.owner for lane in talk.lanes} == {b"new"}
    talk.socket.gone.add(b"older")
    talk.say(b"older", replace(first, connection=2), local=False)  # The actor did not notice that it had reconnected.
    assert {lane.owner for lane in talk.lanes} == {b"new"}
    assert talk.roster.refusals.counts == {"past life": 2}


def test_an_actor_that_was_given_up_is_not_welcomed_again() -> None:
    talk = Conversation(num_actors=1, step_timeout=0.5)
    identity = talk.join(0, pid=7)
    talk.publish(0)
    talk.clock.now += 1
    talk.serve()
    (kill,) = talk.told(ActorHangs)
    assert (kill.actor, kill.life) == ("0", 7)
    assert "--step-timeout" in kill.reason
    talk.say(identity, Hello("0", 7, {"numpy": "2"}))
    assert not talk.roster.actors


def test_a_lane_that_brought_a_second_actor_down_waits_for_its_replacement() -> None:
    """For example, if a process can have only one simulator, a second lane in the same process brings it down."""
    talk = Conversation(num_actors=4)
    actors = [talk.join(i, pid=i + 1) for i in range(4)]
    talk.publish(0)
    lanes = talk.lanes
    assert [lane.owner for lane in lanes] == actors
    talk.launcher.lost.put(1)
    talk.serve()
    second = lanes[0].owner
    assert second in actors[1:]  # After the first loss, the lane moves at once.
    talk.launcher.lost.put(actors.index(second) + 1)
    talk.serve()
    kept = [actor for actor in actors[1:] if actor != second]
    assert Counter(lane.owner for lane in lanes) == {None: 2, kept[0]: 1, kept[1]: 1}
    talk.join(0, pid=5)
    assert sorted(Counter(lane.owner for lane in lanes).values()) == [1, 1, 1, 1]
    talk.join(actors.index(second), pid=6)
    assert None not in {lane.owner for lane in lanes}
    assert set(Counter(lane.owner for lane in lanes).values()) == {1}


@pytest.mark.parametrize("wanted", [{"0"}, {"1", "2"}], ids=["fewer are wanted", "some were given up"])
def test_lanes_do_not_wait_for_actors_that_nobody_starts_again(wanted: set[str]) -> None:
    """Otherwise lanes would wait for a replacement after their second loss, as long as --step-timeout."""
    talk = Conversation(num_actors=4)
    for index in range(4):
        talk.join(index, pid=index + 1)
    talk.publish(0)
    lanes = talk.lanes
    for life in (5, 6):
        assert lanes[0].owner is not None
        host = talk.roster.actors[lanes[0].owner]
        talk.launcher.lost.put(host.life)
        talk.serve()
        talk.join(int(host.name), pid=life)
    assert lanes[0].losses == 2
    talk.launcher.wanted.put(wanted)
    for actor in list(talk.roster.actors.values()):
        if actor.name not in wanted:
            talk.launcher.lost.put(actor.life)
    talk.serve()
    assert lanes[0].losses == 2  # The end of an actor that is not wanted does not count as a loss.
    assert None not in {lane.owner for lane in lanes}
    assert {talk.roster.actors[lane.owner].name for lane in lanes if lane.owner} == wanted


def test_a_learner_tells_that_it_is_at_work_and_for_how_long_it_may_be_silent() -> None:
    events: list[Any] = []
    launcher = Launcher(events.append)
    for _ in range(3):
        launcher.alive(60.0)
    launcher.alive(600.0)  # A longer time is sent at once, because silence may follow.
    launcher.alive(60.0)  # A shorter time is sent at once, too.
    assert [event.patience for event in events] == [60.0, 600.0, 60.0]
