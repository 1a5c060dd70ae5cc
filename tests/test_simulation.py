"""`Simulation`, which steps environments: accepted values, faults, and arrays that are not shared with environments."""

import signal
import threading
import time
from dataclasses import fields
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from actors import closing
from actors.closing import close_environment
from actors.environment import make_environment
from actors.lane import Lane
from actors.rollout import collect_rollout
from actors.simulation import EnvironmentFault, Simulation
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.messages import Grant
from protocol.spaces import Spaces
from protocol.trajectory import Trajectory
from tests.environments import EverySpace

ILL = "tests.environments_faulty:Ill-v0"


class Scripted(gymnasium.Env):
    """Returns values chosen by the test."""

    action_space: gymnasium.Space = spaces.Discrete(2)

    def __init__(self, observation_space: gymnasium.Space, step: Any = None, reset: Any = None) -> None:
        self.observation_space, self._step, self._reset = observation_space, step, reset

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        return self._reset if self._reset is not None else (self.observation_space.sample(), {})

    def step(self, action: Any) -> Any:
        return self._step


BOOL: Any = bool  # gymnasium accepts a Box of this dtype, although its type hints do not.
BOX = spaces.Box(-1, 1, (2,), np.float32)
GOOD = np.zeros(2, np.float32)


def simulate(space: gymnasium.Space = BOX, **scripted: Any) -> Simulation:
    return Simulation(Experiment(), make=lambda _: Scripted(space, **scripted))


def fault_of(simulation: Simulation) -> str:
    with pytest.raises(EnvironmentFault) as caught:
        simulation.reset(0)
        simulation.step(0)
    return str(caught.value)


@pytest.mark.parametrize(
    "over", [1, True, np.True_, np.array(True), np.array([True]), np.array([[1]]), np.int64(1), 1.0]
)
def test_whatever_has_one_truth_value_says_that_an_episode_is_over(over: Any) -> None:
    simulation = simulate(step=(GOOD, 1, over, 0, {}))
    simulation.reset(0)
    assert simulation.step(0)[1:] == (1.0, True, False)
    simulation = simulate(step=(GOOD, np.array([1.5]), np.logical_not(over), over, {}))
    simulation.reset(0)
    assert simulation.step(0)[1:] == (1.5, False, True)


