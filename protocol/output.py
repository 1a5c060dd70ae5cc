"""What this program says, where an environment may be at work: through handles that no environment can take away.

One that replaces `sys.stdout`, closes it or sets it to None silences itself. The standard streams are for the rest.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

STANDARD_OUTPUT, STANDARD_ERROR = 1, 2  # Their file descriptors.

_own: list[Any] = []  # handles for output and errors, once they are kept


def keep_output() -> None:
    """From here on, say things where the standard streams lead now, whatever becomes of them."""
    _own[:] = _handle(sys.stdout), _handle(sys.stderr)


def _handle(stream: TextIO | None) -> TextIO:
    """Another handle of the same file."""
    if stream is None:  # this program was started without it
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
    """Write what waits in the standard streams, as far as there are any."""
    for stream in (sys.__stdout__, sys.__stderr__):
        with suppress(AttributeError, ValueError, OSError):  # gone, closed, or nobody reads
            stream.flush()  # pyright: ignore[reportOptionalMemberAccess]


@contextmanager
def held(stream: Any) -> Iterator[None]:
    """Let all that is printed in the meantime go to `stream`."""
    before = [*_own]
    _own[:] = stream, stream
    try:
        with redirect_stdout(stream), redirect_stderr(stream):
            yield
    finally:
        _own[:] = before
