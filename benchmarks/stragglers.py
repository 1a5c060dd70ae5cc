"""`stragglers`: the schedule `async` against `pipelined`, where lanes are unequally fast and where they are not."""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial

from benchmarks.arguments import positive
from benchmarks.compare import GOAL, compare_row, rows_of
from benchmarks.contenders import NOT_NORMALIZED
from benchmarks.measurements import Target, at_least, at_most, interleave
from benchmarks.peers.card import Card
from benchmarks.processes import Outcome, train
from benchmarks.report import Report

# CartPole's preset, as flags.
CARD = Card("CartPole-v1", 64, 32, 8, 4, 2.5e-3, 98_000, "linear", discount=0.98, gae_lambda=0.9)
LANES = 8
ASYNC, PIPELINED = "async", "pipelined"
SPEED, RETURN, SAMPLES = at_least(2), at_least(0.9), at_most(1.1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slowest-ms", type=positive(float), default=2.0, help="of a step; the fastest takes a tenth")
    parser.add_argument("--iterations", type=positive(int), help="of each run, instead of 48")


def run(arguments: argparse.Namespace) -> Report:
    report = Report("stragglers")
    card = CARD
    if arguments.iterations is not None:
        card = dataclasses.replace(card, total_steps=arguments.iterations * card.batch)
    slowest = arguments.slowest_ms
    title = f"{LANES} lanes and actors, CartPole steps of {slowest / 10:g} to {slowest:g} ms"
    outcomes = in_turns(partial(unequal, card, slowest / 1000), arguments.repeats, title)
    add_rows(report, title, "env-steps/s", outcomes, lambda run: run.rate, SPEED)
    add_rows(report, f"{title}, in the end", "return", outcomes, lambda run: run.episode_return or 0.0, RETURN)
    title = f"{LANES} lanes of CartPole, 2 actors, to a return of {GOAL:g}"
    outcomes = in_turns(partial(equal, card), arguments.repeats, title)
    add_rows(report, title, "env-steps", outcomes, lambda run: run.env_steps, SAMPLES)
    return report


def in_turns(run: Callable[[str, int], Outcome], repeats: int, title: str) -> dict[str, list[Outcome]]:
    """What comes of each schedule, with another seed in each round."""
    return interleave({schedule: partial(run, schedule) for schedule in (ASYNC, PIPELINED)}, repeats, title)


def add_rows(
    report: Report,
    title: str,
    unit: str,
    outcomes: dict[str, list[Outcome]],
    value: Callable[[Outcome], float],
    target: Target,
) -> None:
    rows = rows_of(title, unit, outcomes, value)
    compare_row(rows, ASYNC, [PIPELINED], [target])
    report.rows += rows.values()


def unequal(card: Card, slowest: float, schedule: str, seed: int) -> Outcome:
    """One run in which each lane has an actor, and each actor a speed, of its own; `slowest` in seconds a step."""
    with tempfile.TemporaryDirectory() as folder:
        kwargs = [f"folder='{folder}'", f"slowest={slowest}", f"places={LANES}"]
        env = dataclasses.replace(card, env="benchmarks.environments:Uneven-v0", seed=seed)
        return train([*flags_of(env, schedule), "--actors", str(LANES), "--env-kwargs", *kwargs])


def equal(card: Card, schedule: str, seed: int) -> Outcome:
    """One run to the goal with CartPole as it is."""
    return train([*flags_of(dataclasses.replace(card, stop_return=GOAL, seed=seed), schedule), "--actors", "2"])


def flags_of(card: Card, schedule: str) -> list[str]:
    return [*card.flags(), *NOT_NORMALIZED, "--lane-size", str(card.num_envs // LANES), "--schedule", schedule]