def test_none_says_that_nothing_has_ended() -> None:
    simulation = simulate(step=(GOOD, 1.0, None, None, None))
    simulation.reset(0)
    assert simulation.step(0)[1:] == (1.0, False, False)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ([True], "is list [True]"),
        ({"__all__": False}, "is dict {'__all__': False}"),
        ("False", "is str 'False'"),
        (np.array([True, False]), "is an array of shape (2,)"),
        (np.zeros(0, bool), "is an array of shape (0,)"),
        (2, "is int 2"),
        (float("nan"), "is float nan"),
        ((False,), "is 1 values"),
    ],
    ids=str,
)
def test_a_flag_without_a_truth_value_is_a_fault_that_says_so(flag: Any, said: str) -> None:
    assert f"step: terminated {said}, not True or False" in fault_of(simulate(step=(GOOD, 1.0, flag, False, {})))
    assert f"step: truncated {said}, not True or False" in fault_of(simulate(step=(GOOD, 1.0, False, flag, {})))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ((GOOD, 1.0, False, {}), "returned 4 values instead of observation, reward, terminated, truncated, info"),
        (None, "returned None instead of"),
        (GOOD, "returned an array of shape (2,) instead of"),
        ((GOOD, None, False, False, {}), "the reward is None, not a number"),
        ((GOOD, "1", False, False, {}), "the reward is str '1', not a number"),
        ((GOOD, np.ones(2), False, False, {}), "the reward is an array of shape (2,), not a number"),
        ((GOOD, 1e39, False, False, {}), "the reward is 1e+39"),
        ((GOOD * np.nan, 1.0, False, False, {}), "the observation is not finite"),
        ((GOOD[:1], 1.0, False, False, {}), "the observation has shape (1,) instead of (2,)"),
        ((["a", "b"], 1.0, False, False, {}), "the observation is no array of numbers"),
        ((GOOD + 1j, 1.0, False, False, {}), "the observation is no array of numbers, but of complex"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_step_that_returns_nonsense_is_a_fault_that_says_so(returned: Any, said: str) -> None:
    assert said in fault_of(simulate(step=returned))


def test_an_environment_of_old_gym_under_gymnasiums_wrappers_is_told_what_a_step_returns() -> None:
    env = gymnasium.wrappers.TimeLimit(Scripted(BOX, step=(GOOD, 1.0, False, {})), 10)
    simulation = Simulation(Experiment(), make=lambda _: env)
    assert "a step returns observation, reward, terminated, truncated, info" in fault_of(simulation)


@pytest.mark.parametrize(
    "returned", [GOOD, (GOOD,), (GOOD, {}, 1), [GOOD], "ab", ((0.0, 1.0)), (GOOD, 1)], ids=lambda value: str(value)
)
def test_a_reset_that_does_not_return_observation_and_info_is_a_fault_that_says_so(returned: Any) -> None:
    text = fault_of(simulate(reset=returned))
    assert text.startswith("reset: it returned ") and text.endswith(" instead of observation, info")


@pytest.mark.parametrize(
    ("space", "value", "fits"),
    [
        (spaces.Box(0, 255, (1,), np.uint8), np.array([300]), False),
        (spaces.Box(0, 255, (1,), np.uint8), np.array([-1], np.int8), False),
        (spaces.Box(0, 255, (1,), np.uint8), [256], False),
        (spaces.Box(0, 255, (1,), np.uint8), np.array([255]), True),
        (spaces.Box(-5, 5, (1,), np.int8), np.array([128]), False),
        (spaces.Box(-5, 5, (1,), np.int8), np.array([-128]), True),
        (spaces.Box(0, 9, (1,), np.int64), np.array([2**63], np.uint64), False),
        (spaces.Box(0, 9, (1,), np.uint64), np.array([-1]), False),
        (spaces.Box(0, 1, (1,), BOOL), np.array([2]), False),
        (spaces.Box(0, 1, (1,), BOOL), np.array([1]), True),
        (spaces.Discrete(3, start=4), 7, False),
        (spaces.Discrete(3, start=4), np.uint64(2**63 + 5), False),
        (spaces.MultiBinary(1), np.array([256]), False),
    ],
    ids=str,
)
def test_an_integer_outside_its_space_is_a_fault_and_never_wrapped(space: Any, value: Any, fits: bool) -> None:
    simulation = simulate(space, reset=(value, {}))
    if fits:
        assert simulation.reset(0).tolist() == np.asarray(value).tolist()
    else:
        assert fault_of(simulation).startswith("reset: the observation ")


@pytest.mark.parametrize("how", ["raise", "exit", "generator exit", "none", "nan", "long", "untold"])
@pytest.mark.parametrize("where", ["step", "reset"])
def test_whatever_user_code_raises_is_a_fault_and_the_next_episode_has_a_fresh_environment(
    how: str, where: str
) -> None:
    made = []

    def make(experiment: Experiment) -> gymnasium.Env:
        made.append(make_environment(experiment))
        return made[-1]

    simulation = Simulation(Experiment(env=ILL, env_kwargs=(f"how='{how}'", f"where='{where}'")), make=make)
    with pytest.raises(EnvironmentFault) as caught:
        simulation.reset(4)
        for _ in range(10):
            simulation.step(1)
    assert caught.value.phase == where
    assert len(str(caught.value)) <= 500 and str(caught.value).isprintable()
    str(caught.value).encode()
    simulation.reset(5)
    for _ in range(9):
        assert simulation.step(1)[2:] == (False, False)
    assert simulation.step(1)[2:] == (True, False)
    assert (simulation.episode_return, simulation.steps, len(made)) == (10, 10, 2)


def test_a_constructor_that_fails_later_is_a_fault_and_the_next_reset_tries_again() -> None:
    fails = False

    def make(experiment: Experiment) -> gymnasium.Env:
        if fails:
            sys_exit()
        return make_environment(experiment)

    def sys_exit() -> None:
        raise SystemExit("no licence")

    simulation = Simulation(Experiment(rebuild_env=True), make=make)
    simulation.reset(1)
    fails = True
    for _ in range(2):
        with pytest.raises(EnvironmentFault, match="constructor: it raised SystemExit: no licence"):
            simulation.reset(2)
    fails = False
    assert simulation.reset(2).shape == (4,)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL])
def test_ctrl_c_is_no_fault_but_a_keyboard_interrupt_of_an_environment_is(handler: Any) -> None:
    class Interrupted(Scripted):
        def step(self, action: Any) -> Any:
            raise KeyboardInterrupt

    simulation = Simulation(Experiment(), make=lambda _: Interrupted(BOX))
    simulation.reset(0)
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt if handler is signal.default_int_handler else EnvironmentFault):
            simulation.step(0)
    finally:
        signal.signal(signal.SIGINT, before)


def test_environments_of_different_spaces_are_refused_whoever_makes_them() -> None:
    """If each environment is made in another process, nothing else can notice the difference."""
    made: list[gymnasium.Env] = []

    def make(_: Experiment) -> gymnasium.Env:
        made.append(Scripted(BOX))
        made[-1].action_space = spaces.Discrete(1 + len(made))
        return made[-1]

    first = Simulation(Experiment(rebuild_env=True), make=make)
    with pytest.raises(UserError, match=r"different spaces: choices \(3,\) instead of \(2,\)"):
        Simulation(Experiment(), first.spaces, make)
    first.reset(0)
    with pytest.raises(EnvironmentFault, match=r"constructor: .* different spaces"):
        first.reset(1)


