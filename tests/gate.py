"""A gate holds a run back, so that the run cannot end before a test has done its work, however slow the test is.

The gate is a wrapper of the run's environments, and a file that contains how many iterations the run may do.
"""

import os
import time
from pathlib import Path
from typing import Any

import gymnasium

from protocol.files import replace_file

STEPS = 8  # An environment reads the file again after so many steps.
PASSES = "PASSES_GATES"  # Environment variable of processes that no gate holds.
HELD_SECONDS = 0.5  # Duration of a step at a closed gate: the run hardly moves, but no actor seems to hang.


def iterations(run_dir: Path) -> int:
    """The number of iterations that a run has completed so far."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


class Gate:
    """The test's side. A run with `flags` does `count` iterations, and two more at most, until the test allows more."""

    def __init__(self, run_dir: Path, count: int) -> None:
        self._path = run_dir.with_name(f"{run_dir.name}.gate")
        self._run_dir = run_dir
        self.flags = ["--wrapper", f"tests.gate:Gated(gate={str(self._path)!r})"]
        self.close_after(count)

    def close_after(self, count: int) -> None:
        """Allow the run `count` iterations, counted from its beginning."""
        replace_file(self._path, f"{count}\n{self._run_dir}", durable=False)

    def open(self) -> None:
        self._path.unlink(missing_ok=True)


class Gated(gymnasium.Wrapper):
    """The run's side. Steps take long as soon as the run has done as many iterations as the file allows."""

    def __init__(self, env: gymnasium.Env, gate: str) -> None:
        super().__init__(env)
        self._gate = Path(gate)
        self._free = PASSES in os.environ
        self._steps = 0
        self._held = False

    def step(self, action: Any) -> Any:
        self._steps += 1
        if not self._free and (self._held or self._steps % STEPS == 0):
            until = time.monotonic() + HELD_SECONDS
            while self._look() and time.monotonic() < until:
                time.sleep(0.02)
        return super().step(action)

    def _look(self) -> bool:
        try:
            count, run_dir = self._gate.read_text().split("\n")
            self._held = iterations(Path(run_dir)) >= int(count)
        except FileNotFoundError:  # The gate is open.
            self._held = False
        return self._held
