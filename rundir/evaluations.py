"""The evaluations of a run, as its file holds them."""

from pathlib import Path
from typing import Any

from protocol.files import read_rows
from protocol.trajectory import EPISODE
from rundir.names import EVALUATIONS

SCORES = ("return_mean", "return_std")  # They are None where every episode ended in a fault.


def read_results(run_dir: Path) -> list[dict[str, Any]]:
    """The evaluations of a run so far, the oldest first; what is none is left out."""
    rows = read_rows(run_dir / EVALUATIONS, ["policy_version", "episodes"])
    return [row for row in rows if all(isinstance(row.get(name, ""), float | int | None) for name in SCORES)]


def best_of(results: list[dict[str, Any]], best_by: str = "return") -> dict[str, Any] | None:
    """The evaluation with the highest mean of what `--best-by` names; of equal ones that of the older version. None
    where none has one, as where every episode ended in a fault."""
    name = "return_mean" if best_by == "return" else EPISODE + best_by
    scored = [result for result in results if isinstance(result.get(name), int | float)]
    return max(scored, key=lambda result: (result[name], -result["policy_version"]), default=None)
