"""A run directory as it grows: each reading takes in what was written since the last one."""

import json
import threading
import time
import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dashboard.curves import Curves
from protocol.errors import UserError
from protocol.files import read_object
from rundir.config import load_settings
from rundir.curves import Curve
from rundir.episode_metrics import metrics_in
from rundir.growing import GrowingFile
from rundir.metrics import SECONDS, STEPS, VERSION
from rundir.names import CONFIG, STATUS, SUMMARY

LAG = "policy/lag_mean"
AXES = {"env_steps": STEPS, "seconds": SECONDS}  # by the names that the page has for them
EVENTS = 200  # The page lists so many of the newest ones.


class RunReader:
    """One run, as the page asks for it. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.settings = _load_settings(path)
        self._path = path
        self._lock = threading.Lock()
        self._files = {kind: GrowingFile(path / f"{kind}.jsonl") for kind in ("metrics", "evaluations", "events")}
        self._generation = 0  # It rises when the metrics are other rows.
        self._forget_metrics()
        self._forget_evaluations()
        self._forget_events()

    @property
    def metrics(self) -> list[str]:
        """The names of all its curves."""
        return self._curves.metrics

    @property
    def state(self) -> tuple[int, int, int]:
        """It is another one when there is more to draw."""
        return self._generation, len(self._curves), len(self._evaluations)

    def refresh(self, until: float) -> bool:
        """Read what was written since the last time, as far as there is time, a time of time.monotonic(); whether that
        was all."""
        with self._lock:
            for evaluation in self._files["evaluations"].read(self._forget_evaluations):
                self._evaluations.append(evaluation)
            for event in self._files["events"].read(self._forget_events):
                self._events.append(event)
                self._event_count += 1
            for row in self._files["metrics"].read(self._forget_metrics):
                if all(isinstance(row.get(name), int | float) for name in (VERSION, STEPS)):
                    self._curves.append(row)
                    self._newest = row
                    self._count_lags(row.get("policy/lag_histogram"))
                if time.monotonic() > until:
                    return False  # the page asks again
            return True

    def since(self, cursor: str, metrics: Sequence[str], blocks: int, alone: bool) -> dict[str, Any] | None:
        """What the page shows of the run, if it is not what it was at `cursor`; of the curves of `metrics` only what
        follows it. A curve has at most so many `blocks`. A run that is `alone` has its actors and events, too.

        Points of whole blocks of iterations are `settled` and sent once; those of the last, unfinished block are the
        `tail`, sent each time.
        """
        with self._lock:
            rows, stride = len(self._curves), self._curves.stride(blocks)
            settled = rows - rows % stride
            told = {
                "name": self.name,
                "newest": {name: self._newest.get(name) for name in (VERSION, STEPS, SECONDS, LAG, *self.metrics)},
                "lags": self._lags,
                "samples": self._newest.get("samples"),
                "refused": self._newest.get("refused"),
                "evaluations": self._evaluation_points(),
                "status": self._status(alone),
                "summary": read_object(self._path / SUMMARY),
            }
            if alone:
                told["events"] = {"count": self._event_count, "newest": list(self._events)}
            known = f"{self._generation}.{stride}."
            now = f"{known}{settled}.{zlib.crc32(json.dumps(told).encode())}"
            if cursor == now:
                return None
            start = cursor.removeprefix(known).partition(".")[0]
            begin = int(start) if cursor.startswith(known) and start.isdecimal() and int(start) <= settled else None
            if begin is None:
                told["settings"] = self.settings
            return told | {
                "cursor": now,
                "anew": begin is None,
                "settled": self._curves.points(begin or 0, settled, stride, metrics),
                "tail": self._curves.points(settled, rows, stride, metrics),
            }

    def curve(self, axis: str, metric: str) -> Curve:
        """A metric of every iteration, against an axis of `AXES`."""
        with self._lock:
            return self._curves.whole(AXES[axis], metric)

    def evaluation_points(self) -> list[dict[str, Any]]:
        """The evaluations, with their env-steps and seconds."""
        with self._lock:
            return self._evaluation_points()

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
        return [
            point | {"seconds": None if np.isnan(moment) else float(moment)}
            for point, moment in zip(points, seconds, strict=True)
        ]

    def _status(self, alone: bool) -> dict[str, Any] | None:
        """What the supervisor last wrote."""
        status = read_object(self._path / STATUS)
        actors = status.get("actors") if status is not None else None
        if status is None or not isinstance(actors, list) or not all(isinstance(actor, dict) for actor in actors):
            return status
        if not alone:
            actors = [{"memory": actor.get("memory")} for actor in actors]
        return status | {"actors": actors}


def _load_settings(path: Path) -> dict[str, Any]:
    try:
        return load_settings(path / CONFIG)
    except UserError:  # the numbers of a run can be shown without them
        return {}
