"""`startup`: seconds from `python launch.py --actors 8` to the end of the first training iteration."""

import argparse
import time

from benchmarks.arguments import positive
from benchmarks.measurements import Row, Samples, at_most, interleave
from benchmarks.processes import running
from benchmarks.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--actors", type=positive(int), default=8, help="actor processes")


def run(arguments: argparse.Namespace) -> Report:
    def seconds(_: int) -> float:
        started = time.monotonic()
        with running(["--actors", str(arguments.actors)]) as launched:
            launched.await_iterations(1)
            return time.monotonic() - started

    name = f"launch.py --actors {arguments.actors}"
    (values,) = interleave({name: seconds}, arguments.repeats, "startup").values()
    samples = Samples.of(values)
    return Report("startup", [Row("to the first iteration", "s", "CartPole-v1", name, samples, target=at_most(4))])
