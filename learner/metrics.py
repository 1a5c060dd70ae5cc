"""Numbers for people: the window of finished episodes, and the files of metrics."""

import csv
import io
import json
import math
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from protocol.files import keep_rows, read_rows, replace_file, row_of

WINDOW = 100  # The means are taken over so many episodes.
VERSION = "policy_version"


class EpisodeWindow:
    """The last 100 finished episodes, in the order iteration, t, environment. Empty, it has no mean: None, not nan."""

    def __init__(self) -> None:
        self.returns: deque[float] = deque(maxlen=WINDOW)
        self.lengths: deque[int] = deque(maxlen=WINDOW)

    def extend(self, returns: np.ndarray, lengths: np.ndarray) -> None:
        self.returns.extend(returns.tolist())
        self.lengths.extend(lengths.tolist())

    def state_dict(self) -> dict[str, Any]:
        return {
            "episode_returns": list(self.returns),
            "episode_lengths": list(self.lengths),
            "episode_return_mean": self.return_mean,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.extend(np.array(state["episode_returns"]), np.array(state["episode_lengths"]))

    @property
    def full(self) -> bool:
        return len(self.returns) == WINDOW

    @property
    def return_mean(self) -> float | None:
        return sum(self.returns) / len(self.returns) if self.returns else None

    @property
    def length_mean(self) -> float | None:
        return sum(self.lengths) / len(self.lengths) if self.lengths else None


class MetricsFile:
    """`metrics.jsonl`, one JSON object a line, one line an iteration; and its scalars in `metrics.csv`, in step."""

    def __init__(self, path: Path, policy_version: int, warn: Callable[[str], None]) -> None:
        """Continue the file at `path` after the row of `policy_version`; later rows will be written again."""
        self._path = path
        self._csv_path = path.with_suffix(".csv")
        self._columns: list[str] = []  # The first row has the columns of every row.
        self._warn = warn
        self._failed = False
        try:
            self._continue(policy_version)
        except OSError as error:
            self._complain(error)

    def _continue(self, policy_version: int) -> None:
        """Take the later rows out of both files, at whose ends they are."""
        self._path.touch()
        last = keep_rows(self._path, lambda line: _version(row_of(line)) <= policy_version)
        newest = _version(row_of(last)) if last is not None else None
        header = self._read_header()
        if header:
            columns = next(csv.reader([header]))
            end = keep_rows(
                self._csv_path, lambda line: line == header.encode() or _version_in(line, columns) <= policy_version
            )
            if end is not None and newest is not None and _version_in(end, columns) == newest:
                self._columns = columns
                return
        replace_file(self._csv_path, "")
        with open(self._csv_path, "a") as file:
            file.writelines(self._csv(row) for row in read_rows(self._path, [VERSION]))

    def _read_header(self) -> str:
        """The line of the table's columns; empty where there is none."""
        with suppress(FileNotFoundError, UnicodeDecodeError), open(self._csv_path, newline="") as file:
            line = file.readline()
            return line if line.endswith("\n") else ""
        return ""

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; where the disk will not have it, say so once and go on."""
        columns = self._columns
        texts = {self._path: json.dumps(row, allow_nan=False) + "\n", self._csv_path: self._csv(row)}
        sizes = {}
        try:
            for path, text in texts.items():
                sizes[path] = path.stat().st_size if path.exists() else 0
                with open(path, "a") as file:
                    file.write(text)
            self._failed = False
        except OSError as error:
            self._complain(error)
            self._columns = columns
            for path, size in sizes.items():
                with suppress(OSError):
                    os.truncate(path, size)  # no torn line, and no row in one of the files alone

    def _csv(self, row: dict[str, Any]) -> str:
        """The row's scalars as a line, after that of the columns' names where this is the first row."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        if not self._columns:
            self._columns = [name for name, value in row.items() if not isinstance(value, list | dict)]
            writer.writerow(self._columns)
        values = [row.get(name) for name in self._columns]
        writer.writerow(str(value).lower() if isinstance(value, bool) else value for value in values)
        return buffer.getvalue()

    def _complain(self, error: OSError) -> None:
        if not self._failed:
            self._warn(f"{self._path} IS NOT BEING WRITTEN: {error}; training continues")
        self._failed = True


def _version(row: dict[str, Any] | None) -> float:
    """The policy version of a row; infinite for what is none."""
    version = row.get(VERSION) if row is not None else None
    return version if isinstance(version, int | float) else math.inf


def _version_in(line: bytes, columns: list[str]) -> float:
    """The policy version of a line of the table; infinite for what is none."""
    try:
        (values,) = csv.reader([line.decode()])
        return float(values[columns.index(VERSION)]) if len(values) == len(columns) else math.inf
    except (ValueError, csv.Error):
        return math.inf
