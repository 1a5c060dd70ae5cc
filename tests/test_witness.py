"""Rollouts collected a second time: their choice, their comparison, and the environments that differ."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT, SMALL, launch, summary_of
from making import snapshot_of, trained_model, with_array
from marks import slow
from test_coordinator import EXPERIMENT, STEPS, Conversation, fulfil, looks  # noqa: F401 (a fixture)

from actors.environment import make_environment
from actors.lane import Lane
from actors.policy import Policy
from actors.rollout import collect_rollout
from actors.spaces import describe_spaces
from learner.borders import LaneBorder
from learner.lanes import LaneRecord
from learner.witness import (
    EARLY,
    EARLY_ROLLOUTS,
    EARLY_SHARE,
    FAULTY_SHARE,
    LATER_SHARE,
    MAX_FAILURES,
    Witness,
    first_difference,
)
from protocol.events import ActorHangs, Actors, Caution
from protocol.execution import WITNESS
from protocol.experiment import Experiment
from protocol.messages import Grant, Progress, SecondCollection, SecondGrant
from protocol.trajectory import AXES, Trajectory

SMALL_CARTPOLE = Experiment("CartPole-v1", num_envs=4, lane_size=4, rollout_length=40, recurrent_size=3)

ENVIRONMENTS = '''
"""Environments that do not repeat themselves, each in a way of its own."""

import os
import time

import gymnasium
import numpy as np


class Good(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    resets = 0
    shared = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.resets += 1
        self.steps, self.place = 0, float(self.np_random.uniform(-1, 1))
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        self.place += 0.1 if action else -0.1
        return self._observe(), 1.0 - abs(self.place), self._ends(), self.steps >= 24, {}

    def _observe(self):
        return np.array([self.place, self._extra()], np.float32)

    def _extra(self):
        return 0.0

    def _ends(self):
        return False


class AfterEpisodes(Good):
    def _extra(self):
        return float(self.resets > 3)


class LateInEpisode(Good):
    def _extra(self):
        return float(np.random.default_rng().random()) if self.steps == 23 else 0.0


class ByClock(Good):
    def _ends(self):
        return self.steps > 3 and time.perf_counter_ns() // 1000 % 4 == 0


class Shared(Good):
    def reset(self, **arguments):
        Good.shared += 1
        return super().reset(**arguments)

    def _extra(self):
        return float(Good.shared)


class ByProcess(Good):
    def _extra(self):
        return os.getpid() / 1e6


class Ages(Good):
    """Changes when its process has made so many steps, whichever environments these were of."""

    made = 0

    def step(self, action):
        Ages.made += 1
        return super().step(action)

    def _extra(self):
        return float(Ages.made > 850)


class NowAndThen(Good):
    def step(self, action):
        if int.from_bytes(os.urandom(4)) % 1000 == 0:
            raise TimeoutError("the simulator did not answer")
        return super().step(action)


for kind in (Good, AfterEpisodes, LateInEpisode, ByClock, Shared, ByProcess, Ages, NowAndThen):
    gymnasium.register(kind.__name__ + "-v0", entry_point=kind)
'''


class Twice:
    """A rollout of a lane, and its border; `again` collects it with fresh environments."""

    def __init__(self, rollouts: int = 3) -> None:
        env = make_environment(SMALL_CARTPOLE)
        self.spaces = describe_spaces(env, SMALL_CARTPOLE)
        env.close()
        model = trained_model(self.spaces, SMALL_CARTPOLE, np.random.default_rng(0))
        self._policy = Policy(snapshot_of(model), self.spaces, SMALL_CARTPOLE)
        self.border = LaneBorder.first(SMALL_CARTPOLE)
        lane = self._lane()
        lane.begin()
        self.first = self._collect(lane)
        for _ in range(rollouts - 1):
            self.border = self.border.after(self.first)
            self.first = self._collect(lane)

    def again(self) -> Trajectory:
        lane = self._lane()
        lane.rebuild(self.border.state())
        return self._collect(lane)

    def _lane(self) -> Lane:
        return Lane(0, SMALL_CARTPOLE, self.spaces, progress=lambda: None)

    def _collect(self, lane: Lane) -> Trajectory:
        grant = Grant("run", 0, self.border.rollout_index, 0, 0, None)
        return collect_rollout(lane, self._policy, grant, SMALL_CARTPOLE, self.spaces)


@pytest.fixture(scope="module")
def twice() -> Twice:
    return Twice()


def test_a_second_collection_is_the_same_to_the_bit(twice: Twice) -> None:
    assert twice.first.done.any()
    assert first_difference(SMALL_CARTPOLE, twice.border, twice.first, twice.again()) is None


ARRAYS = [name for name in AXES if name not in ("restarted", "action_masks")]


@pytest.mark.parametrize("name", ARRAYS)
def test_a_bit_in_any_array_is_a_difference(twice: Twice, name: str) -> None:
    array = twice.first.array(name).copy()
    if array.size == 0:
        array = np.zeros((1, *array.shape[1:]), array.dtype)
    else:
        array.reshape(-1).view(np.uint8)[-1] ^= 1
    other = with_array(twice.first, name, array)
    assert first_difference(SMALL_CARTPOLE, twice.border, twice.first, other) is not None


def test_the_first_difference_is_named_with_seed_and_step(twice: Twice) -> None:
    first, env = twice.first, 2
    ends = np.flatnonzero(first.done[:, env])
    assert len(ends)
    time = int(ends[0]) + 3  # A step in the second episode of the rollout.
    observations, rewards = first.observations.copy(), first.rewards.copy()
    observations[time, env, 0] += 1
    rewards[time - 1 :, env] += 1
    said = first_difference(
        SMALL_CARTPOLE, twice.border, first, replace(first, observations=observations, rewards=rewards)
    )
    assert said is not None and "environment 2, " in said and said.endswith("after 1 steps: the reward differs")
    said = first_difference(SMALL_CARTPOLE, twice.border, first, replace(first, observations=observations))
    assert said is not None and said.endswith("after 2 steps: the observation differs")


def lanes_after(rollouts: int, log: int) -> list[LaneRecord]:
    """Lanes whose rollout of index `rollouts` was accepted; their running episodes had `log` steps before it."""
    actions = np.zeros(log, np.int64)
    digests, hidden_state = np.zeros((2, 8), np.uint8), np.zeros((2, 0), np.float32)
    border = LaneBorder(rollouts, np.zeros(2, np.int64), ((actions,), (actions,)), digests, hidden_state, np.zeros(2))
    trajectory = fulfil(Grant("run", 0, rollouts, 0, 0, None))
    return [LaneRecord({rollouts: border}, {rollouts: trajectory}) for _ in range(4)]


ITERATIONS = 5000
TOTAL_STEPS = ITERATIONS * EXPERIMENT.env_steps_per_iteration


@pytest.mark.parametrize("endless", [False, True])
def test_what_is_collected_a_second_time_is_a_bounded_share(endless: bool) -> None:
    witness, asked = Witness(EXPERIMENT, ITERATIONS), []
    for index in range(ITERATIONS):
        lanes = lanes_after(index, 3 * index if endless else 0)
        lane = witness.choose(index, lanes, (index + 1) * EXPERIMENT.env_steps_per_iteration)
        if lane is not None:
            asked.append((index, lane))
            witness.ask(b"a", True, lanes[lane].borders[index], lanes[lane].accepted[index])
            assert witness.compare(lanes[lane].accepted[index]) is None
    assert witness.rollouts == len(asked)
    assert [index for index, _ in asked if index <= 20] == [1, 4, 8, 16]
    assert len({lane for _, lane in asked}) == 4
    last = 0 if endless else STEPS  # The last rollout is collected a second time if this is cheap.
    assert [index for index, _ in asked if index == ITERATIONS - 1] == ([] if endless else [ITERATIONS - 1])
    assert witness.steps <= (EARLY_SHARE if endless else LATER_SHARE) * TOTAL_STEPS + last
    assert len(asked) >= (4 if endless else 20)


@pytest.mark.parametrize("endless", [False, True])
def test_in_a_short_run_early_rollouts_are_bounded_as_well(endless: bool) -> None:
    witness = Witness(EXPERIMENT, 20)
    for index in range(20):
        lanes = lanes_after(index, 3 * index if endless else 0)
        lane = witness.choose(index, lanes, (index + 1) * EXPERIMENT.env_steps_per_iteration)
        if lane is not None:
            witness.ask(b"a", True, lanes[lane].borders[index], lanes[lane].accepted[index])
            assert witness.compare(lanes[lane].accepted[index]) is None
    assert witness.rollouts == (2 if endless else 5)
    assert witness.steps <= EARLY_ROLLOUTS * STEPS + (0 if endless else STEPS)  # The last rollout adds `STEPS`.


def test_a_rollout_with_a_fault_is_collected_a_second_time_before_others() -> None:
    """A fault that follows from the seed comes again. A timeout does not, and other runs do not have it there."""
    witness = Witness(EXPERIMENT, ITERATIONS)
    lanes = lanes_after(7, 0)  # Without a fault, no rollout of this index is collected again.
    assert witness.choose(7, lanes, 0) is None
    lanes[2].accepted[7] = replace(lanes[2].accepted[7], fault_count=1)
    assert witness.choose(7, lanes, 0) == 2


def test_rollouts_with_faults_are_a_bounded_share_as_well() -> None:
    witness = Witness(EXPERIMENT, ITERATIONS)
    for index in range(ITERATIONS):
        lanes = lanes_after(index, 0)
        for lane in lanes:
            lane.accepted[index] = replace(lane.accepted[index], fault_count=1)
        chosen = witness.choose(index, lanes, (index + 1) * EXPERIMENT.env_steps_per_iteration)
        if chosen is not None:
            witness.ask(b"a", True, lanes[chosen].borders[index], lanes[chosen].accepted[index])
            assert witness.compare(lanes[chosen].accepted[index]) is None
    assert witness.rollouts > 100
    assert witness.steps <= (FAULTY_SHARE * EARLY_SHARE + LATER_SHARE) * TOTAL_STEPS


def ask(talk: Conversation, actors: list[bytes]) -> tuple[bytes, SecondGrant]:
    """Collect and gather each lane's first two rollouts; returns (actor asked to collect again, its second grant)."""
    for version in range(2):
        talk.publish(version)
        while grants := [(i, m) for i, m in talk.socket.sent if isinstance(m, Grant)]:
            talk.socket.sent.clear()
            for identity, grant in grants:
                talk.say(identity, fulfil(grant))
        talk.coordinator.gather(version)
        if version == 0:
            talk.coordinator.trained_on()
    ((identity, request),) = [(i, m) for i, m in talk.socket.sent if isinstance(m, SecondGrant)]
    assert identity in actors
    return identity, request


