"""Keeping a Mac awake over a run: it falls asleep when nobody has touched it for a while."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def awake(wanted: bool) -> Iterator[None]:
    """As long as the context lasts, or this process if it is killed. Elsewhere than on a Mac this does nothing."""
    caffeinate = shutil.which("caffeinate") if wanted and sys.platform == "darwin" else None
    if caffeinate is None:
        yield
        return
    # It watches this process by its pid, and ends with it, however that ends.
    process = subprocess.Popen(
        [caffeinate, "-i", "-w", str(os.getpid())], stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()
