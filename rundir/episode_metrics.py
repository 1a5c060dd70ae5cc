"""Episode metrics in words, as every command and view says them."""

from collections.abc import Mapping
from typing import Any

from protocol import trajectory
from protocol.trajectory import EPISODE

SUCCESS = EPISODE + trajectory.SUCCESS
TOLD = 4  # So many are told in a line.


def metrics_in(row: Mapping[str, Any]) -> dict[str, float]:
    """The episode metrics of an iteration or of an evaluation, by their full names, the success rate first."""
    names = sorted((name for name in row if name.startswith(EPISODE)), key=lambda name: name != SUCCESS)
    return {name: row[name] for name in names if isinstance(row[name], int | float)}


def name_of(metric: str) -> str:
    """What people call an episode metric, of which `metric` is the full name."""
    return "success rate" if metric == SUCCESS else metric.removeprefix(EPISODE)


def value_of(metric: str, value: float) -> str:
    """Its mean as text: four figures, of a success rate in per cent."""
    return f"{value:.0%}" if metric == SUCCESS else f"{value:.4g}"


def in_words(row: Mapping[str, Any]) -> list[str]:
    """The first episode metrics of an iteration or of an evaluation: `success rate 85%`, `distance 3.2`."""
    metrics = metrics_in(row)
    told = [f"{name_of(name)} {value_of(name, value)}" for name, value in list(metrics.items())[:TOLD]]
    return [*told, *([f"and {len(metrics) - TOLD} more"] if len(metrics) > TOLD else [])]
