"""`scale`: env-steps per second with more and more actors, in an environment of slow steps."""

import argparse
import dataclasses
import statistics
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from benchmarks.arguments import positive
from benchmarks.measurements import Row, Samples, at_least, interleave
from benchmarks.processes import finished_run, metrics_of
from benchmarks.report import Report

ROLLOUT_LENGTH = 32
FIRST_ITERATIONS = 3  # Left out, because actors still build their lanes, and the learner compiles.
TARGETS = {16: at_least(0.95)}  # {actors: share of linear scaling}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--actors", nargs="+", type=positive(int), default=[1, 2, 4, 8, 16], help="actor processes")
    parser.add_argument("--step-seconds", type=positive(float), default=0.005, help="of a step")


@dataclass(frozen=True)
class Speeds:
    """Speeds of one run, once they are steady, in env-steps per second."""

    run: float
    learner: float  # Speed if the learner never had to wait.


def run(arguments: argparse.Namespace) -> Report:
    counts, step_seconds = sorted(set(arguments.actors)), arguments.step_seconds
    runs = {f"{n} actors": partial(measure, n, max(counts), step_seconds) for n in counts}
    results = list(interleave(runs, arguments.repeats, "scale").values())
    learner = statistics.median(speeds.learner for speeds in results[-1])

    panel, unit = f"actors, with steps of {step_seconds * 1e3:g} ms", "env-steps/s"
    rows, first = [], Samples.of(speeds.run for speeds in results[0])
    for n, speeds in zip(counts, results, strict=True):
        measured = Row(panel, unit, str(n), "measured", Samples.of(s.run for s in speeds))
        linear = Row(panel, unit, str(n), "linear", first.times(n / counts[0]))
        model = Row(panel, unit, str(n), "model", Samples.of([min(n / step_seconds, learner)]))
        rows += [dataclasses.replace(measured, comparisons=(measured.against(linear, TARGETS.get(n)),)), linear, model]
    report = Report("scale", rows)
    report.note(
        f"model: min(actors / {step_seconds * 1e3:g} ms, {learner:,.0f} env-steps/s of the learner);"
        f" it is saturated by {learner * step_seconds:,.0f} actors"
    )
    return report


def measure(actors: int, num_envs: int, step_seconds: float, _: int) -> Speeds:
    """Do one run with `actors` actors and a lane for each environment."""
    steps = num_envs * ROLLOUT_LENGTH
    iterations = FIRST_ITERATIONS + 2 + actors  # Fast runs get more iterations than slow runs.
    flags = f"--env benchmarks.environments:Sleep-v0 --env-kwargs seconds={step_seconds} --schedule pipelined"
    flags += f" --num-envs {num_envs} --lane-size 1 --rollout-length {ROLLOUT_LENGTH} --minibatches 4 --epochs 4"
    flags += f" --actors {actors} --total-steps {iterations * steps}"
    with finished_run(flags.split()) as run_dir:
        return speeds_of(metrics_of(run_dir)[FIRST_ITERATIONS - 1 :], steps)


def speeds_of(rows: list[dict[str, Any]], steps: int) -> Speeds:
    """Speeds computed from rows of metrics.jsonl, with `steps` env-steps per iteration."""
    seconds = [after["time/seconds"] - before["time/seconds"] for before, after in pairwise(rows)]
    busy = [s * (1 - row["time/learner_wait_share"]) for s, row in zip(seconds, rows[1:], strict=True)]
    return Speeds(run=steps * len(seconds) / sum(seconds), learner=steps / statistics.median(busy))
