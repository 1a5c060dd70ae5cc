"""Files that are whole or not there, and files of JSON objects, one a line."""

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

LONGEST_NUMBER = 20  # A whole number of 64 bits has at most so many characters.
TAIL = 2**16  # So many bytes at a file's end are read first to find its last rows.


def replace_file(path: Path, data: str | bytes, durable: bool = True, mode: int = 0o666) -> None:
    """Write `data` to `path` so that a crash at any moment leaves either the old file or the new. Raises `OSError`.

    What need not outlive the machine is not `durable`, and then nobody waits for the disk. The umask limits `mode`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")

    def new(name: str, flags: int) -> int:
        # Whoever made the directory has put nothing there.
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
    """Have a directory's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Have a file on the disk. On macOS, fsync leaves it in the drive's cache, and some file systems know no better."""
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is not None:
        with suppress(OSError):
            fcntl.fcntl(descriptor, full_sync)
            return
    os.fsync(descriptor)


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


def row_of(line: bytes) -> dict[str, Any] | None:
    """The object in a line of a file of JSON lines.

    None for what is none: half written, torn by a kill or a full disk, or not written by this project, which writes no
    number that JSON or a float cannot hold.
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
    return int(text)  # NaN and Infinity are none


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no such file, or it holds no object."""
    try:
        found = json.loads(path.read_text()) if path.is_file() else None  # a pipe would be waited for
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_rows(path: Path, numbers: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines that have these numbers; what is no such row is left out.

    Empty where there is no file; raises another `OSError`.
    """
    if path.exists() and not path.is_file():
        return  # a pipe would be waited for
    with suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            row = row_of(line)
            if row is not None and all(isinstance(row.get(name), int | float) for name in numbers):
                yield row


def keep_rows(path: Path, keep: Callable[[bytes], bool]) -> bytes | None:
    """Cut a file of lines after the last one that `keep` takes, and take out others near the end that it does not.

    Returns that line; None where there is none. Reads no more of a long file than it has to. Raises `OSError`.
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
                start += len(file.readline())  # That line may have begun before.
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
