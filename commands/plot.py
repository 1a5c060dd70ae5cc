"""`plot RUN_DIR…`: learning curves with their spread over seeds, by env-steps and by wall time, as PNG and SVG."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from commands.helpers.command_line import parse
from protocol.errors import UserError
from protocol.lifeline import SUCCESS
from rundir.curves import Average, average, curve, group, interquartile_mean, interval, normalized
from rundir.run import Run

AXES = {"env_steps": "env-steps", "time/seconds": "seconds of training"}
AGGREGATES = {"interquartile mean": interquartile_mean, "mean": np.mean, "median": np.median}


@dataclass(frozen=True)
class PlotCommand:
    """Draw the learning curves of one or many runs, one row an environment, with the mean ± standard deviation of runs
    that differ in their seeds alone. With several environments and several groups of runs, scores are aggregated over
    environments as well: each environment's from 0 (its worst run here) to 1 (its best), with 95 % confidence.

    Examples:
      python launch.py plot runs/CartPole-v1-seed0
      python launch.py plot runs/* --metric train/entropy --out entropy
    """

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR [RUN_DIR ...]")]
    """Directories of runs."""
    metric: str = "rollout/episode_return_mean"
    """What to draw, by its name in metrics.jsonl."""
    out: Path = Path("plot")
    """Where to, without the ending: .png and .svg are written."""


def main(arguments: list[str]) -> int:
    """Draw as the command line says; returns the exit code."""
    command = parse(PlotCommand, "launch.py plot", arguments)
    if not command.run_dirs:
        raise UserError("plot needs at least one RUN_DIR")
    if not command.out.name.strip("."):
        raise UserError(f"--out {command.out} must end in the name of a file")
    runs = [Run.open(path) for path in dict.fromkeys(command.run_dirs)]
    rows = {run.path: run.rows() for run in runs}
    for run in runs:
        names = {name for row in rows[run.path] for name, value in row.items() if isinstance(value, int | float | None)}
        if not rows[run.path]:
            raise UserError(f"{run.path} has not completed an iteration yet: there is nothing to plot")
        if command.metric not in names:
            raise UserError(f"--metric {command.metric} is not in {run.path}; there are {', '.join(sorted(names))}")
    figure = draw(group(runs), rows, command.metric)
    paths = [command.out.with_name(command.out.name + ending) for ending in (".png", ".svg")]
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise UserError(f"--out {path} cannot be written: {error.strerror}") from None
    print(" and ".join(map(str, paths)))
    return SUCCESS


def draw(groups: dict[str, dict[str, list[Run]]], rows: dict[Path, list[dict[str, Any]]], metric: str) -> Any:
    """A matplotlib figure of the runs in `groups`, as `group` returns them."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('plot needs matplotlib: pip install -e ".[plot]"') from None
    envs = sorted({env for by_env in groups.values() for env in by_env})
    aggregated = len(envs) > 1 and len(groups) > 1
    height = len(envs) + aggregated
    figure = Figure(figsize=(11, 3.2 * height), layout="constrained")
    axes = figure.subplots(height, 2, squeeze=False)
    colours = {label: f"C{i}" for i, label in enumerate(groups)}
    for env, row in zip(envs, axes, strict=False):
        for axis, (x, name) in zip(row, AXES.items(), strict=True):
            for label, by_env in groups.items():
                runs = by_env.get(env, [])
                spread = average([curve(rows[run.path], x, metric) for run in runs])
                if spread is not None:
                    _draw_average(axis, spread, _legend(label, runs), colours[label])
            axis.set(title=env, xlabel=name, ylabel=metric)
            axis.grid(alpha=0.3)
            if axis.lines:
                axis.legend(fontsize="small")
    if aggregated:
        scores = {
            label: {env: [_final(rows[run.path], metric) for run in runs] for env, runs in by_env.items()}
            for label, by_env in groups.items()
        }
        _draw_aggregates(figure, axes[-1], scores, colours)
    return figure


def _draw_average(axis: Any, spread: Average, label: str, colour: str) -> None:
    axis.plot(spread.x, spread.mean, color=colour, label=label)
    axis.fill_between(spread.x, spread.mean - spread.std, spread.mean + spread.std, color=colour, alpha=0.2, lw=0)


def _draw_aggregates(
    figure: Any, axes: Any, scores: dict[str, dict[str, list[float]]], colours: dict[str, str]
) -> None:
    for axis in axes:
        axis.remove()
    grid = axes[0].get_gridspec()
    own = figure.add_subplot(grid[-1, :])
    labels = list(scores)
    for i, (label, tasks) in enumerate(normalized(scores).items()):
        for j, aggregate in enumerate(AGGREGATES.values()):
            found = interval(tasks, aggregate)
            y = j * (len(labels) + 1) + i
            own.plot([found.low, found.high], [y, y], color=colours[label], lw=6, alpha=0.4, solid_capstyle="butt")
            own.plot([found.value], [y], "|", color=colours[label], ms=12, mew=2, label=label if j == 0 else None)
    own.set_yticks([j * (len(labels) + 1) + (len(labels) - 1) / 2 for j in range(len(AGGREGATES))], list(AGGREGATES))
    own.invert_yaxis()
    own.set(title="over environments, 95 % confidence", xlabel="final score: 0 worst run of an environment, 1 its best")
    own.grid(alpha=0.3, axis="x")
    own.legend(fontsize="small")


def _legend(label: str, runs: list[Run]) -> str:
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {runs[0].config.experiment.seed}"
    return f"{label} ({seeds})" if label else seeds


def _final(rows: list[dict[str, Any]], metric: str) -> float:
    """The last value there is; 0 where no episode has finished."""
    return next((row[metric] for row in reversed(rows) if row.get(metric) is not None), 0.0)
