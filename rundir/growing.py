"""Reads a file of JSON lines that another process writes, as it grows."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from protocol.files import row_of


class GrowingFile:
    """A file of JSON objects, one a line, that another process appends to, and may replace."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0  # Bytes that were read.
        self._last = b""  # line of it

    def read(self, forget: Callable[[], None]) -> Iterator[dict[str, Any]]:
        """The objects that were completed since the last reading; what is none is left out.

        `forget` is called before the first one where the file has to be read from its beginning: a run that goes on
        from a checkpoint cuts its later rows off, and writes them again.
        """
        try:
            file = open(self._path, "rb")  # noqa: SIM115 - the with is below, outside the try
        except FileNotFoundError:
            return
        with file:
            file.seek(self._offset - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._offset, self._last = 0, b""
                file.seek(0)
                forget()
            while (line := file.readline()).endswith(b"\n"):  # the last may be half written
                self._offset, self._last = self._offset + len(line), line
                if (row := row_of(line)) is not None:
                    yield row
