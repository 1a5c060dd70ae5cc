"""The evaluations of a run, as its file holds them."""

from pathlib import Path
from typing import Any

from protocol.files import read_rows
from rundir.names import EVALUATIONS

SCORES = ("return_mean", "return_std")  # They are None where every episode ended in a fault.


def read_results(run_dir: Path) -> list[dict[str, Any]]:
    """The evaluations of a run so far, the oldest first; what is none is left out."""
    rows = read_rows(run_dir / EVALUATIONS, ["policy_version", "episodes"])
    return [row for row in rows if all(isinstance(row.get(name, ""), float | int | None) for name in SCORES)]


def best_of(results: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation with the highest mean return; of equal ones that of the older version. None where every episode
    of each ended in a fault."""
    scored = [result for result in results if result["return_mean"] is not None]
    return max(scored, key=lambda result: (result["return_mean"], -result["policy_version"]), default=None)
