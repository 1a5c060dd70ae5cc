"""Whether an environment can be trained on, whether it repeats itself, and how fast it is.

The environment runs in processes of its own (`main`), so that whatever it does to its process ends in a line: it may
hang, exit, or depend on the process it is in.
"""

import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from gymnasium.utils.env_checker import check_env

from actors.action_masks import KEY, METHOD
from actors.closing import close_environment
from actors.environment import make_environment, method_of
from actors.simulation import EnvironmentFault, Simulation, global_random_state
from actors.spaces import describe_observations
from actors.tracebacks import users_place
from commands.helpers.cores import performance_cores
from commands.helpers.environment_speed import BUSY, SEED, Sampler, in_words, measure, suggest
from commands.helpers.findings import Finding, note, ok, wrong
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.keeper import Seen, end_all, see_descendants
from protocol.lifeline import FAILURE, SUCCESS, leave
from protocol.offspring import mark_for_child
from protocol.records import plain, typed
from protocol.text import error_line, one_line
from protocol.trajectory import MAX_METRICS
from supervisor.crashes import killed_by

STEPS = 500  # So many steps are compared.
PLAY_SECONDS = 5.0  # The first of them may take so long.
CHECK_SECONDS = 40.0  # After so long, comparisons that would take longer are left out.
QUIET_SECONDS = 30.0  # After so long, it says what it waits for.
SLOW = 0.5  # A step, a reset or a constructor that takes this share of the step timeout is called slow.
HASH_SEEDS = ("0", "1")  # One for each of two processes.
HARMLESS = "infinity"  # Gymnasium warns of such a bound, which does not matter to PPO.
MAX_TEXT = 100  # So many characters are shown of a space, or of what gymnasium says.
REPRODUCIBLE = "let it draw from self.np_random, which reset(seed=…) seeds"


def check_environment(experiment: Experiment, step_timeout: float = 60.0) -> Iterator[Finding]:
    """Findings about the experiment's environment, as training would make it. What takes longer than `step_timeout`
    seconds is ended."""
    first = _Probe(experiment, "check", HASH_SEEDS[0], step_timeout)
    yield from first.findings()
    if first.played is None or first.differs:
        return
    if first.seconds > CHECK_SECONDS / 2:
        yield note("it was not played in another process, which would take too long")
        return
    other = _Probe(experiment, "play", HASH_SEEDS[1], step_timeout)
    yield from other.findings()
    if other.goes_as(first):
        return
    same = _Probe(experiment, "play", HASH_SEEDS[0], step_timeout)
    yield from same.findings()
    if same.goes_as(first):
        yield wrong(
            "with another PYTHONHASHSEED it goes another way: it depends on the order of a set of texts, or on hash()",
            "sort the set where its order matters",
        )
    else:
        yield wrong(
            "in another process it goes another way: it depends on the process (its number, the clock, memory)",
            "seed everything random in reset(seed=…)",
        )


class _Probe:
    """A process of its own that looks at an environment; it is killed when one thing takes longer than the timeout."""

    def __init__(self, experiment: Experiment, task: str, hash_seed: str, step_timeout: float) -> None:
        self.played: list[str] | None = None  # a digest of each step; None where it did not get so far
        self.differs = False  # within its process
        self.seconds = 0.0
        self._timeout = step_timeout
        self._task = json.dumps({"experiment": plain(experiment), "task": task, "step_timeout": step_timeout})
        self._mark = mark_for_child()
        path = os.pathsep.join(sys.path)
        self._environ = os.environ | self._mark | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}

    def goes_as(self, other: "_Probe") -> bool:
        """Whether nothing is known to be different, as far as both have played."""
        return all(mine == theirs for mine, theirs in zip(self.played or [], other.played or [], strict=False))

    def findings(self) -> Iterator[Finding]:
        """What it finds, as it finds it."""
        begun = time.monotonic()
        command = [sys.executable, "-c", "from commands.helpers.environment_check import main; main()", self._task]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # It closes when this process is gone.
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._environ,
            text=True,
            start_new_session=True,
        )
        lines: queue.Queue[str] = queue.Queue()
        assert process.stdout is not None
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            yield from self._follow(process, lines)
        finally:
            _end(process, self._mark)
            reader.join(QUIET_SECONDS)
            self.seconds = time.monotonic() - begun

    def _follow(self, process: subprocess.Popen, lines: queue.Queue[str]) -> Iterator[Finding]:
        doing, since, told = "start", time.monotonic(), time.monotonic()
        while True:
            now = time.monotonic()
            if now - since > self._timeout:
                yield wrong(
                    f"its {doing} has not returned within {self._timeout:g} s, which training takes for a hang",
                    "mend it; or, if it is slow, --step-timeout with more seconds, here too",
                )
                return
            if now - told > QUIET_SECONDS:
                told = now
                yield note(f"it is slow: its {doing} has taken {now - since:.0f} s so far")
            try:
                line = lines.get(timeout=0.2)
            except queue.Empty:
                continue
            if not line:
                yield wrong(f"it ended its process in its {doing}: {_ending(process)}", "mend it; it would end actors")
                return
            fact = json.loads(line)
            since = time.monotonic()
            if "doing" in fact:
                doing = fact["doing"]
            elif "played" in fact:
                self.played, self.differs = fact["played"], fact["differs"]
                return
            elif "end" in fact:
                return
            else:
                told = since
                yield Finding(*fact["finding"])


