"""Keeps a Mac awake during a run. Otherwise it falls asleep when nobody has used it for a while."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def awake(wanted: bool) -> Iterator[None]:
    """Keep a Mac awake until the context or this process ends. On other systems this does nothing."""
    caffeinate = shutil.which("caffeinate") if wanted and sys.platform == "darwin" else None
    if caffeinate is None:
        yield
        return
    # caffeinate watches this process by its pid and ends with it, even if this process is killed.
    process = subprocess.Popen(
        [caffeinate, "-i", "-w", str(os.getpid())], stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()
