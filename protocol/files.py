"""Files that are whole or not there."""

import os
from pathlib import Path


def replace_file(path: Path, data: str | bytes) -> None:
    """Write `data` to `path` so that a crash at any moment leaves either the old file or the new. Raises `OSError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
