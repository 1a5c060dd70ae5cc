"""Runs that are disturbed at chosen moments."""

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from chaos import Chaos
from gate import Gate
from launching import launch, metrics_of, running, stop, summary_of, together, train, wait_for


@dataclass
class GatedChaos(Chaos):
    """A run that cannot end before all its faults have happened."""

    gate: Gate | None = None

    def open_gate(self) -> None:
        assert self.gate is not None
        self.gate.open()


EXECUTIONS = {"in-process": ["--in-process", "--actors", 2], "1": ["--actors", 1], "4": ["--actors", 4]}


def in_every_execution(folder: Path, flags: list[object]) -> dict[str, dict[str, Any]]:
    """Do a run of at least 20 iterations in each execution: in one process, with 1 and 4 actors, with an actor and the
    learner `killed`, and stopped and `resumed`; returns the summaries. The runs lie in `folder`, by their names."""
    runs = [partial(train, folder / name, *flags, *how) for name, how in EXECUTIONS.items()]
    runs.append(partial(disturb, folder / "killed", [*flags, "--actors", 2], ["kill_actor", "kill_learner"], every=8))
    summaries = dict(zip([*EXECUTIONS, "killed"], together(*runs), strict=True))
    resumed = folder / "resumed"
    with running(resumed, *flags, "--actors", 2) as process:
        wait_for(lambda: (resumed / "metrics.jsonl").exists() and len(metrics_of(resumed)) >= 5)
        stop(process)
    assert launch("--resume", resumed, "--actors", 3).returncode == 0
    return summaries | {"resumed": summary_of(resumed)}


def disturb(run_dir: Path, flags: list[object], faults: list[str], every: int) -> dict[str, Any]:
    """Do a run with a fault after each `every` iterations; returns its summary."""
    gate = Gate(run_dir, every * len(faults) + 3)  # A checkpoint may come between two faults.
    chaos = GatedChaos(run_dir, [*flags, *gate.flags], random.Random(0), gate=gate)
    summary = chaos.run([*faults, "open_gate"], due=lambda i: chaos.iterations() >= every * min(i + 1, len(faults)))
    assert chaos.done == [*faults, "open_gate"], "the run ended before its faults"
    samples = summary["samples"]
    assert samples["in_flight"] == 0
    assert samples["produced"] == samples["trained"] + sum(samples["dropped"].values())
    return summary
