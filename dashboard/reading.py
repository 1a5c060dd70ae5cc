"""A run directory as it grows: each reading takes in what was written since the last one."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dashboard.curves import SECONDS, STEPS, VERSION, Curves
from protocol.errors import UserError
from protocol.files import read_object, row_of
from rundir.config import load_settings
from rundir.episode_metrics import metrics_in
from rundir.names import CONFIG, SUMMARY

LAG = "policy/lag_mean"
READING_SECONDS = 0.5  # A page waits so long for what is new. Of a long run it is shown more and more.
EVENTS = 200  # The page lists so many of the newest ones.


class GrowingFile:
    """A file of JSON objects, one a line, that another process appends to, and may replace."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0  # Bytes that were read.
        self._last = b""  # line of it

    def read(self, forget: Callable[[], None]) -> Iterator[dict[str, Any]]:
        """The objects that were completed since the last reading; what is none is left out.

        `forget` is called before the first one where the file has to be read from its beginning: a run that goes on
        from a checkpoint cuts its later rows off, and writes them again.
        """
        try:
            file = open(self._path, "rb")  # noqa: SIM115 - the with is below, outside the try
        except FileNotFoundError:
            return
        with file:
            file.seek(self._offset - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._offset, self._last = 0, b""
                file.seek(0)
                forget()
            while (line := file.readline()).endswith(b"\n"):  # the last may be half written
                self._offset, self._last = self._offset + len(line), line
                if (row := row_of(line)) is not None:
                    yield row


class RunReader:
    """One run, as the page asks for it. Threads may share it."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._settings = self._load_settings()
        self._lock = threading.Lock()
        self._files = {kind: GrowingFile(path / f"{kind}.jsonl") for kind in ("metrics", "evaluations", "events")}
        self._generation = 0  # It rises when the metrics are other rows.
        self._forget_metrics()
        self._forget_evaluations()
        self._forget_events()

    def since(self, cursor: str) -> dict[str, Any]:
        """What the page shows of the run; of its curves only what follows `cursor`, if it fits what is here.

        Points of whole blocks of iterations are `settled` and sent once; those of the last, unfinished block are the
        `tail`, sent each time.
        """
        with self._lock:
            self._refresh()
            rows, stride, curves = len(self._curves), self._curves.stride, self._curves.metrics
            settled = rows - rows % stride
            known = f"{self._generation}.{stride}."
            start = cursor.removeprefix(known)
            begin = int(start) if cursor.startswith(known) and start.isdecimal() and int(start) <= settled else None
            return {
                "name": self._name,
                "settings": self._settings,
                "cursor": f"{known}{settled}",
                "anew": begin is None,
                "settled": self._curves.points(begin or 0, settled, stride),
                "tail": self._curves.points(settled, rows, stride),
                "newest": {name: self._newest.get(name) for name in (VERSION, STEPS, SECONDS, LAG, *curves)},
                "lags": self._lags,
                "samples": self._newest.get("samples"),
                "refused": self._newest.get("refused"),
                "evaluations": self._evaluation_points(),
                "events": {"count": self._event_count, "newest": list(self._events)},
                "status": self._status(),
                "summary": read_object(self._path / SUMMARY),
            }

    def _refresh(self) -> None:
        until = time.monotonic() + READING_SECONDS
        for row in self._files["metrics"].read(self._forget_metrics):
            if all(isinstance(row.get(name), int | float) for name in (VERSION, STEPS)):
                self._curves.append(row)
                self._newest = row
                self._count_lags(row.get("policy/lag_histogram"))
            if time.monotonic() > until:
                break  # the page asks again
        for evaluation in self._files["evaluations"].read(self._forget_evaluations):
            self._evaluations.append(evaluation)
        for event in self._files["events"].read(self._forget_events):
            self._events.append(event)
            self._event_count += 1

    def _forget_metrics(self) -> None:
        self._generation += 1
        self._curves = Curves()
        self._newest: dict[str, Any] = {}
        self._lags: list[int] = []  # environments by how far their rollout was behind, over all iterations

    def _forget_evaluations(self) -> None:
        self._evaluations: list[dict[str, Any]] = []

    def _forget_events(self) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._event_count = 0

    def _count_lags(self, histogram: Any) -> None:
        if not isinstance(histogram, list) or not all(isinstance(count, int) for count in histogram):
            return
        self._lags += [0] * (len(histogram) - len(self._lags))
        for lag, count in enumerate(histogram):
            self._lags[lag] += count

    def _evaluation_points(self) -> list[dict[str, Any]]:
        names = (VERSION, STEPS, "episodes", "return_mean", "return_std")
        points = [{name: found.get(name) for name in names} | metrics_in(found) for found in self._evaluations]
        points = [point for point in points if all(isinstance(value, int | float | None) for value in point.values())]
        seconds = self._curves.seconds_at([point[VERSION] for point in points])
        return [point | {"seconds": moment} for point, moment in zip(points, seconds, strict=True)]

    def _status(self) -> dict[str, Any] | None:
        """What the supervisor last wrote, and how many seconds ago."""
        status = read_object(self._path / "status.json")
        if status is not None and isinstance(status.get("time"), int | float):
            status["age"] = max(0.0, time.time() - status["time"])
        return status

    def _load_settings(self) -> dict[str, Any]:
        try:
            return load_settings(self._path / CONFIG)
        except UserError:  # the numbers of a run can be shown without them
            return {}


def open_runs(paths: list[Path]) -> list[RunReader]:
    """The runs in these directories, each with a name of its own."""
    resolved = list(dict.fromkeys(path.resolve() for path in paths))
    names = [path.name for path in resolved]
    unique = len(set(names)) == len(names)
    return [RunReader(path, path.name if unique else str(path)) for path in resolved]