def _read(stream: Any, lines: queue.Queue[str]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put("")


def _ending(process: subprocess.Popen) -> str:
    code = process.wait()
    return killed_by(code) if code < 0 else f"exit code {code}"


def _end(process: subprocess.Popen, mark: dict[str, str]) -> None:
    """Kill it and everything that it started, which has its mark."""
    started: Seen = {}
    see_descendants(process.pid, started)
    process.kill()
    assert process.stdin is not None
    process.stdin.close()
    ((name, value),) = mark.items()
    end_all(process.pid, f"{name}={value}", started, spared={os.getpid()})
    process.wait()


def main() -> None:
    """The process: its findings are lines of JSON on standard output, where nothing else is written."""
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    lifeline = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True, name="lifeline").start()
    task = json.loads(sys.argv[1])
    experiment = replace(typed(task["experiment"], Experiment, "the experiment"), rebuild_env=False)

    def tell(**fact: Any) -> None:
        told.write(json.dumps(fact) + "\n")

    check = _Check(experiment, lambda doing: tell(doing=doing), task["step_timeout"])
    rebuild = task["experiment"]["rebuild_env"]
    try:
        for finding in check.everything(rebuild) if task["task"] == "check" else check.play():
            tell(finding=finding)
        tell(played=check.played, differs=check.differs)
    except UserError as error:
        tell(finding=wrong(one_line(error, 1000)))
    except EnvironmentFault as fault:
        tell(finding=wrong(str(fault), "mend it"))
    except BaseException as error:  # whatever a user's environment raises where the checks of training do not reach
        tell(finding=wrong(f"it raised {error_line(error)}{users_place(error)}", "mend it"))
    tell(end=True)
    told.flush()
    leave(SUCCESS)


def _end_with_parent(lifeline: int) -> None:
    """Whatever the environment is at: with nobody to tell, it is over."""
    os.read(lifeline, 1)
    leave(FAILURE)


