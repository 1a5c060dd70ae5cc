"""Results of a benchmark: a table for the terminal, a JSON file, and a plot."""

import importlib.util
import itertools
import json
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measurements import Row, Target
from protocol.errors import UserError
from protocol.files import replace_file

PACKAGES = ("mlx", "numpy", "gymnasium", "pyzmq", "torch")  # Results depend on the versions of these packages.
HEADER = ("case", "contender", "median", "min–max", "ratio", "to", "target", "met")


@dataclass
class Report:
    """The rows of one benchmark, and notes."""

    name: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Print `text` to stderr now, and keep it so that it is printed again with the table."""
        print(text, file=sys.stderr)
        self.notes.append(text)


def table(rows: Iterable[Row]) -> str:
    """The rows as text, grouped by panel, with right-aligned numbers."""
    blocks = []
    for (panel, unit), members in itertools.groupby(rows, key=lambda row: (row.panel, row.unit)):
        lines = [HEADER, *(line for row in members for line in _lines(row))]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = ["  ".join(_aligned(line, widths)).rstrip() for line in lines]
        blocks.append("\n  ".join([f"{panel} [{unit}]", *aligned]))
    return "\n\n".join(blocks)


def number(value: float) -> str:
    """Format `value` with three digits, or with as many as stand before the point."""
    digits = next((d for d, limit in ((0, 100), (1, 10), (2, 1), (3, 0.1)) if abs(value) >= limit), None)
    return f"{value:.3g}" if digits is None else f"{value:,.{digits}f}"


def _lines(row: Row) -> list[tuple[str, ...]]:
    """A line for the contender, and one for each further comparison."""
    samples = row.samples
    named = (row.case, row.contender, number(samples.median), f"{number(samples.low)}–{number(samples.high)}")
    compared = [
        (number(c.ratio), c.rival, str(c.target or ""), _verdict(c.target, c.ratio)) for c in row.comparisons
    ] or [("", "", str(row.target or ""), _verdict(row.target, samples.median))]
    return [(*(named if i == 0 else ("",) * len(named)), *rest) for i, rest in enumerate(compared)]


def _verdict(target: Target | None, value: float) -> str:
    return "" if target is None else "yes" if target.met(value) else "no"


def _aligned(line: tuple[str, ...], widths: list[int]) -> list[str]:
    left = {HEADER.index(name) for name in ("case", "contender", "to", "target", "met")}
    return [cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]


def publish(report: Report, settings: dict[str, Any], out: Path) -> None:
    """Print the table and the notes; write `NAME.json` and `NAME.png` into `out`."""
    print(table(report.rows))
    print("".join(f"\n{note}" for note in report.notes))
    try:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{report.name}.json"
        replace_file(path, json.dumps(as_dict(report, settings), indent=2, allow_nan=False) + "\n")
        print(f"written: {path}")
        if importlib.util.find_spec("matplotlib") is None:
            print("no plot: matplotlib is not installed; add the extra `plot` of this project")
        elif report.rows:
            draw(report, path := out / f"{report.name}.png")
            print(f"written: {path}")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from None


def as_dict(report: Report, settings: dict[str, Any]) -> dict[str, Any]:
    """The content of the JSON file."""
    return {
        "benchmark": report.name,
        "settings": settings,
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES if importlib.util.find_spec(_module(name))},
        },
        "rows": [_row_as_dict(row) for row in report.rows],
        "notes": report.notes,
    }


def _module(package: str) -> str:
    return {"pyzmq": "zmq"}.get(package, package)


def _row_as_dict(row: Row) -> dict[str, Any]:
    def judged(target: Target | None, value: float) -> dict[str, Any]:
        return {} if target is None else {"target": str(target), "met": target.met(value)}

    samples = row.samples
    return {
        "panel": row.panel,
        "unit": row.unit,
        "case": row.case,
        "contender": row.contender,
        "median": samples.median,
        "min": samples.low,
        "max": samples.high,
        "values": list(samples.values),
        **judged(row.target, samples.median),
        "comparisons": [{"rival": c.rival, "ratio": c.ratio, **judged(c.target, c.ratio)} for c in row.comparisons],
    }


def draw(report: Report, path: Path) -> None:
    """Draw a plot for each panel: medians, with a line from the lowest to the highest run."""
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    panels: dict[tuple[str, str], list[Row]] = {}
    for row in report.rows:
        panels.setdefault((row.panel, row.unit), []).append(row)
    figure, grid = pyplot.subplots(len(panels), figsize=(8, 3.2 * len(panels)), squeeze=False, layout="constrained")
    for axes, ((panel, unit), rows) in zip(grid.flat, panels.items(), strict=True):
        cases = list(dict.fromkeys(row.case for row in rows))
        # One case gives a bar for each contender. Several give lines, over a logarithmic axis if they are numbers.
        places = cases if len(cases) > 1 else [row.contender for row in rows]
        powers = len(cases) > 1 and all(case.isdecimal() for case in cases)
        at = [int(case) if powers else i for i, case in enumerate(places)]
        for contender in dict.fromkeys(row.contender for row in rows):
            members = [row for row in rows if row.contender == contender]
            x = [at[places.index(row.case if len(cases) > 1 else contender)] for row in members]
            medians = [row.samples.median for row in members]
            below = [row.samples.median - row.samples.low for row in members]
            above = [row.samples.high - row.samples.median for row in members]
            if len(cases) > 1:
                axes.errorbar(x, medians, [below, above], marker="o", capsize=3, label=contender)
            else:
                axes.bar(x, medians, yerr=[below, above], capsize=3)
        if powers:
            axes.set_xscale("log", base=2)
        axes.set_xticks(at, places)
        axes.set_title(panel, fontsize="medium")
        axes.set_ylabel(unit)
        if len(cases) > 1:
            medians = [row.samples.median for row in rows]
            if max(medians) > 20 * min(medians) > 0:
                axes.set_yscale("log")
            axes.legend(fontsize="small")
        if axes.get_yscale() == "linear" and min(row.samples.low for row in rows) >= 0:
            axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
