"""Optuna asks and is told in an order of our own, so that a sweep does not depend on which trial ends first.

Trial k is proposed when trials 0 to k - `at_once` have been told, in the order of their numbers, and none after these.
So what Optuna knows when it proposes trial k is always the same, and so is what it proposes. A sweep that goes on
repeats all proposals from the beginning: the random numbers of the sampler are then where they were.

A pruner compares a trial with what was known when the trial was proposed. So a trial is pruned at the same point of its
curve whatever happens beside it.
"""

import copy
import dataclasses
import importlib
import inspect
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from multirun.spec import Searched, Spec
from protocol.errors import UserError
from protocol.extras import how_to_install
from protocol.text import error_line

if TYPE_CHECKING:
    import optuna

STORAGE = "optuna.db"
REHEARSED = 30  # So many trials are tried with made-up values.


@dataclass(frozen=True)
class Outcome:
    """What a trial has come to."""

    state: Literal["complete", "pruned", "failed"]
    value: float | None = None  # the objective; of a pruned trial what it was pruned for
    reports: Mapping[int, float] = field(default_factory=dict)  # by their numbers, from 1 on
    reason: str = ""  # why it failed


class Search:
    """The trials of a sweep, as Optuna sees them. Nothing here depends on time."""

    def __init__(self, spec: Spec, name: str) -> None:
        """`name` is the study's. Raises `UserError` where Optuna has no such sampler or pruner."""
        self._optuna = _imported()
        self._spec = spec
        self._pruner = self._made("pruners", spec.pruner)
        sampler = self._made("samplers", spec.sampler)
        self._study = self._new_study(name, sampler)
        self._study.stop = lambda: None  # So a sampler ends Optuna's own loop, which is not used here.
        self._stored: optuna.Study | None = None
        self._views: dict[int, _View] = {}
        self.asked = 0
        self.told = 0

    @property
    def may_ask(self) -> bool:
        """Whether the next trial can be proposed with what is known."""
        return self.asked < self._spec.trials and self.asked - self.told < self._spec.at_once

    @property
    def must_tell(self) -> bool:
        """Whether the next trial, by number, has to be told before another is proposed, or because none is left."""
        return self.asked - self.told == min(self._spec.at_once, self._spec.trials - self.told)

    @property
    def trials(self) -> "list[optuna.trial.FrozenTrial]":
        """All trials that have been told, by number."""
        return self._study.get_trials(deepcopy=False)[: self.told]

    def ask(self) -> dict[str, Any]:
        """The searched settings of the next trial, by name, as TOML has them. Raises `UserError` where Optuna fails."""
        assert self.may_ask
        settings = {**self._spec.base.settings, **self._spec.settings}
        proposed: dict[str, Any] = {}
        with self._blamed("sampler"):
            trial = self._study.ask()
            for searched in self._spec.search:
                if searched.applies({**settings, **proposed}):
                    proposed[searched.name] = _suggest(trial, searched)
        known = self._study.study_name, self._spec.direction, self._study.get_trials()
        self._views[self.asked] = _View(*known, self._pruner, self.asked)
        self.asked += 1
        return proposed

    def is_pruned(self, number: int, report: int, value: float) -> bool:
        """Whether trial `number` is to be pruned at this report; its earlier reports were given before."""
        with self._blamed("pruner"):
            return self._views[number].is_pruned(self._optuna, report, value)

    def tell(self, outcome: Outcome) -> None:
        """What the next trial, by number, has come to. Told earlier, Optuna would know more than it may."""
        assert self.must_tell
        states = self._optuna.trial.TrialState
        number, storage = self.told, self._study._storage
        identity = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)
        for report, value in outcome.reports.items():
            storage.set_trial_intermediate_value(identity, report, value)
        for key, value in self._views.pop(number).attributes.items():  # what a pruner has noted
            storage.set_trial_system_attr(identity, key, value)
        if outcome.reason:
            storage.set_trial_user_attr(identity, "reason", outcome.reason)
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[outcome.state]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.tell(number, outcome.value if state == states.COMPLETE else None, state)
        self.told += 1

    def save(self, folder: Path) -> None:
        """Add the trials that were told since the last time to the folder's storage, for Optuna's own tools. One that
        cannot be read is made anew."""
        try:
            self._add_to(folder)
        except Exception:  # whatever Optuna's storage makes of a damaged file
            self._stored = None
            (folder / STORAGE).unlink(missing_ok=True)
            self._add_to(folder)

    def _add_to(self, folder: Path) -> None:
        if self._stored is None:
            self._stored = self._new_study(self._study.study_name, None, f"sqlite:///{folder / STORAGE}")
        for trial in self.trials[len(self._stored.get_trials(deepcopy=False)) :]:
            self._stored.add_trial(trial)

    @property
    def study(self) -> "optuna.Study":
        """The study in memory, for pictures."""
        return self._study

    def _new_study(self, name: str, sampler: Any, storage: str | None = None) -> "optuna.Study":
        return self._optuna.create_study(
            storage=storage,
            study_name=name,
            sampler=sampler,
            pruner=self._pruner,
            direction=self._spec.direction,
            load_if_exists=storage is not None,
        )

    def _made(self, kind: Literal["samplers", "pruners"], given: Mapping[str, Any]) -> Any:
        """A sampler or a pruner by Optuna's name, with its options."""
        options = {key: value for key, value in given.items() if key != "name"}
        module = importlib.import_module(f"optuna.{kind}")
        known = [
            name for name in module.__all__ if name.endswith(("Sampler", "Pruner")) and not name.startswith("Base")
        ]
        if given["name"] not in known:
            raise UserError(f"Optuna has no {kind[:-1]} {given['name']}; there are {', '.join(known)}")
        make = getattr(module, given["name"])
        parameters = inspect.signature(make).parameters
        if "seed" in parameters:
            options.setdefault("seed", self._spec.seed)
        if "wrapped_pruner" in parameters:
            inner = options.get("wrapped_pruner", "NopPruner")
            options["wrapped_pruner"] = self._made("pruners", {"name": inner} if isinstance(inner, str) else inner)
        if "search_space" in parameters:
            if ranges := [one.name for one in self._spec.search if not one.choices]:
                raise UserError(f"[sweep] sampler {given['name']} needs choices, and {ranges[0]} has a range")
            options.setdefault("search_space", {one.name: list(_labels(one)) for one in self._spec.search})
        with self._blamed(kind[:-1]):
            return make(**options)

    @contextmanager
    def _blamed(self, kind: str) -> Iterator[None]:
        """Turn whatever Optuna says of a sampler or a pruner into a `UserError`: of an option, of a package that it
        needs and that is missing."""
        name = self._spec.sampler["name"] if kind == "sampler" else self._spec.pruner["name"]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna calls some of them experimental.
                yield
        except UserError:
            raise
        except ModuleNotFoundError as error:
            raise UserError(f"[sweep] {kind} {name} needs {error.name}, which is not installed") from None
        except Exception as error:
            raise UserError(f"[sweep] {kind} {name}: {error_line(error)}") from None


def rehearse(spec: Spec) -> None:
    """Try a sweep with made-up values, so that a sampler or a pruner that cannot work is seen before any run. Raises
    `UserError`, also where no proposal is a run."""
    spec = dataclasses.replace(spec, trials=min(spec.trials, REHEARSED), at_once=1)
    search, mistakes = Search(spec, "rehearsal"), []
    for number in range(spec.trials):
        proposed = search.ask()
        try:
            spec.config(proposed, spec.seeds[0])
        except UserError as error:
            mistakes.append(str(error))
        reports = {report: float((number * report) % 7) for report in (1, 2, 3)}
        pruned = [report for report, value in reports.items() if search.is_pruned(number, report, value)]
        search.tell(Outcome("pruned" if pruned else "complete", reports[3], reports))
    if len(mistakes) == spec.trials:
        raise UserError(f"no trial can run: {mistakes[0]}")


class _View:
    """The study as it was when a trial was proposed, with that trial's reports. It is made when it is first needed."""

    def __init__(
        self, name: str, direction: str, trials: "list[optuna.trial.FrozenTrial]", pruner: Any, number: int
    ) -> None:
        self._name, self._direction, self._trials = name, direction, trials
        self._pruner, self._number = pruner, number
        self._trial: optuna.Trial | None = None

    def is_pruned(self, optuna: Any, report: int, value: float) -> bool:
        if self._trial is None:
            pruner = copy.deepcopy(self._pruner)
            study = optuna.create_study(study_name=self._name, pruner=pruner, direction=self._direction)
            study.add_trials(self._trials)
            identity = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, self._number)
            self._trial = optuna.trial.Trial(study, identity)
        assert self._trial is not None
        self._trial.report(value, report)
        return self._trial.should_prune()

    @property
    def attributes(self) -> dict[str, Any]:
        """What the pruner has noted of the trial."""
        if self._trial is None:
            return {}
        return self._trial.study._storage.get_trial(self._trial._trial_id).system_attrs


def _imported() -> Any:
    try:
        optuna = importlib.import_module("optuna")
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError(f"a sweep needs Optuna, which is not installed; {how_to_install('sweep')}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _suggest(trial: "optuna.Trial", searched: Searched) -> Any:
    if searched.choices:
        labels = _labels(searched)
        return labels[trial.suggest_categorical(searched.name, list(labels))]
    assert searched.low is not None and searched.high is not None
    if searched.kind is int:
        step = 1 if searched.step is None else int(searched.step)
        return trial.suggest_int(searched.name, int(searched.low), int(searched.high), step=step, log=searched.log)
    value = trial.suggest_float(searched.name, searched.low, searched.high, step=searched.step, log=searched.log)
    return value if searched.step is None else float(f"{value:.12g}")  # 0.95, not 0.9500000000000001


def _labels(searched: Searched) -> dict[Any, Any]:
    """The choices by what Optuna stores of them: a list as a text."""
    return {json.dumps(choice) if isinstance(choice, list) else choice: choice for choice in searched.choices}
