"""Requests of `launch.py actors` for another number of actors: files in the run directory, one for each sender."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PREFIX = "wanted-actors-"


def request_path(run_dir: Path) -> Path:
    """The file with which this process asks for a number of actors."""
    return run_dir / f"{PREFIX}{os.getpid()}"


def requests(run_dir: Path) -> Iterator[int]:
    """The requested numbers, oldest first. A request is removed when the caller asks for the next number: the sender
    waits for the removal."""
    paths = []
    for path in run_dir.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):  # The sender has withdrawn its request.
            paths.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(paths):
        with suppress(OSError, ValueError):  # The file was removed meanwhile, or `launch.py actors` did not write it.
            if (count := int(path.read_text())) > 0:
                yield count
        path.unlink(missing_ok=True)
