"""`plot RUN_DIR…`: learning curves with their spread over seeds, as PNG and SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from commands.helpers.command_line import parse
from protocol.errors import UserError
from protocol.lifeline import SUCCESS
from rundir.curves import POINTS, group
from rundir.drawing import draw
from rundir.metrics import RETURN, metric_named, words_of
from rundir.run import Run, find_runs


@dataclass(frozen=True)
class PlotCommand:
    """Draw learning curves: a panel for each environment and metric, and in it the mean ± standard deviation of runs
    that are seeds of one experiment. How a run was executed, evaluated or saved, and how long it lasted, makes no
    experiment of its own. Diamonds are evaluations.

    With several environments and several experiments, scores are aggregated over environments as well: each
    environment's from 0 (its worst run here) to 1 (its best), with 95 % confidence.

    Examples:
      python launch.py plot runs/CartPole-v1-seed0
      python launch.py plot runs --metric "episode return" entropy --x time --out curves
    """

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR [RUN_DIR ...]")]
    """Directories of runs, or folders that hold some at any depth."""
    metric: tuple[str, ...] = (words_of(RETURN),)
    """What to draw, in words or by its name in metrics.jsonl; several have a panel each."""
    x: Literal["env-steps", "time"] = "env-steps"
    """What to draw it against."""
    smooth: int = 1
    """Draw the moving average over so many points of a mean curve, which has 500. Episode returns are means of 100
    episodes already."""
    log_x: bool = False
    """A logarithmic axis of env-steps or time."""
    log_y: bool = False
    """A logarithmic axis of the metric."""
    out: Path = Path("plot")
    """Where to, without the ending: .png and .svg are written."""


def main(arguments: list[str]) -> int:
    """Draw as the command line says; returns the exit code."""
    command = parse(PlotCommand, "launch.py plot", arguments)
    if not command.run_dirs:
        raise UserError("plot needs at least one RUN_DIR, before its flags")
    if not command.out.name.strip("."):
        raise UserError(f"--out {command.out} must end in the name of a file")
    if not command.metric:
        raise UserError("--metric needs at least one name")
    if not 1 <= command.smooth <= POINTS:
        raise UserError(f"--smooth must lie between 1 and {POINTS}, not {command.smooth}")
    runs = [Run.open(path) for path in find_runs(command.run_dirs)]
    rows = {run.path: run.rows() for run in runs}
    runs = [run for run in runs if rows[run.path]]
    if not runs:
        raise UserError("no run has completed an iteration yet: there is nothing to plot")
    metrics = [_metric(text, rows) for text in dict.fromkeys(command.metric)]
    figure = draw(
        group(runs), rows, metrics, x=command.x, smooth=command.smooth, log_x=command.log_x, log_y=command.log_y
    )
    paths = [command.out.with_name(command.out.name + ending) for ending in (".png", ".svg")]
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise UserError(f"--out {path} cannot be written: {error.strerror}") from None
    print(" and ".join(map(str, paths)))
    return SUCCESS


def _metric(text: str, rows: Mapping[Path, Sequence[Mapping[str, Any]]]) -> str:
    """The metric that `text` names; raises `UserError` if no run has it."""
    every = (row.items() for run in rows.values() for row in run)
    names = sorted({name for items in every for name, value in items if isinstance(value, int | float | None)})
    found = metric_named(text, names)
    if found is None:
        raise UserError(f"--metric {text} is in none of these runs; there are {', '.join(names)}")
    return found
