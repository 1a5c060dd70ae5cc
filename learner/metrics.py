"""Numbers for people: the window of finished episodes, and the file of metrics."""

import json
import math
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from protocol.files import replace_file

WINDOW = 100  # episodes


class EpisodeWindow:
    """The last 100 finished episodes, in the order iteration, t, environment. Empty, it has no mean: None, not nan."""

    def __init__(self) -> None:
        self.returns: deque[float] = deque(maxlen=WINDOW)
        self.lengths: deque[int] = deque(maxlen=WINDOW)

    def extend(self, returns: np.ndarray, lengths: np.ndarray) -> None:
        self.returns.extend(returns.tolist())
        self.lengths.extend(lengths.tolist())

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
    """`metrics.jsonl`: one JSON object a line, one line an iteration."""

    def __init__(self, path: Path, policy_version: int, warn: Callable[[str], None]) -> None:
        """Continue the file at `path` after the row of `policy_version`; later rows will be written again."""
        self._path = path
        self._warn = warn
        self._failed = False
        try:
            lines = path.read_text().splitlines() if path.exists() else []
            replace_file(path, "".join(line + "\n" for line in lines if _version(line) <= policy_version))
        except OSError as error:
            self._complain(error)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; where the disk will not have it, say so once and go on."""
        size = None
        try:
            size = self._path.stat().st_size if self._path.exists() else 0
            with open(self._path, "a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
            self._failed = False
        except OSError as error:
            self._complain(error)
            if size is not None:
                with suppress(OSError):
                    os.truncate(self._path, size)  # no torn line

    def _complain(self, error: OSError) -> None:
        if not self._failed:
            self._warn(f"{self._path} IS NOT BEING WRITTEN: {error}; training continues")
        self._failed = True


def _version(line: str) -> float:
    """The policy version of a row; infinite for what is no row: torn by a kill, or by a full disk."""
    try:
        return json.loads(line)["policy_version"]
    except (ValueError, TypeError, KeyError):
        return math.inf
