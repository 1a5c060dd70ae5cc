"""`stragglers`: the schedule `async` against `pipelined`, where lanes are unequally fast and where they are not."""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.arguments import positive
from benchmarks.compare import GOAL, compare_row
from benchmarks.contenders import NOT_NORMALIZED
from benchmarks.measurements import Row, Samples, Target, at_least, at_most, interleave
from benchmarks.peers.card import Card
from benchmarks.processes import finished_run, metrics_of
from benchmarks.report import Report
from learner.metrics import WINDOW

# CartPole's preset, as flags.
CARD = Card("CartPole-v1", 64, 32, 8, 4, 2.5e-3, 98_000, "linear", discount=0.98, gae_lambda=0.9)
LANES = 8
ASYNC, PIPELINED = "async", "pipelined"
SPEED, RETURN, SOONER, SAMPLES = at_least(2), at_least(0.95), at_most(1), at_most(1.1)
SEEDS_PER_REPEAT = (
    3  # For equal lanes: samples to the goal vary by 5 % from seed to seed, which hides smaller differences.
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--slowest-ms",
        type=positive(float),
        default=2.0,
        help="milliseconds of the slowest step; the fastest takes a tenth",
    )
    parser.add_argument("--iterations", type=positive(int), help="of each run, instead of 48")


@dataclass(frozen=True)
class Run:
    """The metrics of one training run."""

    rows: list[dict[str, Any]]  # The rows of metrics.jsonl.

    @property
    def rate(self) -> float:
        """Env-steps per second."""
        return self.rows[-1]["env_steps"] / self.rows[-1]["time/seconds"]

    @property
    def episode_return(self) -> float:
        """Mean of the last 100 episodes."""
        return self.rows[-1]["rollout/episode_return_mean"] or 0.0

    @property
    def goal(self) -> dict[str, Any] | None:
        """The row of the first iteration after which the last 100 episodes had the goal's return; None without one."""
        return next(
            (r for r in self.rows if r["rollout/episodes"] == WINDOW and r["rollout/episode_return_mean"] >= GOAL), None
        )

    def until_goal(self, name: str) -> float:
        """The number `name` from the row `goal`, or from the last row if the goal was not reached."""
        return (self.goal or self.rows[-1])[name]


def run(arguments: argparse.Namespace) -> Report:
    report = Report("stragglers")
    card = CARD
    if arguments.iterations is not None:
        card = dataclasses.replace(card, total_steps=arguments.iterations * card.batch)
    slowest = arguments.slowest_ms
    title = f"{LANES} lanes and actors, CartPole steps of {slowest / 10:g} to {slowest:g} ms"
    runs = in_turns(partial(unequal, card, slowest / 1000), arguments.repeats, title)
    add_rows(report, title, "env-steps/s", runs, lambda run: run.rate, SPEED)
    add_rows(report, f"{title}, in the end", "return", runs, lambda run: run.episode_return, RETURN)
    add_rows(report, f"{title}, to a return of {GOAL:g}", "s", runs, lambda run: run.until_goal("time/seconds"), SOONER)
    tell_reached(report, "unequal", runs)
    title = f"{LANES} lanes of CartPole, 2 actors, to a return of {GOAL:g}"
    runs = in_turns(partial(equal, card), SEEDS_PER_REPEAT * arguments.repeats, title)
    add_rows(report, title, "env-steps", runs, lambda run: run.until_goal("env_steps"), SAMPLES)
    tell_reached(report, "equal", runs)
    return report


def in_turns(run: Callable[[str, int], Run], repeats: int, title: str) -> dict[str, list[Run]]:
    """Run each schedule in turn, with another seed in each round; returns the results by schedule."""
    return interleave({schedule: partial(run, schedule) for schedule in (ASYNC, PIPELINED)}, repeats, title)


def tell_reached(report: Report, lanes: str, runs: dict[str, list[Run]]) -> None:
    told = (f"{name} in {sum(r.goal is not None for r in found)} of {len(found)} runs" for name, found in runs.items())
    report.note(f"{lanes} lanes: {' and '.join(told)} reached {GOAL:g}")


def add_rows(
    report: Report,
    title: str,
    unit: str,
    runs: dict[str, list[Run]],
    value: Callable[[Run], float],
    target: Target,
) -> None:
    rows = {name: Row(title, unit, "", name, Samples.of(map(value, found))) for name, found in runs.items()}
    compare_row(rows, ASYNC, [PIPELINED], [target])
    report.rows += rows.values()


def unequal(card: Card, slowest: float, schedule: str, seed: int) -> Run:
    """Do one run in which each lane has its own actor, and each actor its own speed; `slowest` in seconds a step."""
    with tempfile.TemporaryDirectory() as folder:
        kwargs = [f"folder='{folder}'", f"slowest={slowest}", f"places={LANES}"]
        env = dataclasses.replace(card, env="benchmarks.environments:Uneven-v0", seed=seed)
        return whole_run([*flags_of(env, schedule), "--actors", str(LANES), "--env-kwargs", *kwargs])


def equal(card: Card, schedule: str, seed: int) -> Run:
    """Do one run of unchanged CartPole to the goal."""
    return whole_run([*flags_of(dataclasses.replace(card, stop_return=GOAL, seed=seed), schedule), "--actors", "2"])


def whole_run(flags: list[str]) -> Run:
    with finished_run(flags) as run_dir:
        return Run(metrics_of(run_dir))


def flags_of(card: Card, schedule: str) -> list[str]:
    return [*card.flags(), *NOT_NORMALIZED, "--lane-size", str(card.num_envs // LANES), "--schedule", schedule]
