"""Rollouts record the right data, and a lane rebuilt in another actor continues with the same bits."""

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from making import assert_same_bits

from actors.environment import make_environment
from actors.lane import EnvironmentFault, Lane
from actors.policy import Policy
from actors.rollout import collect_rollout
from actors.spaces import describe_spaces
from learner.borders import LaneBorder
from protocol.experiment import Experiment
from protocol.messages import Grant
from protocol.observations import normalized_size
from protocol.randomness import Purpose, environment_seed, generator
from protocol.snapshot import PolicySnapshot
from protocol.spaces import Spaces
from protocol.trajectory import LaneState, Trajectory


class Counter(gymnasium.Env):
    """Observations are (seed modulo 1000, steps taken); the reward is ten times the step's number."""

    seeds: ClassVar[list[int | None]] = []
    received: ClassVar[list[Any]] = []

    def __init__(self, length: int = 1_000_000, action_space: gymnasium.Space | None = None) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = action_space or gymnasium.spaces.Discrete(2)
        self._length = length

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self._place, self._steps = (seed or 0) % 1000, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        self.received.append(action)
        self._steps += 1
        return self._observe(), 10.0 * self._steps, self._steps >= self._length, False, {}

    def _observe(self) -> Any:
        return np.array([self._place, self._steps], np.float32)


class Leaky(Counter):
    """Counts steps over all episodes, so that no replay gives the same observations."""

    steps_ever: ClassVar[int] = 0
    in_reward: ClassVar[bool] = False

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        Leaky.steps_ever += 1
        if self.in_reward:
            return observation, reward + Leaky.steps_ever, terminated, truncated, info
        return observation + np.float32(Leaky.steps_ever), reward, terminated, truncated, info


class LeakyReward(Leaky):
    in_reward = True


class Fragile(Counter):
    """Episodes end after `length` steps, which tests change; a further step raises."""

    length: ClassVar[int] = 1_000_000

    def step(self, action: Any) -> Any:
        if self._steps >= self.length:
            raise RuntimeError("the episode is over")
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self._steps >= self.length, truncated, info


class Faulty(Counter):
    """Does `fault` at the third step or the reset of the episode whose seed is `faulty_seed`."""

    fault: ClassVar[str] = ""
    faulty_seed: ClassVar[int] = -1

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        self._is_faulty = seed == self.faulty_seed
        observation, info = super().reset(seed=seed, options=options)
        if self._is_faulty and self.fault.startswith("reset "):
            how = self.fault.removeprefix("reset ")
            if how.endswith(" once"):
                Faulty.fault = ""
            return self._spoil(observation, how.removesuffix(" once")), info
        return observation, info

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        if self._is_faulty and self._steps == 3 and not self.fault.startswith("reset "):
            if self.fault.endswith(" reward"):
                return observation, float(self.fault.split()[0]), *rest
            return self._spoil(observation, self.fault), reward, *rest
        return observation, reward, *rest

    def _spoil(self, observation: np.ndarray, how: str) -> np.ndarray:
        if how == "raise":
            raise RuntimeError("the simulator fell over")
        if how == "shape":
            return np.zeros(1, np.float32)
        return np.full_like(observation, float(how))


