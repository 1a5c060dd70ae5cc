"""Pictures of learning curves, by matplotlib: a panel for each environment and metric."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protocol.errors import UserError
from protocol.extras import how_to_install
from rundir.curves import average, curve, interquartile_mean, interval, marks, normalized, smoothed
from rundir.metrics import RETURN, SECONDS, STEPS, VERSION, evaluated_as, words_of
from rundir.run import Run

# By axis: its name in metrics.jsonl, and from which value on it is told in which unit.
UNITS = {
    "env-steps": (STEPS, [(1e6, 1e6, "million env-steps"), (1e4, 1e3, "thousand env-steps"), (0, 1, "env-steps")]),
    "time": (
        SECONDS,
        [(7200, 3600, "hours of training"), (120, 60, "minutes of training"), (0, 1, "seconds of training")],
    ),
}
AGGREGATES = {"interquartile mean": interquartile_mean, "mean": np.mean, "median": np.median}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")  # Okabe and Ito's: all can tell
DASHES = ("-", "--", ":", "-.")  # them apart. Each dash goes through all colours.
EVALUATION: dict[str, Any] = {"marker": "D", "ls": "", "ms": 5, "mec": "white", "mew": 0.7}
FEW = 6  # The bands of so many groups can be told apart.
COLUMNS = 3  # Most panels side by side.
LEGEND_WIDTH, LEGEND_LINE = 16, 0.2  # characters of a legend to an inch, and inches to a line


class Style(NamedTuple):
    """How a group is drawn."""

    colour: str
    dash: str
    band: float  # how dense the colour of its band is, from 0 to 1


class Unit(NamedTuple):
    """What an axis is told in."""

    column: str  # in metrics.jsonl
    size: float  # So much of the column is one.
    words: str


def draw(
    groups: Mapping[str, Mapping[str, Sequence[Run]]],
    rows: Mapping[Path, Sequence[Mapping[str, Any]]],
    metrics: Sequence[str] = (RETURN,),
    *,
    x: str = "env-steps",
    smooth: int = 1,
    log_x: bool = False,
    log_y: bool = False,
) -> Any:
    """A matplotlib figure of the runs in `groups`, as `group` returns them, with a panel for each environment and
    metric; `x` is a key of `UNITS`. Raises `UserError` where a logarithm has nothing to take, or without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(f"plot needs matplotlib; {how_to_install('plot')}") from None
    envs = sorted({env for by_env in groups.values() for env in by_env})
    panels = [(env, metric) for env in envs for metric in metrics]
    columns = len(metrics) if 1 < len(metrics) <= COLUMNS else min(COLUMNS, len(panels))
    aggregated = len(envs) > 1 and len(groups) > 1
    height = -(-len(panels) // columns) + aggregated
    figure = Figure(figsize=(max(7.5, 4.5 * columns), 3.5 * height + 1), layout="constrained")
    grid = figure.add_gridspec(height, columns)
    band = 0.18 if len(groups) <= FEW else 0.06
    styles = [
        Style(COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)], band) for i in range(len(groups))
    ]
    column, units = UNITS[x]
    most = max((row.get(column) or 0 for run in rows.values() for row in run), default=0)
    unit = next(Unit(column, size, words) for least, size, words in units if most >= least)
    for i, (env, metric) in enumerate(panels):
        axis = figure.add_subplot(grid[divmod(i, columns)])
        for by_env, style in zip(groups.values(), styles, strict=True):
            _draw_group(axis, by_env.get(env, ()), rows, metric, unit, smooth, style)
        axis.set(title=env, xlabel=unit.words, ylabel=words_of(metric))
        if not axis.lines:
            axis.text(0.5, 0.5, "nothing yet", transform=axis.transAxes, ha="center", color="grey")
        elif log_y and min(np.min(line.get_ydata()) for line in axis.lines) <= 0:
            raise UserError(f"--log-y needs values above 0, which {words_of(metric)} of {env} does not have throughout")
        axis.set_xscale("log" if log_x else "linear")
        axis.set_yscale("log" if log_y else "linear")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    if aggregated:
        scores = {
            label: {env: [_final(rows[run.path], metrics[0]) for run in runs] for env, runs in by_env.items()}
            for label, by_env in groups.items()
        }
        _draw_aggregates(figure.add_subplot(grid[-1, :]), scores, words_of(metrics[0]), styles)
    _draw_legend(figure, groups, styles)
    return figure