@pytest.mark.parametrize(
    ("observations", "actions", "said"),
    [
        (spaces.Box(0, 1, (0,)), spaces.Discrete(2), r"shape \[0\]; 1 to 16,777,216 numbers"),
        (
            spaces.Discrete(10**9),
            spaces.Discrete(2),
            "fit its shape: there are 1,000,000,000, and 1 to 16,777,216",
        ),
        (BOX, spaces.Discrete(10**9), "1,000,000,000 outputs; 16,777,216 are possible"),
        (BOX, spaces.Box(-1, 1, (0,)), r"action space has shape \[0\]"),
    ],
)
def test_spaces_that_are_too_large_or_empty_are_named_with_their_environment(
    observations: gymnasium.Space, actions: gymnasium.Space, said: str
) -> None:
    env = Scripted(observations)
    env.action_space = actions
    with pytest.raises(UserError, match=f"CartPole-v1 cannot be trained on: .*{said}"):
        Simulation(Experiment(env="CartPole-v1"), make=lambda _: env)


class Chance:
    """A policy for any spaces whose actions depend only on the noise."""

    version = 0

    def __init__(self, spaces: Spaces) -> None:
        self._spaces = spaces

    def draw_noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return generator.random((*shape, *self._spaces.action.shape))

    def act(self, observations: np.ndarray, hidden_state: np.ndarray, noise: np.ndarray, _: None) -> tuple:
        parameters = np.zeros((len(noise), self._spaces.distribution_size), np.float32)
        choices = np.reshape(self._spaces.choices or 2, self._spaces.action.shape if self._spaces.choices else ())
        actions = 3 * noise - 1.5 if self._spaces.distribution == "gaussian" else np.floor(noise * choices)
        return actions.astype(self._spaces.action.dtype), parameters, hidden_state

    def log_prob(self, parameters: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return np.zeros(parameters.shape[:2], np.float32)


def rollouts(**kwargs: Any) -> list[Trajectory]:
    settings = {"num_envs": 4, "lane_size": 4, "rollout_length": 40, "hidden_sizes": ()}
    given = tuple(f"{name}={value!r}" for name, value in kwargs.items())
    experiment = Experiment(env="tests.environments_faulty:Scribbler-v0", env_kwargs=given, **settings)
    simulation = Simulation(experiment)
    policy: Any = Chance(simulation.spaces)
    lane = Lane(0, experiment, simulation.spaces, progress=lambda: None)
    lane.begin()
    kept = [
        collect_rollout(lane, policy, Grant("run", 0, index, 0, 0, None), experiment, simulation.spaces)
        for index in range(3)
    ]
    lane.close()
    return kept


@pytest.mark.parametrize("observation", [name for name in EverySpace.OBSERVATIONS if name != "text"])
@pytest.mark.parametrize("action", [name for name in EverySpace.ACTIONS if name != "dict"])
def test_nothing_that_an_environment_does_to_what_it_got_or_gave_reaches_a_trajectory(
    observation: str, action: str
) -> None:
    spoilt, good = (rollouts(observation=observation, action=action, scribbles=does) for does in (True, False))
    for one, other in zip(spoilt, good, strict=True):
        assert not one.faults and one.done.any()
        for field in fields(Trajectory):
            mine, theirs = getattr(one, field.name), getattr(other, field.name)
            np.testing.assert_array_equal(mine, theirs, err_msg=field.name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "_patience", 0.2)
    monkeypatch.setattr(closing, "_told", set())
    monkeypatch.setattr(closing, "AGAIN_SECONDS", 0.05)


@pytest.mark.parametrize("how", ["raise", "exit", "hang"])
@pytest.mark.parametrize("main", [True, False])
@pytest.mark.usefixtures("impatient")
def test_a_close_that_fails_or_hangs_changes_nothing_and_is_said(
    how: str, main: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    env = make_environment(Experiment(env=ILL, env_kwargs=(f"close='{how}'",)))
    handler = signal.getsignal(signal.SIGALRM)
    if main:
        close_environment(env)
    else:
        thread = threading.Thread(target=close_environment, args=[env])
        thread.start()
        thread.join()
    said = {"raise": "raised ConnectionResetError: the simulator", "exit": "raised SystemExit: 3", "hang": "abandoned"}
    assert said[how] in capsys.readouterr().err
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_close_is_called_in_the_thread_that_stepped_and_another_alarm_goes_on() -> None:
    threads = []

    class Threaded(Scripted):
        def close(self) -> None:
            threads.append(threading.current_thread())

    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        close_environment(Threaded(BOX))
        deadline = time.monotonic() + 120
        while not rung and time.monotonic() < deadline:
            time.sleep(0.01)
        assert rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert threads == [threading.main_thread()]


class Strict(gymnasium.Env):
    """Makes NumPy raise on every error, as some modules do, and observes numbers too small for a float32."""

    observation_space = spaces.Box(-1, 1, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        np.seterr(all="raise")

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        return np.full(2, 1e-50), {}

    def step(self, action: Any) -> Any:
        strict = np.geterr()["under"] == "raise"  # The environment's own setting is in effect here.
        return np.full(2, 1e-50), float(strict), False, False, {}


def test_what_an_environment_sets_for_numpys_errors_holds_for_it_and_for_nothing_of_ours() -> None:
    before = np.geterr()
    simulation = Simulation(Experiment(), make=lambda _: Strict())
    simulation.reset(1)
    assert simulation.step(0)[1] == 1.0
    assert np.geterr() == before
    simulation.close()
