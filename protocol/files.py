"""Files that are whole or not there, and files of JSON objects, one a line."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def replace_file(path: Path, text: str) -> None:
    """Write `text` to `path` so that a crash at any moment leaves either the old file or the new. Raises `OSError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
