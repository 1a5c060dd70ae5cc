"""How fast an environment is, and how many actors suit it."""

import contextlib
import time
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import psutil

from actors.action_masks import read_mask
from actors.environment import method_of, reset_environment
from actors.simulation import Simulation
from commands.helpers.findings import Finding, ok

SEED = 1
TIMED_SECONDS = 1.0
POLICY_SECONDS = 3e-6  # An actor takes so long for each env-step, besides the environment: policy and bookkeeping.
BUSY = 0.5  # Where less than this share of a step is spent computing, more actors than cores pay.
MAX_ACTORS = 64  # At most so many are suggested on one machine.


class Timing(NamedTuple):
    """How long an environment takes, in seconds."""

    step: float  # median
    reset: float  # median, with a seed
    busy: float  # share of the time in which it computes; the rest it waits


class Sampler:
    """Random actions for an environment, of those that it allows. They depend on the seed and the masks alone."""

    def __init__(self, simulation: Simulation, seed: int = SEED) -> None:
        assert simulation.env is not None
        self._simulation = simulation
        self._space = deepcopy(simulation.env.action_space)  # drawing changes it
        self._space.seed(seed)
        self._random = np.random.default_rng(seed)

    def draw(self, allowed: np.ndarray) -> Any:
        """An action, as the environment takes it."""
        spaces = self._simulation.spaces
        if not spaces.has_action_masks:
            return self._space.sample()
        chosen = [self._random.choice(np.flatnonzero(allowed[start:end])) for start, end in spaces.groups]
        return self._simulation.to_env(np.array(chosen).reshape(1, *spaces.action.shape))[0]


def measure(simulation: Simulation) -> Timing:
    """Time steps with random actions for a second or more."""
    env, spaces = simulation.env, simulation.spaces
    assert env is not None
    steps: list[float] = []
    computing: list[float] = []  # CPU seconds of each step: what other processes take from it does not count
    resets: list[float] = []
    sampler, allowed = Sampler(simulation), simulation.allowed
    if (set_progress := method_of(env, "set_progress")) is None:
        set_progress = lambda _: None  # noqa: E731
    children = _cpu_of_children()
    seed, over, end = SEED, True, time.perf_counter() + TIMED_SECONDS
    while time.perf_counter() < end or len(steps) < 2:
        action = None if over else sampler.draw(allowed)
        before, before_cpu = time.perf_counter(), time.process_time()
        if over:
            set_progress(1.0)
            _, info = reset_environment(env, seed)
            resets.append(time.perf_counter() - before)
            seed, over = seed + 1, False
        else:
            _, _, terminated, truncated, info = env.step(action)
            steps.append(time.perf_counter() - before)
            computing.append(time.process_time() - before_cpu)
            over = terminated or truncated
        if spaces.has_action_masks and not over:
            allowed = read_mask(env, info, spaces)
    step = float(np.median(steps))
    computed = float(np.median(computing)) + max(0.0, _cpu_of_children() - children) / len(steps)
    return Timing(step, float(np.median(resets)), min(1.0, computed / step))


def _cpu_of_children() -> float:
    """CPU seconds of everything that this process has started and that still runs, grandchildren among them."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def suggested_actors(timing: Timing, cores: int) -> int:
    """One for each core but the learner's; as many more as an environment leaves its core idle."""
    actors = max(1, cores - 1)
    return actors if timing.busy > BUSY else min(MAX_ACTORS, round(actors / max(timing.busy, 1e-3)))


def suggest(timing: Timing, cores: int, lane_size: int) -> Finding:
    """How many actors and environments suit an environment like this."""
    actors = suggested_actors(timing, cores)
    num_envs = actors * lane_size
    speed = actors / (timing.step + POLICY_SECONDS)
    return ok(
        f"suggested: --actors {actors} --num-envs {num_envs}, or a multiple of that; up to {speed:,.0f} env-steps/s, if"
        " the learner keeps up"
    )


def in_words(seconds: float) -> str:
    """A duration with a unit that suits it."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"
