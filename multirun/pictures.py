"""Pictures of many runs, where matplotlib is installed."""

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path

from multirun.search import Search
from rundir.curves import group
from rundir.drawing import draw
from rundir.run import Run


def draw_curves(runs: Sequence[Run], path: Path) -> Path | None:
    """Draw the learning curves of runs into `path`, with mean and spread over seeds. Returns the path; None where
    matplotlib is missing, or where there is nothing to draw."""
    rows = {run.path: run.rows() for run in runs}
    if importlib.util.find_spec("matplotlib") is None or not any(rows.values()):
        return None
    draw(group(runs), rows).savefig(path, dpi=150)
    return path


def draw_sweep(search: Search, folder: Path) -> list[Path]:
    """Draw a sweep as Optuna does: values by trial, what each setting matters, and each setting against the values.
    Returns the paths; none where matplotlib is missing, or where fewer than two trials are complete."""
    complete = [trial for trial in search.trials if trial.state.name == "COMPLETE"]
    if importlib.util.find_spec("matplotlib") is None or len(complete) < 2:
        return []
    import matplotlib.figure
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as visual

    paths = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its pictures by matplotlib experimental.
        pictures = {
            "history": lambda: visual.plot_optimization_history(search.study),
            "importances": lambda: visual.plot_param_importances(search.study, evaluator=PedAnovaImportanceEvaluator()),
            "slices": lambda: visual.plot_slice(search.study),
        }
        for name, draw in pictures.items():
            try:
                axes = draw()
            except (ValueError, RuntimeError):  # Nothing differs among the trials.
                continue
            figure = axes.figure if hasattr(axes, "figure") else axes.flat[0].figure
            assert isinstance(figure, matplotlib.figure.Figure)
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=120, bbox_inches="tight")
    return paths
