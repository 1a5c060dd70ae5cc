"""Whether an environment can be trained on, whether it repeats itself, and how fast it is."""

import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env

from actors.environment import describe_spaces, make_environment, reset_environment
from actors.rollout import global_random_state
from commands.findings import Finding, note, ok, wrong
from commands.train import performance_cores
from protocol.errors import UserError
from protocol.experiment import Experiment

STEPS = 500  # that are compared
TIMED_SECONDS = 1.0
SEED = 1
POLICY_SECONDS = 3e-6  # of an actor's for each env-step, beside the environment's: the NumPy policy and the bookkeeping
BUSY = 0.5  # share of a step spent computing, below which more actors than cores pay
HARMLESS = "infinity"  # a bound, of which gymnasium warns, and which does not matter to PPO
MAX_TEXT = 100  # characters of a space, or of what gymnasium says
MAX_ACTORS = 64  # that are suggested on one machine


class Timing(NamedTuple):
    """How long an environment takes, in seconds."""

    step: float  # median
    reset: float  # median, with a seed
    busy: float  # share of the time in which it computes; the rest it waits


def check_environment(experiment: Experiment) -> Iterator[Finding]:
    """Findings about the experiment's environment, as training would make it."""
    try:
        env = make_environment(experiment)
        spaces = describe_spaces(env, experiment)
    except UserError as error:
        yield wrong(str(error))
        return
    try:
        yield ok(f"action space {_line(env.action_space)}: a {spaces.distribution} policy")
        yield ok(f"observation space {_line(env.observation_space)}: {', '.join(part.kind for part in spaces.parts)}")
        yield from _check_with_gymnasium(experiment)
        yield from _check_repetition(experiment, env)
        timing = measure(env)
    except Exception as error:  # whatever a user's environment raises
        yield wrong(f"it raised {type(error).__name__}: {error}", "mend it; training would truncate the episode there")
        return
    finally:
        with suppress(Exception):
            env.close()
    waits = f", {1 - timing.busy:.0%} of it waiting" if timing.busy < BUSY else ""
    yield ok(f"a step takes {_time(timing.step)}{waits}; a reset with a seed {_time(timing.reset)}")
    yield _suggest(timing, performance_cores(), experiment.lane_size)


def measure(env: gymnasium.Env) -> Timing:
    """Time steps with random actions for a second or more."""
    steps: list[float] = []
    computing: list[float] = []  # CPU seconds of each step: what other processes take from it does not count
    resets: list[float] = []
    actions = _sampler(env)
    seed, over, end = SEED, True, time.perf_counter() + TIMED_SECONDS
    while time.perf_counter() < end or len(steps) < 2:
        action = next(actions)
        before, before_cpu = time.perf_counter(), time.process_time()
        if over:
            reset_environment(env, seed)
            resets.append(time.perf_counter() - before)
            seed, over = seed + 1, False
        else:
            _, _, terminated, truncated, _ = env.step(action)
            steps.append(time.perf_counter() - before)
            computing.append(time.process_time() - before_cpu)
            over = terminated or truncated
    step = float(np.median(steps))
    return Timing(step, float(np.median(resets)), min(1.0, float(np.median(computing)) / step))


def suggested_actors(timing: Timing, cores: int) -> int:
    """One for each core but the learner's; as many more as an environment leaves its core idle."""
    actors = max(1, cores - 1)
    return actors if timing.busy > BUSY else min(MAX_ACTORS, round(actors / max(timing.busy, 1e-3)))


def _suggest(timing: Timing, cores: int, lane_size: int) -> Finding:
    actors = suggested_actors(timing, cores)
    num_envs = actors * lane_size
    speed = actors / (timing.step + POLICY_SECONDS)
    return ok(
        f"suggested: --actors {actors} --num-envs {num_envs}, or a multiple of that; up to {speed:,.0f} env-steps/s, if"
        " the learner keeps up"
    )


def _check_with_gymnasium(experiment: Experiment) -> Iterator[Finding]:
    """What gymnasium's own checker says of the environment under the wrappers."""
    env = make_environment(replace(experiment, wrapper=()))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_env(env.unwrapped, skip_render_check=True)
    except Exception as error:
        yield wrong(f"gymnasium's checker: {_line(error)}", "mend it; see gymnasium's page on making environments")
        return
    finally:
        with suppress(Exception):
            env.close()
    texts = dict.fromkeys(_line(warning.message) for warning in caught if HARMLESS not in str(warning.message))
    for text in texts:
        yield note(f"gymnasium's checker: {text}")
    if not texts:
        yield ok("gymnasium's checker finds nothing")


def _check_repetition(experiment: Experiment, env: gymnasium.Env) -> Iterator[Finding]:
    """Whether the same seed and actions lead to the same place: in another environment, and in a used one."""
    before = global_random_state()
    first = _play(env, SEED)
    moved = global_random_state() != before
    other = make_environment(experiment)
    second = _play(other, SEED)
    _play(other, SEED + 1, STEPS // 7)  # most likely abandons an episode
    again = _play(other, SEED)
    other.close()
    if moved:
        yield wrong(
            "it draws from the global `random` or `np.random`: runs are not reproducible",
            "let it draw from self.np_random, which reset(seed=…) seeds",
        )
    if first != second:
        yield wrong(
            "two environments with one seed and the same actions go different ways: runs are not reproducible, and an"
            " actor that takes a lane over begins a fresh episode",
            "seed everything random in reset(seed=…)",
        )
    elif again != first and experiment.rebuild_env:
        yield ok("its reset leaks state, but --rebuild-env makes a fresh one for every episode: reproducible")
    elif again != first:
        yield wrong(
            "an environment that was used before goes another way than a fresh one: its reset leaks state",
            "use --rebuild-env, or let reset clear everything",
        )
    elif not moved:
        yield ok(f"{STEPS} steps repeat themselves, in another environment and after other episodes: reproducible")


def _play(env: gymnasium.Env, seed: int, steps: int = STEPS) -> list[Any]:
    """What happens in `steps` steps of random but fixed actions, over as many episodes as they take."""
    actions, trace, over = _sampler(env, seed), [], True
    for step in range(steps):
        if over:
            trace.append(_bytes(reset_environment(env, seed + 1000 * step)))
        observation, reward, terminated, truncated, _ = env.step(next(actions))
        over = terminated or truncated
        trace.append((_bytes(observation), float(reward), terminated, truncated))
    return trace


def _sampler(env: gymnasium.Env, seed: int = SEED) -> Iterator[Any]:
    """Random actions that depend on the seed alone."""
    space = env.action_space
    space.seed(seed)
    while True:
        yield space.sample()


def _bytes(observation: Any) -> Any:
    """An observation as something that can be compared, Dict and Tuple included."""
    if isinstance(observation, dict):
        return {key: _bytes(value) for key, value in observation.items()}
    if isinstance(observation, tuple):
        return tuple(map(_bytes, observation))
    return np.asarray(observation).tobytes()


def _line(text: object) -> str:
    """A text on one line that can be read, without the colours that gymnasium gives its warnings."""
    line = " ".join(str(text).replace("\x1b[33mWARN: ", "").replace("\x1b[0m", "").split())
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"
