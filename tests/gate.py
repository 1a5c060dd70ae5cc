"""A gate in a run's way, so that no run ends before a test has done to it what it has to do, however slow the test is.

It is a wrapper of the run's environments, and a file that says how far they may go.
"""

import os
import time
from pathlib import Path
from typing import Any

import gymnasium

from protocol.files import replace_file

STEPS = 8  # of an environment, after which it looks anew how far it may go
PASSES = "PASSES_GATES"  # an environment variable of processes that no gate holds
HELD_SECONDS = 0.5  # that a step takes at a closed gate: hardly anything moves, and no actor seems to hang


def iterations(run_dir: Path) -> int:
    """How many a run has done so far."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


class Gate:
    """The test's side. A run with `flags` goes `count` iterations far, and two more at most, until more is allowed."""

    def __init__(self, run_dir: Path, count: int) -> None:
        self._path = run_dir.with_name(f"{run_dir.name}.gate")
        self._run_dir = run_dir
        self.flags = ["--wrapper", f"tests.gate:Gated(gate={str(self._path)!r})"]
        self.close_after(count)

    def close_after(self, count: int) -> None:
        """Let the run go so many iterations far, counted from its beginning."""
        replace_file(self._path, f"{count}\n{self._run_dir}", durable=False)

    def open(self) -> None:
        self._path.unlink(missing_ok=True)


class Gated(gymnasium.Wrapper):
    """The run's side: steps take long as soon as the run has come as far as it may."""

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
        except FileNotFoundError:  # it is open
            self._held = False
        return self._held
