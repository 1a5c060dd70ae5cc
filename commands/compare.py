"""`compare RUN_DIR RUN_DIR…`: in what runs differ, and what came of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from commands.helpers.command_line import parse
from protocol.errors import UserError
from protocol.files import read_object
from protocol.lifeline import SUCCESS
from protocol.process import as_word
from protocol.text import printable
from rundir.curves import differing
from rundir.names import CONFIG
from rundir.run import Run, find_runs, run_names
from rundir.witness import in_words

DASH = "–"
SIDE_BY_SIDE = 4  # So many runs have a column each; more have a line each, with the settings that differ and these:
BRIEF = ("status", "env-steps", "episode return", "eval")
WIDEST = 1000  # columns of such a line, which a terminal may wrap: cut in cells, nobody can read it


@dataclass(frozen=True)
class CompareCommand:
    """Set runs side by side: the settings in which they differ, how far they are, and whether they computed the same.

    Examples:
      python launch.py compare runs/CartPole-v1-seed0 runs/CartPole-v1-seed1
      python launch.py compare runs/sweep                   # a line for each of its runs
    """

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR [RUN_DIR ...]")]
    """Directories of two runs at least, or of folders that hold them."""


def main(arguments: list[str]) -> int:
    """Compare as the command line says; returns the exit code."""
    command = parse(CompareCommand, "launch.py compare", arguments)
    paths = find_runs(command.run_dirs)
    if len(paths) < 2:
        raise UserError("compare needs at least two runs")
    runs = [Run.open(path) for path in paths]
    from rich.console import Console
    from rich.table import Column, Table

    names = run_names(paths)
    differ = differing([run.config.settings for run in runs])
    results = [results_of(run) for run in runs]
    learners = [(run.summary() or {}).get("learner", {}) for run in runs]
    if len(runs) <= SIDE_BY_SIDE:
        table = Table("", *(Column(name, overflow="fold") for name in names))
        for name in differ:
            table.add_row(name, *(_shown(run.config.settings[name]) for run in runs))
        table.add_section()
        for name in {name: None for learner in learners for name in learner}:
            values = [learner.get(name) for learner in learners]
            if len(set(values)) > 1:
                table.add_row(f"learner: {name}", *map(_shown, values))
        for name in results[0]:
            table.add_row(name, *(_shown(result[name]) for result in results))
    else:
        table = Table("run", *(name.replace("_", " ") for name in (*differ, *BRIEF)), box=None)
        for name, run, result in zip(names, runs, results, strict=True):
            settings = [run.config.settings[name] for name in differ]
            table.add_row(name, *map(_shown, (*settings, *(result[name] for name in BRIEF))))
    Console(width=None if len(runs) <= SIDE_BY_SIDE else WIDEST).print(table)
    digests = {result["weights"] for result in results}
    if None not in digests:
        print(_verdict(runs, results, learners) if len(digests) > 1 else "the weights are equal, bit for bit")
    return SUCCESS


def _verdict(runs: list[Run], results: list[dict[str, Any]], learners: list[Any]) -> str:
    """What to say of weights that differ."""
    same = all(learner == learners[0] for learner in learners) and not differing([run.config.settings for run in runs])
    steps = len({result["env-steps"] for result in results}) == 1
    if not (same and steps and all(result["deterministic"] for result in results)):
        return "the weights differ"
    return (
        "the weights differ, though all settings are equal and every run says that it is deterministic: something that"
        " no run has noticed differs, in what the environment does or between the machines. `python launch.py doctor"
        f" --config {as_word(runs[0].path / CONFIG)}` may find it; see docs/reproducibility.md"
    )


def results_of(run: Run) -> dict[str, Any]:
    """What a run has come to, by the names in the table; None for what is not known."""
    rows, summary = run.rows(), run.summary() or {}
    last = rows[-1] if rows else {}
    return {
        "status": summary.get("status"),
        "env-steps": last.get("env_steps"),
        "episode return": last.get("rollout/episode_return_mean"),
        "eval": _evaluation(run.path / "eval.json"),
        "seconds": last.get("time/seconds"),
        "env-steps/s": summary.get("env_steps_per_second") or last.get("time/env_steps_per_second"),
        "deterministic": summary.get("deterministic"),
        "witnessed": in_words(witness) if isinstance(witness := summary.get("witness"), dict) else None,
        "weights": summary.get("weights_digest"),
    }


def _evaluation(path: Path) -> str | None:
    """What `eval` found, if it was run."""
    try:
        found = read_object(path) or {}
        if found["return_mean"] is None:
            return f"{DASH} ({len(found['faults'])} faults)"
        return f"{found['return_mean']:.2f} ± {found['return_std']:.2f} ({found['episodes']})"
    except (ValueError, KeyError, TypeError):
        return None


def _shown(value: Any) -> str:
    match value:
        case None:
            return DASH
        case float():
            return f"{value:,.6g}"
        case int() if not isinstance(value, bool):
            return f"{value:,}"
        case str() if len(value) == 64:  # a digest
            return f"{value[:12]}…"
        case tuple() | list():
            return " ".join(map(str, value)) or DASH
        case _:
            return printable(str(value))