def test_another_process_is_asked_and_what_it_says_is_never_trained_on() -> None:
    talk = Conversation(num_actors=2, schedule="sync")
    actors = [talk.join(0), talk.join(1)]
    talk.roster.actors[actors[0]].pid = 1
    identity, request = ask(talk, actors)
    lane = request.grant.lane
    assert identity != talk.lanes[lane].owner
    ledger = talk.coordinator.ledger.as_dict()
    talk.say(identity, SecondCollection(request.grant.fencing_token, fulfil(request.grant)))
    assert talk.coordinator.witness.state_dict() == {
        "rollouts": 1,
        "in_other_processes": 1,
        "differences": 0,
        "steps": 12,
        "updates": 0,
        "update_differences": 0,
    }
    assert talk.coordinator.ledger.as_dict() == ledger
    assert talk.coordinator.reproducible
    assert not talk.told(Caution)


def test_an_actor_that_hosts_no_lanes_is_asked_once_it_is_there() -> None:
    """The witness joins last, as some simulators run only once on a machine. No lane waits for it or moves to it."""
    talk = Conversation(num_actors=1, schedule="sync", witness=True)
    early = talk.join(WITNESS)
    assert not talk.roster.actors
    only = talk.join(0)
    talk.publish(0)
    assert {lane.owner for lane in talk.lanes} == {only}
    for grant in talk.socket.take(Grant):
        talk.say(only, fulfil(grant))
    assert talk.roster.awaits_witness
    witness = talk.join(WITNESS)
    assert witness != early and not talk.roster.awaits_witness
    talk.coordinator.gather(0)
    talk.coordinator.trained_on()
    talk.publish(1)
    for grant in talk.socket.take(Grant):
        talk.say(only, fulfil(grant))
    assert {lane.owner for lane in talk.lanes} == {only}
    talk.coordinator.gather(1)
    ((identity, request),) = [(i, m) for i, m in talk.socket.sent if isinstance(m, SecondGrant)]
    assert identity == witness
    talk.say(witness, SecondCollection(request.grant.fencing_token, fulfil(request.grant)))
    assert talk.coordinator.witness.in_other_processes == 1
    talk.coordinator.roster.report(talk.coordinator.table.by_owner, at_once=True)
    assert [facts.name for told in talk.told(Actors) for facts in told.actors if facts.name == WITNESS] == []


