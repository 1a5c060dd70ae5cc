"""Writes files atomically, and reads and writes files of JSON objects, one a line."""

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

LONGEST_NUMBER = 20  # Most characters of a 64-bit integer.
TAIL = 2**16  # Bytes at a file's end that are read first to find its last rows.


def replace_file(path: Path, data: str | bytes, durable: bool = True, mode: int = 0o666) -> None:
    """Write `data` to `path` so that a crash at any moment leaves either the old file or the new. Raises `OSError`.

    If `durable`, wait until the data is on the disk, so that the file survives a crash of the machine. The umask limits
    `mode`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")

    def new(name: str, flags: int) -> int:
        # The flags refuse a file or a link that the directory's maker may have put there.
        return os.open(name, flags | os.O_EXCL | os.O_NOFOLLOW, mode)

    try:
        with open(temporary, "wb", opener=new) as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            if durable:
                _sync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Force a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Force a file to the disk. On macOS, fsync leaves the data in the drive's cache, but some file systems have no
    F_FULLFSYNC."""
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is not None:
        with suppress(OSError):
            fcntl.fcntl(descriptor, full_sync)
            return
    os.fsync(descriptor)


def append_line(path: Path, text: str) -> None:
    """Append `text` to `path` as a line of its own. On `OSError`, which is raised, no part of the line stays behind."""
    with open(path, "ab") as file:
        end = file.tell()
        try:
            file.write(text.encode() + b"\n")
            file.flush()
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def row_of(line: bytes) -> dict[str, Any] | None:
    """The object in a line of a file of JSON lines.

    None for a line without an object: one that is half written, that a kill or a full disk cut short, or that another
    program wrote. This project writes no number that JSON or a float cannot hold.
    """
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line, parse_int=_number, parse_constant=_number)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _number(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError("a number that nobody here wrote")
    return int(text)  # `int` raises ValueError on NaN and Infinity.


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file, or if the file holds no object."""
    try:
        found = json.loads(path.read_text()) if path.is_file() else None  # Reading a pipe would block.
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_rows(path: Path, numbers: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines whose fields named in `numbers` are numbers. Other lines are left out.

    Yields nothing if there is no file. Raises any other `OSError`.
    """
    if path.exists() and not path.is_file():
        return  # Reading a pipe would block.
    with suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            row = row_of(line)
            if row is not None and all(isinstance(row.get(name), int | float) for name in numbers):
                yield row


def keep_rows(path: Path, keep: Callable[[bytes], bool]) -> bytes | None:
    """Cut a file after the last line that `keep` accepts, and remove refused lines near the end.

    Returns the last accepted line; None if there is none. Reads no more of a long file than needed. Raises `OSError`.
    """
    try:
        file = open(path, "rb+")  # noqa: SIM115 - the with is below, outside the try
    except FileNotFoundError:
        return None
    with file:
        size, length = file.seek(0, os.SEEK_END), TAIL
        while True:
            start = max(0, size - length)
            file.seek(start)
            if start:
                start += len(file.readline())  # This line may have begun before `start`.
            lines = file.readlines()
            kept = [line for line in lines if line.endswith(b"\n") and keep(line)]
            if kept or start == 0 or length >= size:
                break
            length *= 2
        if kept != lines:
            file.seek(start)
            file.writelines(kept)
            file.truncate()
        return kept[-1] if kept else None
