"""All runs of a page: those that are there, those that appear, and the means over their seeds."""

import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dashboard.curves import LEAST_BLOCKS, MAX_BLOCKS
from dashboard.reading import RunReader
from protocol.errors import UserError
from rundir.curves import average, group_labels, marks
from rundir.metrics import evaluated_as, words_of
from rundir.run import find_runs, run_names

READING_SECONDS = 0.5  # A page waits so long for what is new. Of long runs it is shown more and more.
WATCH_SECONDS = 2.0  # from one search for new runs to the next, and ten times as long as it takes


class Runs:
    """The runs in and below some directories. Threads may share it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._readers: dict[Path, RunReader] = {}
        self._next_search = 0.0  # a time of time.monotonic()

    def since(
        self, cursors: Sequence[str], known: Collection[str], metrics: Sequence[str], axis: str, grouped: bool
    ) -> dict[str, Any]:
        """What the page shows, for the `cursors` of the runs and the groups that it knows already.

        `runs` has a place for each run, None where nothing is new. New runs are the last ones. Where the page wants
        them and there are several runs, `groups` has the means over seeds; it is None otherwise, and the runs have
        their curves.
        """
        readers = self._watch()
        until = time.monotonic() + READING_SECONDS
        whole = [reader.refresh(until) for reader in readers]
        alone = len(readers) == 1
        grouped = grouped and not alone
        blocks = max(LEAST_BLOCKS, MAX_BLOCKS // max(1, len(readers)))
        cursors = [*cursors, *[""] * len(readers)]
        own = [] if grouped else metrics
        return {
            "now": time.time(),
            "whole": all(whole),
            "metrics": {name: words_of(name) for reader in readers for name in reader.metrics},
            "runs": [
                reader.since(cursor, own, blocks, alone) for reader, cursor in zip(readers, cursors, strict=False)
            ],
            "groups": _groups(readers, known, metrics, axis) if grouped else None,
        }

    def _watch(self) -> list[RunReader]:
        with self._lock:
            began = time.monotonic()
            if began >= self._next_search:
                paths = [found.resolve() for path in self._paths for found in _found(path)]
                self._readers |= {path: RunReader(path) for path in paths if path not in self._readers}
                for name, reader in zip(run_names(list(self._readers)), self._readers.values(), strict=True):
                    reader.name = name
                now = time.monotonic()
                self._next_search = now + max(WATCH_SECONDS, 10 * (now - began))
            return list(self._readers.values())


def _found(path: Path) -> list[Path]:
    try:
        return find_runs([path])
    except UserError:  # There may be one later.
        return []


def _groups(
    readers: Sequence[RunReader], known: Collection[str], metrics: Sequence[str], axis: str
) -> list[dict[str, Any]]:
    """The groups of an environment and a label each; with curves where the page does not know them."""
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    labels = group_labels([reader.settings for reader in readers])
    for i, (reader, label) in enumerate(zip(readers, labels, strict=True)):
        members[str(reader.settings.get("env", "")), label].append(i)
    groups = []
    for (env, label), indices in members.items():
        seeds = [readers[i] for i in indices]
        state = [env, label, indices, metrics, axis, [seed.state for seed in seeds]]
        told = {"env": env, "label": label, "runs": indices, "cursor": str(zlib.crc32(repr(state).encode()))}
        if told["cursor"] not in known:
            told["curves"] = {metric: _mean(seeds, axis, metric) for metric in metrics}
        groups.append(told)
    return groups


def _mean(seeds: Sequence[RunReader], axis: str, metric: str) -> dict[str, Any]:
    """The mean, its spread, and the evaluations of some seeds."""
    spread = average([seed.curve(axis, metric) for seed in seeds], to_the_longest=True)
    found = marks([seed.evaluation_points() for seed in seeds], axis, evaluated_as(metric))
    curve = {"x": [], "values": [], "low": [], "high": []}
    if spread is not None:
        low, high = spread.mean - spread.std, spread.mean + spread.std
        curve = {"x": _brief(spread.x), "values": _brief(spread.mean), "low": _brief(low), "high": _brief(high)}
    return curve | {"evaluations": {"x": found.x, "values": found.y}}


def _brief(values: np.ndarray) -> list[float]:
    """As many digits as can be seen, of the twenty that would be sent."""
    return [float(f"{value:.6g}") for value in values]
