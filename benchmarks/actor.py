"""`actor`: how fast one actor collects rollouts, against gymnasium's SyncVectorEnv; and the memory of its process."""

import argparse
import dataclasses
import time

import psutil

from benchmarks.arguments import positive
from benchmarks.measurements import Row, Samples, at_least, at_most, interleave
from benchmarks.processes import Launched, Worker, running
from benchmarks.report import Report

OURS, RIVAL = "actor: policy and lane", "SyncVectorEnv, random actions"
TARGETS = {"CartPole-v1": (at_least(0.9), at_most(60))}  # (share of the rival's speed, MB of the process)
MEGABYTE = 1e6
SETTLED_ITERATIONS = 5  # Iterations after which an actor has allocated everything that it needs.
PAUSE = 0.2  # Seconds between two measurements of an actor's memory.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", default="CartPole-v1", help="environment, with its preset")
    parser.add_argument("--seconds", type=positive(float), default=1.0, help="of each measurement")


def run(arguments: argparse.Namespace) -> Report:
    case = f"8 × {arguments.env}"
    speed_target, memory_target = TARGETS.get(arguments.env, (None, None))
    with Worker("acting", "--env", arguments.env) as worker:

        def ask(contender: str) -> float:
            return worker.ask(contender=contender, seconds=arguments.seconds)["rate"]

        contenders = {OURS: lambda _: ask("lane"), RIVAL: lambda _: ask("vector")}
        results = interleave(contenders, arguments.repeats, case)
    ours, rival = (Row("acting", "env-steps/s", case, name, Samples.of(values)) for name, values in results.items())
    ours = dataclasses.replace(ours, comparisons=(ours.against(rival, speed_target),))
    flags = ["--env", arguments.env, "--actors", "1", "--total-steps", "100_000_000"]
    with running(flags) as launched:
        launched.await_iterations(SETTLED_ITERATIONS)
        memory = Samples.of(actor_megabytes(launched) for _ in range(arguments.repeats))
    resident = Row("memory", "MB", "actor process", "resident", memory, target=memory_target)
    return Report("actor", [ours, rival, resident])


def actor_megabytes(launched: Launched) -> float:
    """Resident memory in MB of the run's actor, after a pause."""
    time.sleep(PAUSE)
    children = psutil.Process(launched.process.pid).children()
    (actor,) = (child for child in children if "actors" in child.cmdline())
    return actor.memory_info().rss / MEGABYTE
