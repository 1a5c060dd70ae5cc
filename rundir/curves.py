"""Runs as curves and scores: grouped by what distinguishes them, averaged over seeds. Pure functions of rows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rundir.metrics import VERSION
from rundir.run import Run

POINTS = 500  # A curve that is an average has so many points.
RESAMPLES = 2000  # The stratified bootstrap draws so often.
CONFIDENCE = 0.95
# Runs that differ in these settings alone are seeds of one group. The others decide what is learned, or how fast.
NO_GROUP = (
    *("env", "seed"),  # An environment has a panel of its own.
    *("on_env_error", "episode_metrics", "device", "learner_threads"),  # how a run is executed, and what is recorded
    *("total_steps", "earlier_totals", "stop_return"),  # how long it lasts
    *("eval_every", "eval_episodes", "best_by", "checkpoint_every"),  # when it is evaluated and saved
)


@dataclass(frozen=True)
class Curve:
    """One run's metric against an axis; both rise or fall together with the iterations that have a value."""

    x: np.ndarray  # [n]
    y: np.ndarray  # [n]


@dataclass(frozen=True)
class Average:
    """Several seeds' curves as one."""

    x: np.ndarray  # [n], n at most POINTS
    mean: np.ndarray  # [n]
    std: np.ndarray  # [n]; 0 with one seed


@dataclass(frozen=True)
class Interval:
    """An aggregate score, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


def differing(all_settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the settings, in their own order, that are not the same in all."""
    names = {name: None for settings in all_settings for name in settings}
    return [name for name in names if any(other.get(name) != all_settings[0].get(name) for other in all_settings)]


def group_labels(all_settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """For the settings of each run, the label of its group.

    A label names the settings that differ between runs of one environment, since each environment has its own preset.
    """
    by_env: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for settings in all_settings:
        by_env[str(settings.get("env"))].append(settings)
    differ = {name for same in by_env.values() for name in differing(same)}
    named = [name for name in differing(all_settings) if name in differ and name not in NO_GROUP]
    return [
        ", ".join(f"{name.replace('_', ' ')} {_short(settings.get(name))}" for name in named)
        for settings in all_settings
    ]


def group(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """Runs by label, then by environment; the runs of one list are seeds of the same experiment."""
    groups: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run, label in zip(runs, group_labels([run.config.settings for run in runs]), strict=True):
        groups[label][run.config.experiment.env].append(run)
    return {label: dict(envs) for label, envs in groups.items()}


def curve(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> Curve:
    """Metric `y` against `x`, without the rows where there is none yet."""
    points = [(row[x], row[y]) for row in rows if row.get(y) is not None]
    array = np.array(points, np.float64).reshape(-1, 2)
    return Curve(array[:, 0], array[:, 1])


def average(curves: Sequence[Curve], to_the_longest: bool = False) -> Average | None:
    """The mean and standard deviation over the seeds that have begun, until the first ends, or until the last, over
    those that have come so far; None without a point."""
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return None
    ends = [curve.x[-1] for curve in curves]
    x = np.linspace(min(curve.x[0] for curve in curves), max(ends) if to_the_longest else min(ends), POINTS)
    values = np.stack([np.interp(x, curve.x, curve.y, left=np.nan, right=np.nan) for curve in curves])
    known = ~np.isnan(values).all(axis=0)
    values = values[:, known]
    return Average(x[known], np.nanmean(values, axis=0), np.nanstd(values, axis=0))


def smoothed(values: np.ndarray, points: int) -> np.ndarray:
    """The moving average of values [n] over so many points around each, fewer at the ends."""
    before, after = (points - 1) // 2, points // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - before, 0), np.minimum(index + after + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def marks(evaluations: Sequence[Sequence[Mapping[str, Any]]], x: str, y: str) -> Curve:
    """The evaluations of several seeds as one: for each policy version the means of `x` and `y` over its seeds."""
    by_version: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in (row for seed in evaluations for row in seed):
        if row.get(x) is not None and row.get(y) is not None:
            by_version[row[VERSION]].append((row[x], row[y]))
    means = [np.mean(points, axis=0) for _, points in sorted(by_version.items())]
    array = np.array(means, np.float64).reshape(-1, 2)
    return Curve(array[:, 0], array[:, 1])


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
    if isinstance(value, tuple | list):
        return " ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