class _Check:
    """Looks at one environment, in the process in which this is called."""

    def __init__(self, experiment: Experiment, doing: Callable[[str], None], step_timeout: float) -> None:
        self._experiment, self._doing, self._step_timeout = experiment, doing, step_timeout
        self._begun = time.monotonic()
        self._steps = STEPS  # Steps of the first play.
        self.played: list[str] = []  # first: a digest of each reset and step
        self._faults: dict[str, int] = {}
        self._episodes = 0
        self._play_seconds = 0.0
        self._metrics: dict[str, float] = {}  # What ended episodes have told.
        self._draws: dict[str, None] = {}  # Functions that draw from the global generators.
        self._longest = {"constructor": 0.0, "reset": 0.0, "step": 0.0}  # seconds
        self.differs = False

    def play(self) -> Iterator[Finding]:
        """Only the first play."""
        self.played = self._run([self._make()], [SEED], PLAY_SECONDS)[0]
        return iter(())

    def everything(self, rebuild: bool) -> Iterator[Finding]:
        simulation = self._make()
        env, spaces = simulation.env, simulation.spaces
        assert env is not None
        yield ok(f"action space {_line(env.action_space)}: a {spaces.distribution} policy")
        yield ok(f"observations: {describe_observations(env, self._experiment)}")
        self.played = self._run([simulation], [SEED], PLAY_SECONDS)[0]
        self._steps = sum(not entry.startswith("reset") for entry in self.played)
        yield from self._tell_faults()
        yield from self._tell_slowness()
        yield from self._tell_extras(simulation)
        if simulation.spaces.has_action_masks:
            yield note("gymnasium's checker is left out: it takes actions that masks do not allow")
        elif sum(self._longest.values()) < PLAY_SECONDS:
            self._doing("check by gymnasium")
            yield from _check_with_gymnasium(self._experiment)
        else:
            yield note("gymnasium's checker is left out: it would take too long")
        yield from self._check_repetition(simulation, rebuild)
        if simulation.env is not None and not self._faults and self._longest["step"] < PLAY_SECONDS:
            self._doing("step")
            timing = measure(simulation)
            waits = f", {1 - timing.busy:.0%} of it waiting" if timing.busy < BUSY else ""
            yield ok(f"a step takes {in_words(timing.step)}{waits}; a reset with a seed {in_words(timing.reset)}")
            yield suggest(timing, performance_cores(), self._experiment.lane_size)
        self._doing("close")
        simulation.close()

    def _make(self) -> Simulation:
        self._doing("constructor")
        before, begun = global_random_state(), time.perf_counter()
        simulation = Simulation(self._experiment)
        self._took("constructor", begun)
        if global_random_state() != before:
            # Importing a module is no draw of the constructor's: only what a second environment draws, too, is.
            before = global_random_state()
            Simulation(self._experiment, simulation.spaces).close()
            if global_random_state() != before:
                self._draws["constructor"] = None
        return simulation

    def _took(self, phase: str, begun: float) -> None:
        self._longest[phase] = max(self._longest[phase], time.perf_counter() - begun)

    def _run(self, simulations: list[Simulation], seeds: list[int], seconds: float = float("inf")) -> list[list[str]]:
        """What happens in as many steps of random but fixed actions as the first play made, over as many episodes as
        they take; several environments take turns."""
        traces: list[list[str]] = [[] for _ in simulations]
        samplers = [Sampler(simulation, seed) for simulation, seed in zip(simulations, seeds, strict=True)]
        over = [True] * len(simulations)
        begun = time.monotonic()
        for step in range(self._steps):
            for n, simulation in enumerate(simulations):
                if over[n]:
                    self._episodes += 1
                    over[n] = not self._do("reset", traces[n], lambda: simulation.reset(seeds[n] + 1000 * step))  # noqa: B023
                    if over[n]:
                        continue
                action = samplers[n].draw(simulation.allowed)
                taken: list[Any] = []
                good = self._do("step", traces[n], lambda: taken.extend(simulation.step(action)[1:]) or taken)  # noqa: B023
                traces[n][-1] += f"{simulation.observation.tobytes().hex()}{taken}"
                over[n] = not good or taken[1] or taken[2]
                if over[n]:
                    self._metrics |= simulation.episode_metrics()
            if time.monotonic() - begun > seconds:
                break
        self._play_seconds = max(self._play_seconds, time.monotonic() - begun)
        return [
            [hashlib.blake2b(e.encode(), digest_size=8).hexdigest() if e[:5] != "reset" else e for e in t]
            for t in traces
        ]

    def _do(self, phase: str, trace: list[str], what: Callable[[], Any]) -> bool:
        """Do a reset or a step; False where it is a fault."""
        self._doing(phase)
        before, begun = global_random_state(), time.perf_counter()
        try:
            seen = what()
        except EnvironmentFault as fault:
            text = f"{fault}{users_place(fault.__cause__)}"
            self._faults[text] = self._faults.get(text, 0) + 1
            trace.append(f"{phase} fault")
            return False
        finally:
            self._took(phase, begun)
            if global_random_state() != before:
                self._draws[phase] = None
        trace.append(f"reset {hashlib.blake2b(seen.tobytes(), digest_size=8).hexdigest()}" if phase == "reset" else "")
        return True

    def _tell_faults(self) -> Iterator[Finding]:
        for text, count in list(self._faults.items())[:3]:
            yield wrong(
                f"in {count} of {self._episodes} episodes, {text}",
                "mend it; training would truncate the episode there, or begin the next",
            )

    def _tell_slowness(self) -> Iterator[Finding]:
        for phase, seconds in self._longest.items():
            if seconds > SLOW * self._step_timeout:
                yield note(f"it is slow: a {phase} took {seconds:.0f} s", f"--step-timeout {3 * seconds:.0f}")

    def _tell_extras(self, simulation: Simulation) -> Iterator[Finding]:
        """What the environment has besides observations, actions and rewards."""
        env = simulation.env
        if env is None:
            return
        if simulation.spaces.has_action_masks:
            source = f"its method {METHOD}()" if method_of(env, METHOD) else f"info[{KEY!r}]"
            yield ok(f"action masks: from {source}")
        if self._metrics:
            names = list(self._metrics)
            more = f" and {len(names) - MAX_METRICS} more, left out" if len(names) > MAX_METRICS else ""
            yield ok(_line(f"episode metrics: {', '.join(names[:MAX_METRICS])}{more}"))
        if method_of(env, "set_progress"):
            yield ok("a curriculum: set_progress is told the share of training that is over, before each episode")

    def _check_repetition(self, simulation: Simulation, rebuild: bool) -> Iterator[Finding]:
        """Whether the same seed and actions lead to the same place: in a fresh environment, in a used one, and beside
        another."""
        needed = 4 * self._longest["constructor"] + 5 * self._play_seconds
        if time.monotonic() - self._begun + needed > CHECK_SECONDS:
            yield note(
                f"whether it repeats itself was not looked at: that would take {needed:.0f} s, for a step takes up to"
                f" {in_words(self._longest['step'])} and a constructor {in_words(self._longest['constructor'])}"
            )
            return
        other = self._make()
        (second,) = self._run([other], [SEED])
        self._run([other], [SEED + 1])  # most likely abandons an episode
        (again,) = self._run([other], [SEED])
        beside, _ = self._run([self._make(), self._make()], [SEED, SEED + 1])
        count = len(self.played)
        second, again, beside = second[:count], again[:count], beside[:count]
        if self._draws:
            yield wrong(
                f"it draws from the global `random` or `np.random` in its {', '.join(self._draws)}: runs are not"
                " reproducible",
                REPRODUCIBLE,
            )
        self.differs = self.played != second or bool(self._draws)
        if self.played != second:
            yield wrong(
                "two environments with one seed and the same actions go different ways (it may depend on the clock):"
                " runs are not reproducible, and an actor that takes a lane over begins a fresh episode",
                "seed everything random in reset(seed=…)",
            )
        elif again != self.played and rebuild:
            yield ok("its reset leaks state, but --rebuild-env makes a fresh one for every episode: reproducible")
        elif again != self.played:
            yield wrong(
                "an environment that was used before goes another way than a fresh one: its reset leaks state",
                "use --rebuild-env, or let reset clear everything",
            )
        if self.played == second and beside != self.played:
            yield wrong(
                "stepped in turn with another in one process it goes another way: its instances share state",
                "keep in self what changes, not in the class or the module; or use --lane-size 1",
            )
        elif self.played == second and (again == self.played or rebuild) and not self._draws:
            yield ok(
                f"{self._steps} steps repeat themselves, in another environment, beside one, and after other episodes:"
                " reproducible"
            )


def _check_with_gymnasium(experiment: Experiment) -> Iterator[Finding]:
    """What gymnasium's own checker says of the environment under the wrappers."""
    env = make_environment(replace(experiment, wrapper=()))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_env(env.unwrapped, skip_render_check=True)
    except (Exception, SystemExit) as error:
        yield wrong(f"gymnasium's checker: {_line(error)}", "mend it; see gymnasium's page on making environments")
        return
    finally:
        close_environment(env)
    texts = dict.fromkeys(_line(warning.message) for warning in caught if HARMLESS not in str(warning.message))
    for text in texts:
        yield note(f"gymnasium's checker: {text}")
    if not texts:
        yield ok("gymnasium's checker finds nothing")


def _line(text: object) -> str:
    """A text on one line that can be read, without the colours that gymnasium gives its warnings."""
    return one_line(str(text).replace("\x1b[33mWARN: ", "").replace("\x1b[0m", ""), MAX_TEXT)
