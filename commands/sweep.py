"""`sweep SPEC.toml`: tries settings as Optuna proposes them, many runs at a time, and survives kills."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from commands.helpers.command_line import parse
from commands.helpers.cores import performance_cores
from commands.helpers.presets import preset_for
from commands.helpers.run_directory import claimed, fresh_run_dir, locked
from commands.train import check_importable, with_initial
from multirun.carrying import carry_out
from multirun.folders import SPEC, is_seeds
from multirun.jobs import Jobs
from multirun.machine import share
from multirun.pictures import draw_sweep
from multirun.search import Search, rehearse
from multirun.spec import Spec, read_spec
from multirun.sweep import Sweep, rows_in
from multirun.view import View
from protocol.errors import UserError
from protocol.files import read_object, replace_file
from protocol.lifeline import SUCCESS
from protocol.output import say
from protocol.process import as_typed, as_word
from protocol.text import counted, printable
from protocol.trust import check_trust, sign
from rundir.config import RunConfig, to_toml
from rundir.names import CONFIG

IDENTITY = "sweep.json"  # What the file meant when the sweep began.
BEST = "best.toml"
SHOWN = 5  # So many of the best trials are listed.


@dataclass(frozen=True)
class SweepCommand:
    """Search the settings that learn best. SPEC.toml says what every trial has, what is searched, and how; see
    docs/many-runs.md. How many runs there are at a time, and kills, do not change what is tried and found.

    Examples:
      python launch.py sweep examples/pendulum.toml
      python launch.py sweep --resume runs/pendulum
      python launch.py sweep --best runs/pendulum
    """

    spec: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC.toml")] = None
    """File of the sweep."""
    run_dir: Path | None = None
    """Folder for the trials; by default a fresh one under runs/, named after the file."""
    resume: Path | None = None
    """Go on with the sweep in this folder."""
    best: Path | None = None
    """Write best.toml for the sweep in this folder, as far as it is: the settings of the best trial, for --config."""
    parallel: int | None = None
    """Runs at a time; None takes as many as cores and memory carry."""
    trust: bool = False
    """Import the modules that the file names, though somebody else may have written it."""
    quiet: bool = False
    """Print warnings, errors and what came of it, and nothing else."""


def main(arguments: list[str]) -> int:
    """Search as the command line says; returns the exit code."""
    command = parse(SweepCommand, "launch.py sweep", arguments)
    if sum(given is not None for given in (command.spec, command.resume, command.best)) != 1:
        raise UserError("sweep needs one of SPEC.toml, --resume DIR and --best DIR")
    if command.parallel is not None and command.parallel < 1:
        raise UserError(f"--parallel must be at least 1, not {command.parallel}")
    if command.run_dir is not None and command.spec is None:
        raise UserError("--run-dir is for a new sweep, whose SPEC.toml is missing")
    if command.spec is not None:
        return _begin(command, command.spec)
    folder = (command.resume or command.best or Path()).absolute()
    if not (folder / SPEC).is_file():
        hint = f"; go on with launch.py --resume {as_word(folder)}" if is_seeds(folder) else ""
        raise UserError(f"{as_typed(folder)}: there is no sweep here (no {SPEC}){hint}")
    spec = read_spec(folder / SPEC, preset_for)
    _check_unchanged(folder, spec)
    if command.best is not None:
        return _tell_best(folder, spec)
    check_trust(spec.base.experiment, folder, command.trust, folder)
    return _go_on(folder, spec, command)


def _begin(command: SweepCommand, path: Path) -> int:
    spec = read_spec(path, preset_for)
    check_trust(spec.base.experiment, path, command.trust)
    check_importable(spec.base.experiment)
    rehearse(spec)
    folder = (command.run_dir or fresh_run_dir(path.stem)).absolute()
    with locked(folder):
        if (folder / SPEC).exists() or (folder / CONFIG).exists():
            raise UserError(f"{as_typed(folder)} already holds runs; go on with sweep --resume, or choose another")
        sign(folder, spec.base.experiment)
        shutil.copyfile(path, folder / SPEC)
        replace_file(folder / IDENTITY, json.dumps(spec.identity) + "\n")
    return _go_on(folder, spec, command)


def _check_unchanged(folder: Path, spec: Spec) -> None:
    """Raise `UserError` where a sweep's file says something else than when the sweep began, but for more trials."""
    began, now = read_object(folder / IDENTITY) or {}, spec.identity
    if changed := sorted(name for name in began.keys() | now.keys() if began.get(name) != now.get(name)):
        raise UserError(
            f"{as_typed(folder / SPEC)} was changed since the sweep began, or its preset was ({', '.join(changed)});"
            " only trials may grow. Restore it, or begin another sweep with it"
        )
    if spec.trials < (told := len(rows_in(folder))):
        raise UserError(f"{as_typed(folder / SPEC)}: trials is {spec.trials}, and {told} have been tried")