def test_the_last_rollouts_are_collected_a_second_time_by_whoever_hosts_no_lanes() -> None:
    """This shows environments that change late in a run, because the witness's process has made fewer steps."""
    talk = Conversation(num_actors=1, schedule="sync", witness=True, total_iterations=4)
    only, last = talk.join(0), 3
    for version in range(last + 1):
        talk.publish(version)
        for grant in talk.socket.take(Grant):
            talk.say(only, fulfil(grant))
        witness = talk.join(WITNESS) if version == last else b""
        for request in talk.socket.take(SecondGrant):
            talk.say(only, SecondCollection(request.grant.fencing_token, fulfil(request.grant)))
        talk.coordinator.gather(version)
        asked = [(i, m.grant.rollout_index) for i, m in talk.socket.sent if isinstance(m, SecondGrant)]
        assert asked == ([(witness if version == last else only, version)] if version in (*EARLY, last) else [])
        talk.coordinator.trained_on()


def test_a_simulator_that_a_process_can_have_once_is_witnessed_where_no_lane_is() -> None:
    talk = Conversation(num_actors=1, schedule="sync", witness=True, total_iterations=100)
    only = talk.join(0)
    talk.publish(0)
    for grant in talk.socket.take(Grant):
        talk.say(only, fulfil(grant))
    lanes = lanes_after(16, 0)
    for _ in range(MAX_FAILURES):
        talk.coordinator.witness.ask(only, False, lanes[0].borders[16], lanes[0].accepted[16])
        talk.coordinator.witness.forget(only)
    assert talk.coordinator.witness.choose(16, lanes, 10**6) is None
    talk.join(WITNESS)
    assert talk.coordinator.witness.choose(16, lanes, 10**6) is not None


