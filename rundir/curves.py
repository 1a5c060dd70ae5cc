"""Runs as curves and scores: grouped by what distinguishes them, averaged over seeds. Pure functions of rows."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rundir.config import RunConfig
from rundir.run import Run

POINTS = 500  # A curve that is an average has so many points.
RESAMPLES = 2000  # The stratified bootstrap draws so often.
CONFIDENCE = 0.95
IGNORED = ("env", "seed", "checkpoint_every")  # These settings make no group of their own.


@dataclass(frozen=True)
class Curve:
    """One run's metric against an axis; both rise or fall together with the iterations that have a value."""

    x: np.ndarray  # [n]
    y: np.ndarray  # [n]


@dataclass(frozen=True)
class Average:
    """Several seeds' curves, as far as the shortest goes."""

    x: np.ndarray  # [POINTS]
    mean: np.ndarray  # [POINTS]
    std: np.ndarray  # [POINTS]; 0 with one seed


@dataclass(frozen=True)
class Interval:
    """An aggregate score, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


def differing(configs: Sequence[RunConfig]) -> list[str]:
    """The settings, in their own order, that are not the same in all of `configs`."""
    all_settings = [config.settings for config in configs]
    return [name for name in all_settings[0] if any(other[name] != all_settings[0][name] for other in all_settings)]


def group(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """Runs by label, then by environment; the runs of one list differ in their seeds alone.

    A label names the settings that differ between runs of one environment, since each environment has its own preset.
    """
    by_env: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_env[run.config.experiment.env].append(run)
    differ = {name for same in by_env.values() for name in differing([run.config for run in same])}
    named = [name for name in runs[0].config.settings if name in differ and name not in IGNORED]
    groups: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        settings = run.config.settings
        label = ", ".join(f"{name.replace('_', ' ')} {_short(settings[name])}" for name in named)
        groups[label][run.config.experiment.env].append(run)
    return {label: dict(envs) for label, envs in groups.items()}


def curve(rows: Sequence[dict[str, Any]], x: str, y: str) -> Curve:
    """Metric `y` against `x`, without the rows where there is none yet."""
    points = [(row[x], row[y]) for row in rows if row.get(y) is not None]
    array = np.array(points, np.float64).reshape(-1, 2)
    return Curve(array[:, 0], array[:, 1])


def average(curves: Sequence[Curve]) -> Average | None:
    """The mean and standard deviation over the seeds that have begun, until the first ends; None without a point."""
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return None
    begin, end = min(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    x = np.linspace(begin, end, POINTS)
    values = np.stack([np.interp(x, curve.x, curve.y, left=np.nan) for curve in curves])
    return Average(x, np.nanmean(values, axis=0), np.nanstd(values, axis=0))


def normalized(scores: dict[str, dict[str, list[float]]]) -> dict[str, list[np.ndarray]]:
    """Final scores by label and environment, as 0 for an environment's worst run and 1 for its best; by label, an array
    [seeds] for each environment."""
    bounds = {}
    for env in {env for envs in scores.values() for env in envs}:
        values = [value for envs in scores.values() for value in envs.get(env, [])]
        bounds[env] = min(values), max(values)
    return {
        label: [
            (np.array(values) - low) / ((high - low) or 1.0)
            for env, values in envs.items()
            for low, high in [bounds[env]]
        ]
        for label, envs in scores.items()
    }


def interquartile_mean(scores: np.ndarray) -> float:
    """The mean without the lowest and the highest quarter (Agarwal et al. 2021), of scores [n]."""
    ordered = np.sort(scores)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def interval(tasks: Sequence[np.ndarray], aggregate: Any) -> Interval:
    """`aggregate` over all scores of all tasks, with a percentile interval of the bootstrap stratified by task."""
    generator = np.random.default_rng(0)
    values = [
        aggregate(np.concatenate([generator.choice(scores, len(scores)) for scores in tasks])) for _ in range(RESAMPLES)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(aggregate(np.concatenate(list(tasks))), float(low), float(high))


def _short(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple | list) else str(value)
