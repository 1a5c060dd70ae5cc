"""A run directory, as the commands that look at one read it."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import UserError
from protocol.files import read_object, read_rows
from protocol.output import say
from rundir.checkpoint import Checkpoint, load_newest_checkpoint
from rundir.config import RunConfig
from rundir.evaluations import read_results
from rundir.names import BEST, CHECKPOINTS, CONFIG, METRICS, SUMMARY

MAX_DEPTH = 4  # So many folders deep, runs are looked for: runs/SWEEP/TRIAL/SEED.


@dataclass(frozen=True)
class Run:
    """A run that is under way, stopped or finished."""

    path: Path
    config: RunConfig

    @classmethod
    def open(cls, path: Path) -> "Run":
        """The run in directory `path`; raises `UserError` if there is none."""
        if not (path / CONFIG).is_file():
            below = next(_runs_below(path, MAX_DEPTH), None)
            hint = f"; name one of those below it, such as {below}" if below else ""
            raise UserError(f"{path}: there is no run here (no {CONFIG}){hint}")
        return cls(path, RunConfig.load(path / CONFIG))

    def checkpoint(self, best: bool = False) -> Checkpoint:
        """The newest checkpoint that verifies, or the best by evaluation; raises `UserError` if there is none."""
        directory = self.path / (BEST if best else CHECKPOINTS)
        checkpoint = load_newest_checkpoint(directory, lambda text: say(f"warning: {text}"))
        if checkpoint is None:
            hint = "; one is kept there by --eval-every" if best else ""
            raise UserError(f"{directory} has no checkpoint that can be read{hint}")
        return checkpoint

    def rows(self) -> list[dict[str, Any]]:
        """The metrics of every iteration so far; raises `UserError` where they cannot be read."""
        path = self.path / METRICS
        try:
            return list(read_rows(path, ["policy_version"]))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}") from None

    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations so far, the oldest first; raises `UserError` where they cannot be read."""
        try:
            return read_results(self.path)
        except OSError as error:
            raise UserError(f"the evaluations of {self.path} cannot be read: {error}") from None

    def summary(self) -> dict[str, Any] | None:
        """How the run ended; None while it is under way, or where its launcher was killed."""
        return read_object(self.path / SUMMARY)


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The run directories among `paths` and below them, each once; those of a folder in the order of their names, with
    seed-2 before seed-10. Raises `UserError` for a path that has none, or cannot be read."""
    found: dict[Path, None] = {}
    for path in paths:
        try:
            below = list(_runs_below(path, MAX_DEPTH))
        except OSError as error:
            raise UserError(f"{path} cannot be searched for runs: {error}") from None
        if not below:
            raise UserError(f"{path}: there is no run here (no {CONFIG})")
        found |= dict.fromkeys(below)
    return list(found)


def run_names(paths: Sequence[Path]) -> list[str]:
    """The shortest end of each path that no other path has: `seed-0`, or `trial-1/seed-0` where there are several."""
    parts = [path.resolve().parts for path in paths]
    names = [""] * len(parts)
    for length in range(1, max(map(len, parts), default=0) + 1):
        ends = Counter(path[-length:] for path in parts)
        for i, path in enumerate(parts):
            if not names[i] and (ends[path[-length:]] == 1 or length == len(path)):
                names[i] = str(Path(*path[-length:]))
    return names


def _runs_below(path: Path, depth: int) -> Iterator[Path]:
    if (path / CONFIG).is_file():
        yield path
    elif depth > 0 and path.is_dir():
        for folder in sorted(path.iterdir(), key=_in_order):
            if folder.is_dir() and not folder.name.startswith("."):
                yield from _runs_below(folder, depth - 1)


def _in_order(path: Path) -> list[tuple[int, str]]:
    """A key that sorts names by the numbers in them."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]