class ArrayReward(Counter):
    """Returns the reward as an array of one element, as some environments do."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, np.array([reward]), *rest


def register(name: str, environment: Callable[..., gymnasium.Env], limit: int | None = None, **settings: Any) -> None:
    gymnasium.register(f"tests/{name}-v0", environment, max_episode_steps=limit, kwargs=settings)


register("Endless", Counter)
register("Three", Counter, length=3)
register("CutAtThree", Counter, limit=3)
register("ThreeAndCut", Counter, limit=3, length=3)
register("Box", Counter, action_space=gymnasium.spaces.Box(-0.5, 0.25, (2,), np.float32))
register("FromFive", Counter, action_space=gymnasium.spaces.Discrete(3, start=5))
register("Leaky", Leaky)
register("LeakyReward", LeakyReward)
register("Fragile", Fragile)
register("Faulty", Faulty)
register("ArrayReward", ArrayReward)


@pytest.fixture(autouse=True)
def fresh_logs() -> Iterator[None]:
    Counter.seeds.clear()
    Counter.received.clear()
    yield


class Stage:
    """A lane, its policy, and the learner's knowledge of the lane, all in this process."""

    def __init__(self, env: str, lane: int = 0, **settings: Any) -> None:
        shape = {
            "num_envs": 8,
            "lane_size": 2,
            "rollout_length": 5,
            "hidden_sizes": (),
            "normalize_observations": False,
        }
        self.experiment = Experiment(env=env, **(shape | settings))
        environment = make_environment(self.experiment)
        self.spaces = describe_spaces(environment, self.experiment)
        environment.close()
        self.policy = Policy(make_snapshot(self.spaces, self.experiment), self.spaces, self.experiment)
        self.lane = Lane(lane, self.experiment, self.spaces, progress=lambda: None)
        self.border = LaneBorder.first(self.experiment)

    def begin(self) -> "Stage":
        self.lane.begin()
        return self

    def rebuilt(self) -> "Stage":
        """The same stage with a lane rebuilt from the border."""
        other = object.__new__(Stage)
        other.__dict__.update(self.__dict__)
        other.lane = Lane(self.lane.index, self.experiment, self.spaces, progress=lambda: None)
        other.lane.rebuild(self.state())
        return other

    def state(self) -> LaneState:
        state = self.border.state()
        state.check(self.experiment, self.spaces)
        return state

    def collect(self) -> Trajectory:
        grant = Grant("run", self.lane.index, self.border.rollout_index, 0, 0, None)
        trajectory = collect_rollout(self.lane, self.policy, grant, self.experiment, self.spaces)
        trajectory.check(self.experiment, self.spaces)
        self.border = self.border.after(trajectory)
        return trajectory

    def seed(self, n: int, episode: int) -> int:
        index = self.lane.index * self.experiment.lane_size + n
        return environment_seed(self.experiment.seed, Purpose.EPISODE_SEED, index, episode)

    def place(self, n: int, episode: int) -> int:
        """The part of the episode's seed that `Counter` observes."""
        return self.seed(n, episode) % 1000


def make_snapshot(spaces: Spaces, experiment: Experiment) -> PolicySnapshot:
    random = np.random.default_rng(0)
    inputs, size, outputs = normalized_size(spaces.parts), experiment.recurrent_size, spaces.distribution_size
    weights = {
        "policy_head.weight": np.float32(0.001) * random.standard_normal((outputs, size or inputs), np.float32),
        "policy_head.bias": np.zeros(outputs, np.float32),
    }
    if size:
        for name, columns, scale in (("inputs", inputs, np.float32(0.001)), ("recurrent", size, np.float32(1))):
            weights[f"gru.{name}.weight"] = scale * random.standard_normal((3 * size, columns), np.float32)
            weights[f"gru.{name}.bias"] = random.standard_normal(3 * size, np.float32)
    if spaces.distribution == "gaussian":
        weights["log_std"] = np.zeros(outputs, np.float32)
    return PolicySnapshot(0, weights, np.zeros(inputs, np.float32), np.ones(inputs, np.float32))


def test_a_rollout_records_what_happened() -> None:
    stage = Stage("tests/Three-v0", lane=1).begin()
    trajectory = stage.collect()
    for n in range(2):
        first, second = stage.place(n, 0), stage.place(n, 1)
        steps = [[first, 0], [first, 1], [first, 2], [second, 0], [second, 1]]
        np.testing.assert_array_equal(trajectory.observations[:, n], steps)
        np.testing.assert_array_equal(trajectory.last_observations[n], [second, 2])
        np.testing.assert_array_equal(trajectory.rewards[:, n], [10, 20, 30, 10, 20])
        np.testing.assert_array_equal(trajectory.terminated[:, n], [False, False, True, False, False])
    assert not trajectory.truncated.any()
    assert trajectory.final_observations.shape == (0, 2)
    np.testing.assert_array_equal(trajectory.episode_returns, [60, 60])
    np.testing.assert_array_equal(trajectory.episode_lengths, [3, 3])
    np.testing.assert_array_equal(trajectory.episode_indices, [1, 1])
    assert (trajectory.lane, trajectory.rollout_index, trajectory.policy_version) == (1, 0, 0)


def test_a_rollout_goes_on_where_the_last_one_ended() -> None:
    stage = Stage("tests/Three-v0").begin()
    first, second = stage.collect(), stage.collect()
    np.testing.assert_array_equal(second.observations[0], first.last_observations)
    np.testing.assert_array_equal(second.rewards[:, 0], [30, 10, 20, 30, 10])
    np.testing.assert_array_equal(second.episode_returns, [60, 60, 60, 60])
    np.testing.assert_array_equal(second.episode_lengths, [3, 3, 3, 3])
    assert second.rollout_index == 1


def test_an_episode_longer_than_a_rollout_is_reported_whole() -> None:
    stage = Stage("tests/Three-v0", rollout_length=2).begin()
    first, second = stage.collect(), stage.collect()
    assert len(first.episode_returns) == 0
    np.testing.assert_array_equal(second.episode_returns, [60, 60])
    np.testing.assert_array_equal(second.episode_lengths, [3, 3])


def test_a_truncated_episode_leaves_its_final_observation() -> None:
    stage = Stage("tests/CutAtThree-v0").begin()
    trajectory = stage.collect()
    np.testing.assert_array_equal(trajectory.truncated[:, 0], [False, False, True, False, False])
    assert not trajectory.terminated.any()
    np.testing.assert_array_equal(trajectory.final_observations, [[stage.place(n, 0), 3] for n in range(2)])
    np.testing.assert_array_equal(trajectory.observations[3], [[stage.place(n, 1), 0] for n in range(2)])
    np.testing.assert_array_equal(trajectory.episode_returns, [60, 60])


def test_a_step_that_terminates_is_not_truncated_as_well() -> None:
    trajectory = Stage("tests/ThreeAndCut-v0").begin().collect()
    assert trajectory.terminated[2].all()
    assert not trajectory.truncated.any()
    assert len(trajectory.final_observations) == 0


def test_the_replay_cap_truncates() -> None:
    stage = Stage("tests/Endless-v0", replay_cap=4).begin()
    trajectory = stage.collect()
    np.testing.assert_array_equal(trajectory.truncated[:, 0], [False, False, False, True, False])
    np.testing.assert_array_equal(trajectory.final_observations, [[stage.place(n, 0), 4] for n in range(2)])
    np.testing.assert_array_equal(trajectory.episode_lengths, [4, 4])


def test_every_episode_has_its_own_seed() -> None:
    stage = Stage("tests/Three-v0", lane=1, seed=7).begin()
    stage.collect()
    stage.collect()
    expected = [stage.seed(n, episode) for episode in range(4) for n in range(2)]
    assert Counter.seeds == expected
    assert len(set(expected)) == 8


def test_box_actions_are_stored_as_sampled_and_clipped_for_the_environment() -> None:
    trajectory = Stage("tests/Box-v0").begin().collect()
    received = np.array(Counter.received).reshape(trajectory.actions.shape)
    assert (trajectory.actions < -0.5).any()
    assert (trajectory.actions > 0.25).any()
    np.testing.assert_array_equal(received, np.clip(trajectory.actions, -0.5, 0.25))