def _draw_group(
    axis: Any,
    runs: Sequence[Run],
    rows: Mapping[Path, Sequence[Mapping[str, Any]]],
    metric: str,
    x: Unit,
    smooth: int,
    style: Style,
) -> None:
    """One group's mean, its spread, and its evaluations."""
    spread = average([curve(rows[run.path], x.column, metric) for run in runs])
    if spread is None:
        return
    mean, std = smoothed(spread.mean, smooth), smoothed(spread.std, smooth)
    alone = "o" if spread.x[0] == spread.x[-1] else None  # A line of one point is not seen.
    axis.plot(spread.x / x.size, mean, style.dash, color=style.colour, lw=1.8, marker=alone)
    if std.any():
        axis.fill_between(spread.x / x.size, mean - std, mean + std, color=style.colour, alpha=style.band, lw=0)
    evaluations = []
    for run in runs:
        places = {row[VERSION]: row.get(x.column) for row in rows[run.path]}
        evaluations.append([row | {x.column: places.get(row[VERSION])} for row in run.evaluations()])
    found = marks(evaluations, x.column, evaluated_as(metric))
    if len(found.x):
        axis.plot(found.x / x.size, found.y, color=style.colour, **EVALUATION)


def _draw_legend(figure: Any, groups: Mapping[str, Mapping[str, Sequence[Run]]], styles: Sequence[Style]) -> None:
    """One legend below all panels."""
    from matplotlib.lines import Line2D

    texts = [_legend(label, by_env) for label, by_env in groups.items()]
    handles = [Line2D([], [], color=style.colour, ls=style.dash, lw=1.8) for style in styles]
    if any(line.get_marker() == EVALUATION["marker"] for axis in figure.axes for line in axis.lines):
        handles, texts = [*handles, Line2D([], [], color="grey", **EVALUATION)], [*texts, "evaluations"]
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    several = any(len(runs) > 1 for by_env in groups.values() for runs in by_env.values())
    columns = max(1, min(len(texts), int(figure.get_figwidth() * LEGEND_WIDTH / (max(map(len, texts)) + 8))))
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * (-(-len(texts) // columns) - 1))
    figure.legend(
        handles,
        texts,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize="small",
        title="mean ± standard deviation" if several else None,
        title_fontsize="small",
    )


def _draw_aggregates(axis: Any, scores: dict[str, dict[str, list[float]]], words: str, styles: Sequence[Style]) -> None:
    for i, (tasks, style) in enumerate(zip(normalized(scores).values(), styles, strict=True)):
        for j, aggregate in enumerate(AGGREGATES.values()):
            found = interval(tasks, aggregate)
            y = j * (len(scores) + 1) + i
            axis.plot([found.low, found.high], [y, y], color=style.colour, lw=6, alpha=0.4, solid_capstyle="butt")
            axis.plot([found.value], [y], "|", color=style.colour, ms=12, mew=2)
    axis.set_yticks([j * (len(scores) + 1) + (len(scores) - 1) / 2 for j in range(len(AGGREGATES))], list(AGGREGATES))
    axis.invert_yaxis()
    axis.set(
        title="over environments, 95 % confidence",
        xlabel=f"final {words}: 0 is the worst run of an environment, 1 its best",
    )
    axis.grid(alpha=0.25, axis="x")
    axis.spines[["top", "right"]].set_visible(False)


def _legend(label: str, runs_by_env: Mapping[str, Sequence[Run]]) -> str:
    """A group's label, and how many runs it has of each environment."""
    seeds = {run.config.experiment.seed for runs in runs_by_env.values() for run in runs}
    counts = sorted({len(runs) for runs in runs_by_env.values()})
    word = "seeds" if counts[-1] <= len(seeds) else "runs"
    if counts == [1]:
        count = f"seed {seeds.pop()}" if len(seeds) == 1 else "1 seed"
    else:
        count = f"{counts[0]} to {counts[-1]} {word}" if len(counts) > 1 else f"{counts[0]} {word}"
    return f"{label} ({count})" if label else count


def _final(rows: Sequence[Mapping[str, Any]], metric: str) -> float:
    """The last value there is; 0 where no episode has finished."""
    return next((row[metric] for row in reversed(rows) if row.get(metric) is not None), 0.0)
