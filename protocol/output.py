"""Prints this program's output through handles that no environment can take away.

An environment that replaces `sys.stdout`, closes it or sets it to None silences only itself. The standard streams are
for all other output.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

STANDARD_OUTPUT, STANDARD_ERROR = 1, 2  # File descriptors.

_own: list[Any] = []  # Handles for output and errors; empty before `keep_output`.


def keep_output() -> None:
    """From now on, print to where the standard streams lead now, even if they are replaced or closed later."""
    _own[:] = _handle(sys.stdout), _handle(sys.stderr)


def _handle(stream: TextIO | None) -> TextIO:
    """Another handle of the stream's file."""
    if stream is None:  # The program was started without this stream.
        return open(os.devnull, "w")
    return open(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="replace", buffering=1)


def output() -> TextIO:
    """The stream for results."""
    return _own[0] if _own else sys.stdout


def errors() -> TextIO:
    """The stream for warnings and errors."""
    return _own[1] if _own else sys.stderr


def say(text: str) -> None:
    """Print a line of results, after all that was printed before."""
    flush_streams()
    print(text, file=output(), flush=True)


def complain(text: str) -> None:
    """Print a line about what is wrong, after all that was printed before."""
    flush_streams()
    print(text, file=errors(), flush=True)


def flush_streams() -> None:
    """Flush the standard streams that exist."""
    for stream in (sys.__stdout__, sys.__stderr__):
        with suppress(AttributeError, ValueError, OSError):  # The stream is gone, closed, or has no reader.
            stream.flush()  # pyright: ignore[reportOptionalMemberAccess]


@contextmanager
def held(stream: Any) -> Iterator[None]:
    """Send everything that is printed within the context to `stream`."""
    before = [*_own]
    _own[:] = stream, stream
    try:
        with redirect_stdout(stream), redirect_stderr(stream):
            yield
    finally:
        _own[:] = before
