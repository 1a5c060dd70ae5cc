"""`train --seeds`: one experiment with several seeds, each an ordinary run directory in one folder."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from multirun.carrying import carry_out
from multirun.folders import seeds_in
from multirun.jobs import Ending, Jobs
from multirun.pictures import draw_curves
from multirun.progress import Progress
from multirun.scores import in_words, score_of, statistics
from multirun.view import View
from protocol.files import read_object, replace_file
from protocol.lifeline import FAILURE, SUCCESS
from protocol.output import complain, say
from protocol.process import as_typed, as_word
from protocol.text import counted, printable
from rundir.config import RunConfig
from rundir.names import SUMMARY
from rundir.run import Run
from supervisor.words import DASH, number


class _Seeds:
    """One run after the other."""

    def __init__(self, runs: Sequence[Progress]) -> None:
        self._waiting = [run for run in runs if run.state != "finished"]
        self._left = len(self._waiting)
        self.failed: dict[str, str] = {}

    def next_run(self) -> Progress | None:
        return self._waiting.pop(0) if self._waiting else None

    def take(self, ending: Ending) -> None:
        # A run that was stopped, as by a signal of its own, waits for --resume.
        self._left -= ending.state != "stopped"
        if ending.state == "failed":
            self.failed[ending.run_dir.name] = ending.reason

    def look(self) -> Collection[Path]:
        return ()

    @property
    def over(self) -> bool:
        return self._left == 0


def run_seeds(folder: Path, title: str, config: RunConfig, arguments: Sequence[str], parallel: int, quiet: bool) -> int:
    """Run all seeds of a folder as `config` says, which may give them more steps than they had; returns the exit code.
    `arguments` go to every `launch.py`."""
    total = config.horizon.total * config.experiment.env_steps_per_iteration
    runs = [Progress(run_dir, run_dir.name, total) for run_dir in seeds_in(folder)]
    for run in runs:
        run.look()
        run.state = "finished" if is_finished(run.run_dir, config.training.total_steps) else "waiting"
    work = _Seeds(runs)
    is_over = carry_out(work, Jobs(arguments), parallel, View(title, runs, quiet))
    if not is_over:
        say(f"stopped; go on with --resume {as_word(folder)}")
        return SUCCESS
    _summarize(folder, work.failed)
    for name, reason in work.failed.items():
        complain(f"launch.py: {name} failed: {printable(reason)}")
    return FAILURE if work.failed else SUCCESS


def is_finished(run_dir: Path, total_steps: int) -> bool:
    """Whether a run that is to have `total_steps` was finished before."""
    summary = read_object(run_dir / SUMMARY) or {}
    return summary.get("status") == "finished" and summary.get("total_steps") == total_steps


def _summarize(folder: Path, failed: dict[str, str]) -> None:
    """Write summary.json and the curves, and print a table."""
    facts: dict[str, Any] = {"seeds": {}, "failed": failed}
    scores = {}
    for run_dir in seeds_in(folder):
        summary = read_object(run_dir / SUMMARY) or {}
        score = score_of(run_dir)
        if run_dir.name not in failed and score is not None:
            scores[run_dir.name] = score
        facts["seeds"][run_dir.name] = {
            "score": score,
            "env_steps": summary.get("env_steps"),
            "weights_digest": summary.get("weights_digest"),
        }
    if scores:
        facts |= statistics(scores)
    replace_file(folder / SUMMARY, json.dumps(facts, indent=2) + "\n")
    for name, found in facts["seeds"].items():
        digest = found["weights_digest"] or DASH
        if name in failed:
            say(f"{name:>8}  failed")
            continue
        say(f"{name:>8}  return {number(found['score'], ',.1f'):>9}  weights {digest[:16]}")
    if scores:
        say(f"return of {counted(len(scores), 'seed')}: {in_words(facts)}")
    say(f"summary:     {as_typed(folder / SUMMARY)}")
    runs = [Run.open(run_dir) for run_dir in seeds_in(folder) if run_dir.name not in failed]
    if picture := draw_curves(runs, folder / "curves.png"):
        say(f"curves:      {as_typed(picture)}")
