"""Curves of a run that grows: few enough points to draw, and every peak among them."""

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rundir.curves import Curve
from rundir.episode_metrics import metrics_in
from rundir.metrics import SECONDS, STEPS, VERSION, WORDS

METRICS = tuple(WORDS)  # These can be drawn, and episode metrics.
# All curves of a page have at most so many blocks. Each is drawn as its lowest and its highest point.
MAX_BLOCKS = 1000
LEAST_BLOCKS = 100  # of one curve, of however many runs


class Curves:
    """The numbers of every iteration so far, by metric; NaN where one is not known."""

    def __init__(self) -> None:
        self._columns = {name: array("d") for name in (STEPS, SECONDS, VERSION, *METRICS)}

    def __len__(self) -> int:
        return len(self._columns[STEPS])

    @property
    def metrics(self) -> list[str]:
        """The names of all curves: `METRICS`, and the episode metrics so far."""
        return [name for name in self._columns if name not in (STEPS, SECONDS, VERSION)]

    def append(self, row: Mapping[str, Any]) -> None:
        for name in metrics_in(row):
            if name not in self._columns:
                self._columns[name] = array("d", [np.nan] * len(self))
        for name, column in self._columns.items():
            value = row.get(name)
            column.append(value if isinstance(value, int | float) else np.nan)

    def stride(self, blocks: int) -> int:
        """Iterations to a block where there are at most so many: a power of two, so that as a run grows old points
        seldom have to be drawn anew."""
        stride = 1
        while len(self) > stride * blocks:
            stride *= 2
        return stride

    def whole(self, x: str, metric: str) -> Curve:
        """A metric of every iteration that has one, against the column `x`."""
        array = np.array([self._columns[name] for name in (x, metric)]) if metric in self._columns else np.empty((2, 0))
        return Curve(*array[:, ~np.isnan(array).any(axis=0)])

    def points(self, start: int, stop: int, stride: int, metrics: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
        """Of iterations `start` to `stop`, for those of `metrics` that there are: `env_steps`, `seconds` and `values`
        of the points to draw."""
        steps, seconds = (np.array(self._columns[name][start:stop]) for name in (STEPS, SECONDS))
        curves = {}
        for name in metrics:
            if name not in self._columns:
                continue
            values = np.array(self._columns[name][start:stop])
            drawn = extremes(values, stride)
            curves[name] = {"env_steps": steps[drawn], "seconds": seconds[drawn], "values": values[drawn]}
        return curves

    def seconds_at(self, versions: Iterable[float | None]) -> np.ndarray:
        """When these policy versions were complete, in seconds of training; NaN for one that has no row."""
        wanted = np.array(list(versions), dtype=np.float64)
        known, seconds = (np.append(self._columns[name], np.nan) for name in (VERSION, SECONDS))
        index = np.searchsorted(known[:-1], wanted)  # rows are in the order of their versions
        return np.where(known[index] == wanted, seconds[index], np.nan)


def extremes(values: np.ndarray, stride: int) -> np.ndarray:
    """Indices of each block's lowest and highest value, in order; the last block may be shorter."""
    blocks = -(-len(values) // stride)
    padded = np.full(blocks * stride, np.nan)
    padded[: len(values)] = values
    padded = padded.reshape(blocks, stride)
    starts = np.arange(blocks) * stride
    lowest = starts + np.where(np.isnan(padded), np.inf, padded).argmin(axis=1)
    highest = starts + np.where(np.isnan(padded), -np.inf, padded).argmax(axis=1)
    return np.unique(np.concatenate([lowest, highest]))