def test_one_actor_is_its_own_witness() -> None:
    talk = Conversation(num_actors=1, schedule="sync")
    only = talk.join(0)
    identity, request = ask(talk, [only])
    talk.say(identity, SecondCollection(request.grant.fencing_token, fulfil(request.grant)))
    assert talk.coordinator.witness.rollouts == 1
    assert talk.coordinator.witness.in_other_processes == 0


def test_a_difference_is_told_once_and_the_run_is_not_reproducible() -> None:
    talk = Conversation(num_actors=1, schedule="sync")
    identity, request = ask(talk, [talk.join(0)])
    rewards = np.ones((3, 2), np.float32)
    talk.say(identity, SecondCollection(request.grant.fencing_token, fulfil(request.grant, rewards=rewards)))
    assert not talk.coordinator.reproducible
    (told,) = talk.told(Caution)
    assert "environment 0, " in told.text and "after 3 steps: the reward differs in fresh env" in told.text


@pytest.mark.parametrize("answer", ["none", "other number", "other actor", "other lane", "malformed"])
def test_an_answer_that_is_none_counts_for_nothing(answer: str) -> None:
    talk = Conversation(num_actors=2, schedule="sync")
    actors = [talk.join(0), talk.join(1)]
    identity, request = ask(talk, actors)
    second = fulfil(request.grant, rewards=np.ones((3, 2), np.float32))
    fencing_token = request.grant.fencing_token
    if answer == "none":
        talk.say(identity, SecondCollection(fencing_token, None))
    elif answer == "other number":
        talk.say(identity, SecondCollection(fencing_token + 1, second))
    elif answer == "other actor":
        talk.say(next(actor for actor in actors if actor != identity), SecondCollection(fencing_token, second))
    elif answer == "other lane":
        talk.say(identity, SecondCollection(fencing_token, replace(second, lane=second.lane + 1)))
    else:
        talk.say(identity, SecondCollection(fencing_token, replace(second, rewards=np.ones(3, np.float32))))
    assert talk.coordinator.witness.rollouts == 0
    assert talk.coordinator.reproducible


def test_witnesses_that_are_lost_again_and_again_are_asked_no_more() -> None:
    witness = Witness(EXPERIMENT, ITERATIONS)
    for index in EARLY[:MAX_FAILURES]:
        lanes = lanes_after(index, 0)
        lane = witness.choose(index, lanes, 10_000)
        assert lane is not None
        witness.ask(b"a", True, lanes[lane].borders[index], lanes[lane].accepted[index])
        assert witness.choose(index, lanes, 10_000) is None  # Only one second collection is under way at a time.
        witness.forget(b"b")
        assert witness.asked is not None
        witness.forget(b"a")
    assert witness.choose(64, lanes_after(64, 0), 10_000_000) is None


