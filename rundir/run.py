"""A run directory, as the commands that look at one read it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import UserError
from protocol.files import read_object, read_rows
from protocol.output import say
from rundir.checkpoint import Checkpoint, load_newest_checkpoint
from rundir.config import RunConfig
from rundir.names import BEST, CHECKPOINTS, CONFIG, METRICS, SUMMARY


@dataclass(frozen=True)
class Run:
    """A run that is under way, stopped or finished."""

    path: Path
    config: RunConfig

    @classmethod
    def open(cls, path: Path) -> "Run":
        """The run in directory `path`; raises `UserError` if there is none."""
        if not (path / CONFIG).is_file():
            raise UserError(f"{path}: there is no run here (no {CONFIG})")
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

    def summary(self) -> dict[str, Any] | None:
        """How the run ended; None while it is under way, or where its launcher was killed."""
        return read_object(self.path / SUMMARY)
