"""Numbers for people: the window of finished episodes, and the files of metrics."""

import csv
import io
import json
import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from protocol.files import keep_rows, read_rows, replace_file, row_of
from protocol.text import one_line
from protocol.trajectory import EPISODE, MAX_METRICS, SUCCESS

WINDOW = 100  # The means are taken over so many episodes.
VERSION = "policy_version"


class EpisodeWindow:
    """The last 100 finished episodes, in the order iteration, t, environment. Empty, it has no mean: None, not nan.

    Of each episode metric it has the last 100 episodes that told it.
    """

    def __init__(self, wanted: Sequence[str] = (), warn: Callable[[str], None] = lambda _: None) -> None:
        """`wanted` are the names of metrics that the user asked for; none takes the first `MAX_METRICS` that come."""
        self.returns: deque[float] = deque(maxlen=WINDOW)
        self.lengths: deque[int] = deque(maxlen=WINDOW)
        self.metrics: dict[str, deque[float]] = {}
        self._wanted, self._warn, self._warned = wanted, warn, False

    def extend(self, returns: np.ndarray, lengths: np.ndarray, extras: dict[str, np.ndarray] | None = None) -> None:
        """Take in finished episodes; `extras` are those of their batch."""
        self.returns.extend(returns.tolist())
        self.lengths.extend(lengths.tolist())
        told = {name.removeprefix(EPISODE): a for name, a in (extras or {}).items() if name.startswith(EPISODE)}
        for name, values in sorted(told.items(), key=lambda item: item[0] != SUCCESS):
            if name in self.metrics or len(self.metrics) < MAX_METRICS:
                window = self.metrics.setdefault(name, deque(maxlen=WINDOW))
                window.extend(values[~np.isnan(values)].tolist())
        if len(returns) and not self._warned:
            self._look_for_missing(list(told))

    def _look_for_missing(self, told: list[str]) -> None:
        """Say once what of the metrics of finished episodes cannot be shown."""
        if missing := [name for name in self._wanted if name not in self.metrics]:
            self._warned = True
            names = one_line(", ".join(missing), 100)
            self._warn(f"the info of no episode's last step has {names} as a number, which --episode-metrics names")
        elif left_out := [name for name in told if name not in self.metrics]:
            self._warned = True
            names = one_line(", ".join(left_out), 100)
            text = f"the info of an episode's last step has more than {MAX_METRICS} numbers"
            self._warn(f"{text}; left out are {names}. --episode-metrics chooses others")

    def state_dict(self) -> dict[str, Any]:
        return {
            "episode_returns": list(self.returns),
            "episode_lengths": list(self.lengths),
            "episode_return_mean": self.return_mean,
            "episode_metrics": {name: list(values) for name, values in self.metrics.items()},
            "episode_metric_means": self.metric_means,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.extend(np.array(state["episode_returns"]), np.array(state["episode_lengths"]))
        for name, values in state.get("episode_metrics", {}).items():
            self.metrics[name] = deque(values, maxlen=WINDOW)

    @property
    def metric_means(self) -> dict[str, float]:
        """The mean of each episode metric, as `episode/NAME`."""
        return {EPISODE + name: sum(values) / len(values) for name, values in self.metrics.items() if values}

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
    """`metrics.jsonl`, one JSON object a line, one line an iteration; and its scalars in `metrics.csv`, in step.

    A scalar that comes later than the first row, as an episode metric does, adds a column to the whole table.
    """

    def __init__(self, path: Path, policy_version: int, warn: Callable[[str], None]) -> None:
        """Continue the file at `path` after the row of `policy_version`; later rows will be written again."""
        self._path = path
        self._csv_path = path.with_suffix(".csv")
        self._columns: list[str] = []  # Of the table, in the order in which they came.
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
        self._write_table()

    def _write_table(self) -> None:
        """Write the whole table again, from the rows."""
        names = (name for row in read_rows(self._path, [VERSION]) for name in _scalars(row))
        self._columns = list(dict.fromkeys(names))
        lines = [self._csv_row(row) for row in read_rows(self._path, [VERSION])]
        replace_file(self._csv_path, "".join([self._csv(self._columns), *lines]) if lines else "")

    def _read_header(self) -> str:
        """The line of the table's columns; empty where there is none."""
        with suppress(FileNotFoundError, UnicodeDecodeError), open(self._csv_path, newline="") as file:
            line = file.readline()
            return line if line.endswith("\n") else ""
        return ""

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; where the disk will not have it, say so once and go on."""
        columns = self._columns
        self._columns = list(dict.fromkeys([*columns, *_scalars(row)]))
        texts, sizes = {self._path: json.dumps(row, allow_nan=False) + "\n"}, {}
        if not columns:
            texts[self._csv_path] = self._csv(self._columns) + self._csv_row(row)
        elif len(columns) == len(self._columns):
            texts[self._csv_path] = self._csv_row(row)
        try:
            for path, text in texts.items():
                sizes[path] = path.stat().st_size if path.exists() else 0
                with open(path, "a") as file:
                    file.write(text)
            if self._csv_path not in texts:
                self._write_table()
            self._failed = False
        except OSError as error:
            self._complain(error)
            self._columns = columns
            for path, size in sizes.items():
                with suppress(OSError):
                    os.truncate(path, size)  # no torn line, and no row in one of the files alone

    def _csv_row(self, row: dict[str, Any]) -> str:
        values = [row.get(name) for name in self._columns]
        return self._csv([str(value).lower() if isinstance(value, bool) else value for value in values])

    @staticmethod
    def _csv(values: list[Any]) -> str:
        """A line of the table."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow(values)
        return buffer.getvalue()

    def _complain(self, error: OSError) -> None:
        if not self._failed:
            self._warn(f"{self._path} IS NOT BEING WRITTEN: {error}; training continues")
        self._failed = True


def _scalars(row: dict[str, Any]) -> list[str]:
    """The names of a row's scalars."""
    return [name for name, value in row.items() if not isinstance(value, list | dict)]


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
