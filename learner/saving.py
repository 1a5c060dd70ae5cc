"""A learner's checkpoints on the disk, and those of them that wait for their evaluation."""

import threading
from pathlib import Path

from learner.launcher import LONG_PATIENCE, Launcher
from learner.state import RunState
from protocol import trace
from protocol.events import CheckpointSaved
from rundir.checkpoint import add_checkpoint, write_checkpoint
from rundir.names import CHECKPOINTS, PENDING


class Saving:
    """Writes versions into one run directory. Where the disk will not have one, training goes on."""

    def __init__(self, run_dir: Path, launcher: Launcher) -> None:
        self.saved_version: int | None = None  # the newest
        self._run_dir, self._launcher = run_dir, launcher
        self._lock = threading.Lock()  # whoever ends a run may save while the learner does

    def save(self, state: RunState) -> None:
        """Write a checkpoint."""
        self._launcher.alive(LONG_PATIENCE)  # a disk may be slow
        try:
            with self._lock, trace.span("save", policy_version=state.checkpoint.policy_version):
                path = write_checkpoint(self._run_dir / CHECKPOINTS, state.whole())
        except OSError as error:
            self._launcher.warn(f"CHECKPOINT NOT SAVED: {error}; training continues, and the older checkpoint stays")
            return
        self.saved_version = state.checkpoint.policy_version
        self._launcher.report(CheckpointSaved(self.saved_version, str(path)))

    def queue_evaluation(self, state: RunState) -> None:
        """Leave a version to be evaluated, unless it was left before a restart and still waits."""
        version = state.checkpoint.policy_version
        if (self._run_dir / PENDING / f"{version:08d}").exists():
            return
        try:
            with trace.span("queue evaluation", policy_version=version):
                add_checkpoint(self._run_dir / PENDING, state.whole())
        except OSError as error:
            self._launcher.warn(f"VERSION {version} WILL NOT BE EVALUATED: {error}; training continues")
