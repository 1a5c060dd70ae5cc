"""Numbers for people: the window of finished episodes, and the file of metrics."""

import json
from collections import deque
from pathlib import Path
from typing import Any, TextIO

import numpy as np

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

    def __init__(self, path: Path, policy_version: int) -> None:
        """Continue the file at `path` after the row of `policy_version`; later rows will be written again."""
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    break  # the last line of a run that was killed while writing it
                if row["policy_version"] <= policy_version:
                    kept.append(line)
        path.write_text("".join(line + "\n" for line in kept))
        self._file: TextIO = open(path, "a")  # noqa: SIM115 - open as long as the learner

    def append(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
