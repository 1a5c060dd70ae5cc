"""Files that are whole or not there, and files of JSON objects, one a line."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def replace_file(path: Path, data: str | bytes, durable: bool = True, mode: int = 0o666) -> None:
    """Write `data` to `path` so that a crash at any moment leaves either the old file or the new. Raises `OSError`.

    What need not outlive the machine is not `durable`, and then nobody waits for the disk. The umask limits `mode`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines, but for what is half written, or was torn by a kill or a full disk.

    Empty where there is no file; raises another `OSError`.
    """
    rows = []
    with suppress(FileNotFoundError):
        for line in path.read_text(errors="replace").splitlines(keepends=True):
            with suppress(ValueError):
                row = json.loads(line) if line.endswith("\n") else None
                rows += [row] if isinstance(row, dict) else []
    return rows