def test_a_witness_that_hangs_is_noticed() -> None:
    talk = Conversation(num_actors=1, schedule="sync", step_timeout=10.0)
    identity, _ = ask(talk, [talk.join(0)])
    talk.clock.now += 9
    talk.say(identity, Progress(1, 1.0, 0.0))
    talk.clock.now += 9
    talk.serve()
    assert talk.coordinator.witness.asked is not None
    talk.clock.now += 2
    talk.serve()
    assert talk.coordinator.witness.asked is None
    assert talk.told(ActorHangs)


RUN = [*SMALL, "--rollout-length", 16, "--total-steps", 16 * 16 * 20, "--epochs", 1]  # Twenty iterations.


@pytest.mark.parametrize(
    ("env", "flags"),
    [
        slow("AfterEpisodes", ["--actors", 1]),
        ("Ages", ["--actors", 1]),
        slow("Ages", ["--actors", 2]),
        slow("NowAndThen", ["--actors", 2]),
        slow("ByProcess", ["--actors", 4]),
        slow("AfterEpisodes", ["--actors", 4]),
        slow("LateInEpisode", ["--actors", 4]),
        slow("LateInEpisode", ["--actors", 1]),
        slow("ByClock", ["--actors", 4]),
        slow("Shared", ["--in-process", "--actors", 2]),
        slow("Shared", ["--actors", 1]),
        slow("Shared", ["--actors", 4]),
    ],
)
def test_what_does_not_repeat_itself_is_noticed_within_twenty_iterations(
    tmp_path: Path, env: str, flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ill.py").write_text(ENVIRONMENTS)
    monkeypatch.chdir(tmp_path)
    done = launch("--env", f"ill:{env}-v0", "--run-dir", tmp_path / "run", *RUN, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = summary_of(tmp_path / "run")
    assert summary["deterministic"] is False
    assert summary["witness"]["differences"] > 0
    assert done.stdout.count("does not repeat itself") == 1
    assert "episode seed" in done.stdout


@pytest.mark.slow
def test_no_false_alarm_and_every_row_counts_what_was_witnessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ill.py").write_text(ENVIRONMENTS)
    monkeypatch.chdir(tmp_path)
    done = launch("--env", "ill:Good-v0", "--run-dir", tmp_path / "run", *RUN, "--actors", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = summary_of(tmp_path / "run")
    assert summary["deterministic"] is True
    assert summary["witness"]["differences"] == 0
    assert 3 <= summary["witness"]["in_other_processes"] == summary["witness"]["rollouts"]
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    counts = [row["witness"]["rollouts"] for row in rows]
    assert counts == sorted(counts)


ODD = """
import sys
import numpy as np
from learner.device import prepare_device

prepare_device("cpu", 1)
from learner import learner

class Odd(learner.PPO):
    updates = 0

    def update(self, *arguments):
        self.updates += 1
        return super().update(*arguments)

    def state_dict(self):
        state = super().state_dict()
        if self.updates == 3:  # the first, the second, and the second again
            name = next(iter(state))
            state[name] = np.nextafter(state[name], np.float32(9))
        return state

if sys.argv.pop(1) == "odd":
    learner.PPO = Odd
from launch import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_an_update_that_does_not_repeat_itself_is_noticed(tmp_path: Path) -> None:
    """One bit differs, as on a device that adds in another order each time."""
    summaries, said = {}, {}
    for kind in ("odd", "even"):
        flags = ["--in-process", "--device", "cpu", "--run-dir", tmp_path / kind, *SMALL]
        command = [sys.executable, "-c", ODD, kind, *map(str, flags)]
        environ = os.environ | {"PYTHONHASHSEED": "0"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environ)
        summaries[kind], said[kind] = summary_of(tmp_path / kind), done.stdout
    odd, even = summaries["odd"], summaries["even"]
    assert odd["witness"]["updates"] == odd["witness"]["update_differences"] == 1
    assert odd["deterministic"] is False and "an update that was repeated" in said["odd"]
    assert even["witness"]["updates"] == 1 and even["witness"]["update_differences"] == 0
    assert even["deterministic"] is True and "1 update: all equal" in said["even"]
    assert odd["weights_digest"] == even["weights_digest"]  # The repeated update does not change the weights.
