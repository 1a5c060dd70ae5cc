"""Runs that are disturbed at chosen moments."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos import Chaos
from gate import Gate


@dataclass
class GatedChaos(Chaos):
    """A run that cannot end before all its faults have happened."""

    gate: Gate | None = None

    def open_gate(self) -> None:
        assert self.gate is not None
        self.gate.open()


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