def _go_on(folder: Path, spec: Spec, command: SweepCommand) -> int:
    """Carry out what is left of a sweep, and say what came of it."""
    runs = spec.trials * len(spec.seeds)
    experiment, threads = spec.base.experiment, spec.base.training.learner_threads or 1
    at_most = min(spec.at_once * len(spec.seeds), command.parallel or runs)
    shared = share(performance_cores(), runs, experiment.num_lanes, threads, None, command.parallel and at_most)

    _, initial = with_initial(spec.base)

    def make(run_dir: Path, config: RunConfig) -> None:
        with claimed(run_dir, fresh=True, config=config, kept={"actors": shared.actors}, initial=initial):
            pass

    with locked(folder):
        sweep = Sweep(folder, spec, Search(spec, folder.name), make)
        title = (
            f"{experiment.env}, {counted(spec.trials, 'trial')} of {counted(len(spec.seeds), 'seed')}:"
            f" {counted(shared.parallel, 'run')} at a time -> {as_typed(folder)}"
        )
        jobs = Jobs(["--actors", str(shared.actors), *(["--trust"] if command.trust else [])])
        view = View(title, sweep.runs, command.quiet, lambda: sweep.in_words)
        if not carry_out(sweep, jobs, min(shared.parallel, at_most), view):
            say(f"stopped; go on with sweep --resume {as_word(folder)}")
            return SUCCESS
        return _tell_best(folder, spec, pictures=sweep.search)


def _tell_best(folder: Path, spec: Spec, pictures: Search | None = None) -> int:
    """Print the best trials, and write the settings of the best; returns the exit code."""
    rows = rows_in(folder)
    sign = 1 if spec.direction == "maximize" else -1
    complete = sorted(
        (row for row in rows if row["state"] == "complete"), key=lambda row: (-sign * row["value"], row["number"])
    )
    states = [row["state"] for row in rows]
    counts = ", ".join(
        f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed") if state in states
    )
    say(f"{len(rows)} of {spec.trials} trials: {counts or 'none has ended'}")
    if not complete:
        reasons = [row["reason"] for row in rows if row["reason"]]
        raise UserError(f"no trial is complete{'; the first failed: ' + printable(reasons[0]) if reasons else ''}")
    for row in complete[:SHOWN]:
        settings = ", ".join(f"{name} {_short(value)}" for name, value in row["settings"].items())
        say(f"trial {row['number']:>3}  {spec.objective} {row['value']:,.5g}  {settings}")
    best = complete[0]
    settings = {"env": spec.base.experiment.env, **spec.settings, **best["settings"]}
    lines = [
        f"# Trial {best['number']} of {folder.name}, the best: {spec.objective} {best['value']:.6g}.",
        "# `python launch.py --config THIS_FILE` trains with it.",
        *(f"{name} = {to_toml(value)}" for name, value in settings.items()),
    ]
    replace_file(folder / BEST, "\n".join(lines) + "\n")
    say(f"settings of the best: {as_typed(folder / BEST)}")
    if pictures is not None:
        for path in draw_sweep(pictures, folder):
            say(f"picture:              {as_typed(path)}")
    return SUCCESS


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return " ".join(map(str, value)) if isinstance(value, list) else json.dumps(value).strip('"')
