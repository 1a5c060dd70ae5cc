"""One learner at a time works in a run directory: it holds a lock, in whose file it writes who it is."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import psutil

from protocol.errors import UserError

TELL_SECONDS = 3.0  # A user is told of a wait after so long.
LOCK_SECONDS = 60.0  # A learner whose launcher was killed may still be saving for so long.


def claim(run_dir: Path, tell: Callable[[str], None]) -> TextIO:
    """Wait for an orphaned learner to let go of the run directory, and hold it until the file returned is closed.

    Raises `UserError` after `LOCK_SECONDS`. What a user may want to know goes to `tell`.
    """
    lock = open(run_dir / ".learner-lock", "a+")  # noqa: SIM115 - held as long as the learner
    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)
            lock.write(f"{os.getpid()} {os.getppid()}")
            lock.flush()
            return lock
        except BlockingIOError:
            lock.seek(0)
            pid, _, parent = lock.read(40).partition(" ")
            if _is_left_behind(pid, parent):
                psutil.Process(int(pid)).kill()
                tell(
                    f"ended the learner before this one (process {pid}), which was stopped when its launcher was killed"
                )
            waited = time.monotonic() - began
            other = f"another learner (process {pid or 'unknown'}) is at work in {run_dir}"
            if waited > LOCK_SECONDS:
                raise UserError(f"{other}; kill it if it hangs") from None
            if waited > TELL_SECONDS and not told:
                told = True
                tell(f"{other}; it may be saving, and is waited for, for up to {LOCK_SECONDS:.0f} s")
            time.sleep(0.1)


def _is_left_behind(pid: str, parent: str) -> bool:
    """Whether a learner was stopped by a signal and has lost its launcher: it would hold the run for ever."""
    try:
        process = psutil.Process(int(pid))
        orphaned = process.ppid() != int(parent)
        return process.status() == psutil.STATUS_STOPPED and orphaned and "learner" in process.cmdline()
    except (ValueError, psutil.Error):
        return False
