"""Files that are whole or not there."""

import os
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, data: str | bytes, durable: bool = True) -> None:
    """Write `data` to `path` so that a crash at any moment leaves either the old file or the new. Raises `OSError`.

    What need not outlive the machine is not `durable`, and then nobody waits for the disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, text: str) -> None:
    """Append `text` to `path` as a line of its own. Raises `OSError`, and then leaves no part of it behind."""
    with open(path, "ab") as file:
        end = file.tell()
        try:
            file.write(text.encode() + b"\n")
            file.flush()
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise
