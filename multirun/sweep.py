"""Carries out a sweep: each trial is a folder with an ordinary run directory for each seed.

The pruner looks at the first seed of a trial, REPORTS times over its run. Where it prunes, the trial ends, whatever its
other seeds are at. All that decides is in the run directories and in trials.jsonl, which lists the trials that Optuna
was told of; so a sweep that was killed goes on as if it had not been.
"""

import itertools
import json
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from multirun.jobs import Ending
from multirun.progress import Progress
from multirun.scores import score_of
from multirun.search import Outcome, Search
from multirun.seeds import is_finished
from multirun.spec import Spec
from protocol.errors import UserError
from protocol.files import append_line, read_rows, replace_file
from protocol.process import as_typed
from protocol.trajectory import EPISODE
from rundir.config import RunConfig
from rundir.metrics import RETURN, STEPS, words_of
from rundir.names import CONFIG, METRICS

TRIALS = "trials.jsonl"
REPORTS = 20  # So often, over a run, a pruner may look.


class _Trial:
    """A trial that Optuna has not been told of yet."""

    def __init__(self, number: int, proposed: dict[str, Any]) -> None:
        self.number, self.proposed = number, proposed
        self.runs: list[Progress] = []
        self.failed: dict[int, str] = {}  # by the places of its runs
        self.finished: set[int] = set()
        self.reports: dict[int, float] = {}
        self.next_report = 1
        self.outcome: Outcome | None = None


class Sweep:
    """The work of a sweep."""

    def __init__(self, folder: Path, spec: Spec, search: Search, make: Callable[[Path, RunConfig], None]) -> None:
        """`make` makes the run directory of a trial's seed. Raises `UserError` where the folder holds another sweep."""
        self.runs: list[Progress] = []  # those that have been begun, for the view
        self._folder, self._spec, self.search, self._make = folder, spec, search, make
        rows = rows_in(folder)
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        if (folder / TRIALS).exists() and (folder / TRIALS).read_text(errors="replace") != text:
            replace_file(folder / TRIALS, text)  # A kill has left half a line, or something was lost.
        self._known = [_outcome(row) for row in rows]
        self._open: list[_Trial] = []  # asked and not told, by number
        self._waiting: list[tuple[_Trial, Progress]] = []
        self._useless: set[Path] = set()  # runs of trials that are over
        self._metric = spec.objective if spec.objective.startswith(EPISODE) else RETURN  # what is reported

    @property
    def over(self) -> bool:
        return self.search.told == self._spec.trials

    def next_run(self) -> Progress | None:
        while True:
            while self._waiting:
                trial, run = self._waiting.pop(0)
                if trial.outcome is None:
                    self.runs.append(run)
                    return run
            if not self.search.may_ask:
                return None
            self._propose()
            self._tell_in_order()

    def take(self, ending: Ending) -> None:
        for trial in self._open:
            for place, run in enumerate(trial.runs):
                if run.run_dir == ending.run_dir:
                    if ending.state == "failed":
                        trial.failed[place] = ending.reason
                    elif ending.state == "finished":
                        trial.finished.add(place)
        self.look()

    def look(self) -> Collection[Path]:
        for trial in self._open:
            self._judge(trial)
            if trial.outcome is not None:
                self._useless.update(run.run_dir for run in trial.runs)
        self._tell_in_order()
        return self._useless

    @property
    def in_words(self) -> str:
        """How many trials are over, and the best so far."""
        told = dict(enumerate(self._known[: self.search.told]))
        over = told | {trial.number: trial.outcome for trial in self._open if trial.outcome is not None}
        values = {n: one.value for n, one in over.items() if one.state == "complete" and one.value is not None}
        words = f"{len(over)} of {self._spec.trials} trials"
        if not values:
            return words
        best = (max if self._spec.direction == "maximize" else min)(values, key=values.__getitem__)
        return f"{words}, best so far trial {best}: {values[best]:,.5g}"

    def _propose(self) -> None:
        number = self.search.asked
        trial = _Trial(number, self.search.ask())
        self._open.append(trial)
        if number < len(self._known):
            trial.outcome = self._known[number]
            self._check_proposal(trial)
            for report, value in trial.outcome.reports.items():
                self.search.is_pruned(number, report, value)  # The pruner notes what it has seen.
            return
        try:
            configs = [self._spec.config(trial.proposed, seed) for seed in self._spec.seeds]
        except UserError as error:  # The search allows settings that do not go together.
            trial.outcome = Outcome("failed", reason=str(error))
            return
        for place, config in enumerate(configs):
            run_dir = self._folder / f"trial-{number:03}" / f"seed-{config.experiment.seed}"
            if not (run_dir / CONFIG).exists():
                self._make(run_dir, config)
            elif RunConfig.load(run_dir / CONFIG) != config:
                raise self._other_proposal(number)
            total = config.horizon.total * config.experiment.env_steps_per_iteration
            run = Progress(run_dir, f"trial-{number:03}/{run_dir.name}", total, [self._metric])
            run.look()
            trial.runs.append(run)
            if is_finished(run_dir, config.training.total_steps):
                run.state = "finished"
                trial.finished.add(place)
            else:
                run.state = "waiting"
                self._waiting.append((trial, run))
        self._judge(trial)

    def _check_proposal(self, trial: _Trial) -> None:
        """Raise `UserError` unless Optuna proposes again what was tried."""
        tried = self._folder / f"trial-{trial.number:03}" / f"seed-{self._spec.seeds[0]}" / CONFIG
        if tried.exists() and RunConfig.load(tried) != self._spec.config(trial.proposed, self._spec.seeds[0]):
            raise self._other_proposal(trial.number)

    def _other_proposal(self, number: int) -> UserError:
        return UserError(
            f"{as_typed(self._folder)} cannot go on: for trial {number}, this Optuna proposes other settings than those"
            " that were tried. Was its file changed, or another version of Optuna installed?"
        )

    def _judge(self, trial: _Trial) -> None:
        """Whether the trial is over, by the files of its runs alone."""
        if trial.outcome is not None:
            return
        first = trial.runs[0]
        for report, value in self._new_reports(trial, first):
            trial.reports[report] = value
            if self.search.is_pruned(trial.number, report, value):
                trial.outcome = Outcome("pruned", value, dict(trial.reports))
                return
        # Until the first seed has ended, it may still be pruned, even if another one has failed.
        if len(trial.finished) + len(trial.failed) < len(trial.runs):
            return
        if trial.failed:
            place, reason = min(trial.failed.items())
            reason = f"seed {self._spec.seeds[place]}: {reason}"
            trial.outcome = Outcome("failed", reports=dict(trial.reports), reason=reason)
            return
        values = [self._value(run) for run in trial.runs]
        if any(value is None or not math.isfinite(value) for value in values):
            reason = f"a run has no {words_of(self._metric)}"
            if self._metric != RETURN:
                last = list(read_rows(trial.runs[0].run_dir / METRICS, ["policy_version"]))[-1:]
                names = sorted(name for row in last for name in row if name.startswith(EPISODE))
                reason += f"; there are {', '.join(names)}" if names else "; it has no episode metrics"
            trial.outcome = Outcome("failed", reports=dict(trial.reports), reason=reason)
            return
        mean = math.fsum(value for value in values if value is not None) / len(values)
        trial.outcome = Outcome("complete", mean, dict(trial.reports))

    def _new_reports(self, trial: _Trial, run: Progress) -> list[tuple[int, float]]:
        """The reports of a run that its curve has reached, after those of before: (number, value)."""
        found = []
        for row in run.rows:
            while trial.next_report < REPORTS and row[STEPS] >= trial.next_report * run.total_steps / REPORTS:
                value = row.get(self._metric)
                if isinstance(value, int | float) and math.isfinite(value):
                    found.append((trial.next_report, float(value)))
                trial.next_report += 1
        return found

    def _value(self, run: Progress) -> float | None:
        """The objective of a finished run."""
        if self._spec.goal is not None:
            reached = (row[STEPS] for row in run.rows if (row.get(RETURN) or -math.inf) >= self._spec.goal)
            return float(next(reached, 2 * run.total_steps))  # Twice its steps, if it never reaches it.
        if self._spec.objective.startswith(EPISODE):
            return run.rows[-1].get(self._spec.objective) if run.rows else None
        return score_of(run.run_dir)

    def _tell_in_order(self) -> None:
        while self._open and self.search.must_tell and (outcome := self._open[0].outcome) is not None:
            trial = self._open[0]
            self.search.tell(outcome)
            self._open.pop(0)
            for run in trial.runs:
                run.forget()
            if trial.number >= len(self._known):
                self._known.append(outcome)
                row = {"number": trial.number, "state": outcome.state, "value": outcome.value}
                row |= {"settings": trial.proposed, "reports": outcome.reports, "reason": outcome.reason}
                append_line(self._folder / TRIALS, json.dumps(row))
                self.search.save(self._folder)


def _outcome(row: dict[str, Any]) -> Outcome:
    """An outcome as trials.jsonl has it."""
    reports = {int(report): value for report, value in row["reports"].items()}
    return Outcome(row["state"], row["value"], reports, row["reason"])


def rows_in(folder: Path) -> Sequence[dict[str, Any]]:
    """The trials that a sweep has told Optuna of, by number, up to the first that is missing: number, state, value,
    settings, reports, reason."""
    rows = read_rows(folder / TRIALS, ["number"])
    return [row for place, row in itertools.takewhile(lambda pair: pair[0] == pair[1]["number"], enumerate(rows))]