def test_discrete_actions_are_stored_from_zero_and_shifted_for_the_environment() -> None:
    trajectory = Stage("tests/FromFive-v0", rollout_length=20).begin().collect()
    assert set(trajectory.actions.ravel().tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(np.array(Counter.received).reshape(20, 2), trajectory.actions + 5)


def test_noise_follows_from_lane_and_rollout() -> None:
    def two_rollouts(lane: int) -> list[np.ndarray]:
        stage = Stage("tests/Box-v0", lane).begin()
        return [stage.collect().actions, stage.collect().actions]

    one, same, other = two_rollouts(0), two_rollouts(0), two_rollouts(1)
    np.testing.assert_array_equal(one, same)
    # The means hardly change from step to step, so equal noise would give equal differences.
    differences = [np.diff(actions, axis=0) for actions in (*one, other[0])]
    assert not np.allclose(differences[0], differences[1], atol=0.1)
    assert not np.allclose(differences[0], differences[2], atol=0.1)


def test_a_rollout_stores_the_log_probability_of_each_action() -> None:
    stage = Stage("CartPole-v1").begin()
    trajectory = stage.collect()
    for t in range(5):
        parameters, _ = stage.policy.forward(trajectory.observations[t], np.zeros((2, 0), np.float32))
        logits = parameters.astype(np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected = log_probs[np.arange(2), trajectory.actions[t]]
        np.testing.assert_allclose(trajectory.behaviour_log_probs[t], expected, atol=1e-6)


def test_a_memory_runs_on_through_an_episode_and_is_zero_where_one_begins() -> None:
    stage = Stage("tests/Three-v0", recurrent_size=3).begin()
    hidden_state = np.zeros((2, 3), np.float32)
    for rollout in range(2):
        trajectory = stage.collect()
        np.testing.assert_array_equal(trajectory.extras["initial_hidden_state"], hidden_state)
        for t in range(5):
            hidden_state[trajectory.observations[t, :, 1] == 0] = 0
            actions, _, hidden_state = stage.policy.act(
                trajectory.observations[t], hidden_state, noise_of(stage, rollout)[t]
            )
            np.testing.assert_array_equal(trajectory.actions[t], actions)
        hidden_state[trajectory.done[-1]] = 0
        np.testing.assert_array_equal(trajectory.extras["last_hidden_state"], hidden_state)
    np.testing.assert_array_equal(hidden_state != 0, True)


def test_a_memory_is_zero_after_a_rollout_that_ends_its_episode() -> None:
    stage = Stage("tests/Three-v0", recurrent_size=3, rollout_length=3).begin()
    trajectory = stage.collect()
    assert trajectory.done[-1].all()
    np.testing.assert_array_equal(trajectory.extras["last_hidden_state"], np.zeros((2, 3)))


def test_a_rollout_keeps_its_memories_when_the_lane_goes_on() -> None:
    stage = Stage("tests/Endless-v0", recurrent_size=3).begin()
    trajectory = stage.collect()
    before = trajectory.extras["last_hidden_state"].copy()
    np.testing.assert_array_equal(stage.collect().extras["initial_hidden_state"], before)
    np.testing.assert_array_equal(trajectory.extras["last_hidden_state"], before)
    np.testing.assert_array_equal(trajectory.extras["initial_hidden_state"], np.zeros((2, 3)))


def test_an_environment_that_cannot_be_replayed_forgets_its_hidden_state() -> None:
    stage = Stage("tests/Leaky-v0", recurrent_size=3).begin()
    assert (stage.collect().extras["last_hidden_state"] != 0).all()
    np.testing.assert_array_equal(stage.rebuilt().lane.hidden_state, np.zeros((2, 3)))


def noise_of(stage: Stage, rollout: int) -> np.ndarray:
    """The noise that the lane draws for a rollout."""
    random = generator(stage.experiment.seed, Purpose.ACTION_NOISE, stage.lane.index, rollout)
    return stage.policy.draw_noise(random, (stage.experiment.rollout_length, stage.experiment.lane_size))


def test_an_array_of_one_element_is_a_reward() -> None:
    trajectory = Stage("tests/ArrayReward-v0").begin().collect()
    np.testing.assert_array_equal(trajectory.rewards[:, 0], [10, 20, 30, 40, 50])


@pytest.mark.parametrize("recurrent_size", [0, 3])
@pytest.mark.parametrize(("env", "rollouts"), [("CartPole-v1", 3), ("Pendulum-v1", 4)])
def test_a_rebuilt_lane_goes_on_bit_for_bit(env: str, rollouts: int, recurrent_size: int) -> None:
    stage = Stage(env, lane=2, rollout_length=64, recurrent_size=recurrent_size).begin()
    episodes = 0
    for _ in range(rollouts):
        rebuilt = stage.rebuilt() if stage.border.rollout_index else None
        trajectory = stage.collect()
        episodes += len(trajectory.episode_returns)
        if rebuilt:
            continued = rebuilt.collect()
            assert not continued.restarted.any()
            assert_same_bits(trajectory, continued)
            rebuilt.lane.close()
    assert episodes > 0
    stage.lane.close()


@pytest.mark.parametrize("env", ["tests/Leaky-v0", "tests/LeakyReward-v0"])
def test_an_environment_that_cannot_be_replayed_begins_a_fresh_episode(env: str) -> None:
    stage = Stage(env).begin()
    before = stage.collect()
    assert not before.restarted.any()
    rebuilt = stage.rebuilt()
    assert rebuilt.lane.notes.restarted.all()
    trajectory = rebuilt.collect()
    np.testing.assert_array_equal(trajectory.restarted, [True, True])
    np.testing.assert_array_equal(trajectory.episode_indices, before.episode_indices + 1)
    np.testing.assert_array_equal(trajectory.observations[0], [[stage.place(n, 1), 0] for n in range(2)])
    assert not rebuilt.collect().restarted.any()


@pytest.mark.parametrize("length", [3, 5])
def test_a_replay_that_ends_its_episode_begins_a_fresh_one(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage("tests/Fragile-v0").begin()
    stage.collect()
    monkeypatch.setattr(Fragile, "length", length)
    rebuilt = stage.rebuilt()
    np.testing.assert_array_equal(rebuilt.lane.notes.restarted, [True, True])
    np.testing.assert_array_equal(rebuilt.lane.observations, [[stage.place(n, 1), 0] for n in range(2)])


def test_only_the_environment_that_differs_is_restarted() -> None:
    stage = Stage("CartPole-v1").begin()
    trajectory = stage.collect()
    digests = trajectory.digests.copy()
    digests[1, 0] ^= 1
    stage.border = dataclasses.replace(stage.border, digests=digests)
    np.testing.assert_array_equal(stage.rebuilt().lane.notes.restarted, [False, True])


def test_a_restarted_episodes_log_starts_at_the_restart() -> None:
    stage = Stage("tests/Leaky-v0").begin()
    stage.collect()
    rebuilt = stage.rebuilt()
    rebuilt.collect()
    np.testing.assert_array_equal(rebuilt.state().episode_steps, [5, 5])


def faulty_stage(fault: str, monkeypatch: pytest.MonkeyPatch, episode: int = 0) -> Stage:
    """A stage whose environment 3, the second of lane 1, misbehaves in the given episode."""
    stage = Stage("tests/Faulty-v0", lane=1, replay_cap=4)
    monkeypatch.setattr(Faulty, "fault", fault)
    monkeypatch.setattr(Faulty, "faulty_seed", stage.seed(1, episode))
    return stage


@pytest.mark.parametrize("fault", ["raise", "shape", "nan", "inf", "nan reward", "inf reward", "1e39 reward"])
def test_a_faulty_step_truncates_at_the_last_good_observation(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = faulty_stage(fault, monkeypatch).begin()
    trajectory = stage.collect()
    np.testing.assert_array_equal(trajectory.rewards[:, 1], [10, 20, 0, 10, 20])
    np.testing.assert_array_equal(trajectory.truncated[:, 1], [False, False, True, False, False])
    np.testing.assert_array_equal(trajectory.final_observations[0], [stage.place(1, 0), 2])
    np.testing.assert_array_equal(trajectory.observations[3, 1], [stage.place(1, 1), 0])
    np.testing.assert_array_equal(trajectory.episode_returns, [30, 100])
    assert not trajectory.terminated.any()
    np.testing.assert_array_equal(trajectory.rewards[:, 0], [10, 20, 30, 40, 10])


@pytest.mark.parametrize("fault", ["raise", "shape", "nan", "inf", "nan reward", "inf reward"])
def test_a_faulty_step_is_reported_with_environment_seed_and_step(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = faulty_stage(fault, monkeypatch).begin()
    (report,) = stage.collect().faults
    assert f"environment 3 (episode seed {stage.seed(1, 0)}, step 2)" in str(report)
    assert (report.phase, report.episode, report.time) == ("step", 0, 2)
    assert stage.collect().faults == ()


@pytest.mark.parametrize("fault", ["reset raise", "reset shape", "reset nan", "reset inf"])
@pytest.mark.parametrize("episode", [0, 1])
def test_after_a_reset_that_fails_the_next_seed_follows(
    fault: str, episode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = faulty_stage(fault, monkeypatch, episode).begin()
    first = stage.border
    trajectory = stage.collect()
    first.check_followed_by(trajectory)
    np.testing.assert_array_equal(trajectory.failed_resets, [0, 1])
    np.testing.assert_array_equal(trajectory.episode_indices, [1, 2])
    begun = trajectory.observations[0 if episode == 0 else 4, 1]
    np.testing.assert_array_equal(begun, [stage.place(1, episode + 1), 0])
    (report,) = trajectory.faults
    assert f"environment 3 (episode seed {stage.seed(1, episode)}, step 0)" in str(report)
    assert (report.phase, report.episode, report.time) == ("reset", episode, -1 if episode == 0 else 3)
    assert trajectory.episode_lengths.tolist() == [4, 4]  # An episode that did not begin has no length.
    elsewhere = stage.rebuilt()  # Rebuilt with the episode indices that the learner knows.
    assert not elsewhere.lane.notes.restarted.any()
    assert_same_bits(elsewhere.collect(), stage.collect())


def test_an_environment_that_cannot_be_reset_at_all_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage("tests/Faulty-v0", lane=1)
    monkeypatch.setattr(Faulty, "reset", lambda *_, **__: None)
    with pytest.raises(EnvironmentFault) as caught:
        stage.begin()
    text = str(caught.value)
    assert "tests/Faulty-v0 environment 2 could not begin an episode 100 times in a row" in text
    assert "it returned None instead of observation, info" in text


def test_of_many_faults_the_first_are_told_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage("tests/Endless-v0", rollout_length=30)
    monkeypatch.setattr(Counter, "step", lambda *_: (1, 2, 3, 4))  # Four values, as old gym returned.
    trajectory = stage.begin().collect()
    assert (len(trajectory.faults), trajectory.fault_count) == (20, 60)
    assert "it returned 4 values instead of observation, reward, terminated" in trajectory.faults[0].text
    assert trajectory.truncated.all()


@pytest.mark.parametrize("where", ["constructor", "reset"])
def test_draws_from_the_global_generators_before_the_first_step_are_noticed(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "constructor":
        plain = Counter.__init__
        monkeypatch.setattr(Counter, "__init__", lambda *a, **k: (random.random(), plain(*a, **k))[1])
    else:
        reset = Counter.reset
        monkeypatch.setattr(Counter, "reset", lambda *a, **k: (np.random.rand(), reset(*a, **k))[1])  # noqa: NPY002
    stage = Stage("tests/Endless-v0").begin()
    assert stage.collect().moved_global_random
    monkeypatch.undo()
    assert not stage.collect().moved_global_random


def test_what_ends_an_actor_passes_every_check(monkeypatch: pytest.MonkeyPatch) -> None:
    class End(BaseException):
        pass

    def end() -> None:
        if ends:
            raise End

    ends = False
    stage = Stage("tests/Endless-v0")
    stage.lane = Lane(0, stage.experiment, stage.spaces, progress=end)
    stage.begin()
    ends = True
    with pytest.raises(End):
        stage.collect()
    assert not stage.lane.notes.faults
