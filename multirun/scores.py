"""What several seeds have come to, in numbers and words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from protocol.files import read_rows
from rundir.curves import interquartile_mean, interval
from rundir.evaluations import read_results
from rundir.metrics import RETURN
from rundir.names import METRICS
from supervisor.words import number


def score_of(run_dir: Path) -> float | None:
    """The return of a finished run's last policy: of its evaluation, if it has one, or of the last 100 episodes of
    training. None where no episode has finished."""
    rows = list(read_rows(run_dir / METRICS, ["policy_version"]))
    results = read_results(run_dir)
    if results and rows and results[-1]["policy_version"] == rows[-1]["policy_version"]:
        return results[-1]["return_mean"]
    return rows[-1].get(RETURN) if rows else None


def statistics(scores: Mapping[str, float]) -> dict[str, Any]:
    """Mean, standard deviation over seeds, and the interquartile mean with its 95 % interval (a bootstrap), of one
    score at least."""
    values = np.array(list(scores.values()))
    middle = interval([values], interquartile_mean)
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "interquartile_mean": middle.value,
        "interquartile_mean_95": [middle.low, middle.high],
    }


def in_words(found: Mapping[str, Any]) -> str:
    """`statistics`, in words."""
    low, high = found["interquartile_mean_95"]
    if low == high:
        return f"{number(found['mean'], ',.1f')}"
    return (
        f"mean {number(found['mean'], ',.1f')} ± {number(found['std'], ',.1f')}, interquartile mean"
        f" {number(found['interquartile_mean'], ',.1f')} (95 %: {low:,.1f} to {high:,.1f})"
    )
