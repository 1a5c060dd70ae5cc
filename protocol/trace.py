"""A timeline of what every process of a run does and when, in Chrome's trace-event format (for ui.perfetto.dev).

All processes append to one file, whole lines at a time. Nothing is recorded unless the launcher began a file.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from protocol.errors import UserError
from protocol.output import complain
from protocol.process import as_typed

VARIABLE = "PPO_TRACE_FILE"  # The launcher and its children have this variable in their environment.
BEGINNING = b'[\n{"ph": '  # The first bytes of every timeline.
FLUSH_SECONDS = 0.5  # Most seconds that events stay in memory. A killed process loses them.


class _Recorder:
    """This process's part of the timeline."""

    def __init__(self, path: str, process: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._lock = threading.Lock()  # The threads of --in-process share this recorder.
        self._lines: list[str] = []
        self._flushed = time.monotonic()
        self.add({"ph": "M", "name": "process_name", "args": {"name": process}})

    def add(self, event: dict[str, Any]) -> None:
        event |= {"pid": os.getpid(), "tid": threading.get_native_id()}
        with self._lock:
            self._lines.append(f"{json.dumps(event)},\n")
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self, last: str = "") -> None:
        with self._lock:
            data = ("".join(self._lines) + last).encode()
            self._lines.clear()
            self._flushed = time.monotonic()
            os.write(self._file, data)  # One write, so that no other process's lines come between.


_recorder: _Recorder | None = None


def begin(path: Path) -> None:
    """Start a new file, which this process and its children will fill. An older timeline is replaced. Raises
    `UserError` if another kind of file is there, and `OSError`."""
    if path.is_file():
        with open(path, "rb") as file:
            if not BEGINNING.startswith(file.read(len(BEGINNING))):
                raise UserError(f"--trace {as_typed(path)} is there already, and is no timeline: choose another name")
    path.write_text("[\n")
    os.environ[VARIABLE] = str(path.absolute())


def join(process: str) -> None:
    """Take part in the timeline, if there is one, under the name `process`."""
    global _recorder
    if VARIABLE in os.environ:
        with _or_else_without():
            _recorder = _Recorder(os.environ[VARIABLE], process)


def flush() -> None:
    """Write the recorded events. A process calls this before it ends."""
    if _recorder is not None:
        with _or_else_without():
            _recorder.flush()


def end() -> None:
    """Complete the file. Call this when no other process writes to it any more."""
    if _recorder is not None:
        with _or_else_without():
            _recorder.flush(
                json.dumps({"ph": "i", "name": "end", "ts": _now(), "pid": os.getpid(), "tid": 0}) + "\n]\n"
            )


@contextmanager
def span(name: str, **facts: int) -> Iterator[None]:
    """Record how long the context lasts, under `name`, together with the numbers `facts`."""
    if _recorder is None:
        yield
        return
    began = _now()
    try:
        yield
    finally:
        with _or_else_without():
            _recorder.add({"ph": "X", "name": name, "ts": began, "dur": _now() - began, "args": facts})


@contextmanager
def _or_else_without() -> Iterator[None]:
    """Give up the timeline if it cannot be written. The run goes on."""
    global _recorder
    try:
        yield
    except OSError as error:
        _recorder = None
        complain(f"warning: --trace is given up: {error}")


def _now() -> float:
    """Microseconds of a clock that all processes of a machine share."""
    return time.monotonic_ns() / 1000
