"""A sweep's file: what every trial has, what is searched, and how."""

import dataclasses
import difflib
import json
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.text import one_line
from protocol.trajectory import EPISODE
from rundir.config import PPOConfig, RunConfig, TrainingConfig

TABLES = ("sweep", "settings", "search")
NEVER = 10**9  # Iterations from one evaluation to the next, if the last version alone is to be evaluated.
KINDS = {int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Searched:
    """One setting that is searched."""

    name: str
    kind: type  # of its numbers: int or float; object where it is one of `choices`
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()  # as TOML has them
    when: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # setting: value, or a list of values

    def can_be(self, value: Any) -> bool:
        """Whether a trial may have this value."""
        if self.choices or self.low is None or self.high is None:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def applies(self, settings: Mapping[str, Any]) -> bool:
        """Whether it is searched in a trial that has these `settings`."""
        return all(
            settings.get(name) in (wanted if isinstance(wanted, list) else [wanted])
            for name, wanted in self.when.items()
        )


@dataclass(frozen=True)
class Spec:
    """What a sweep's file says."""

    base: RunConfig  # of every trial, but for what is searched and the seed
    settings: dict[str, Any]  # as the file has them
    search: tuple[Searched, ...]
    trials: int = 24
    seeds: tuple[int, ...] = (0,)  # Each trial has a run for each.
    objective: str = "return"
    direction: Literal["maximize", "minimize"] = "maximize"
    sampler: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "TPESampler"})
    pruner: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "NopPruner"})
    seed: int = 0  # of the sampler
    at_once: int = 8  # Trials that are under way together, at most. A trial knows what all trials before these came to.

    @property
    def goal(self) -> float | None:
        """The return to be reached, where the objective is how many env-steps that takes."""
        return float(self.objective.removeprefix("steps to ")) if self.objective.startswith("steps to ") else None

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what is tried and found, but for how many trials there are: more of them go on."""
        facts = {name: value for name, value in vars(self).items() if name not in ("base", "search", "trials")}
        facts |= {"base": self.base.settings, "search": [dataclasses.asdict(one) for one in self.search]}
        return json.loads(json.dumps(facts, default=str))

    def config(self, searched: Mapping[str, Any], seed: int) -> RunConfig:
        """A trial's run. Raises `UserError` where its settings do not go together."""
        training = {"eval_every": NEVER} if self.objective == "eval" and self.base.training.eval_every is None else {}
        stop = {"stop_return": self.goal} if self.goal is not None else {}
        config = self.base.with_settings({**searched, **training, **stop, "seed": seed}, "the trial")
        config.check()
        return config


def read_spec(path: Path, preset: typing.Callable[[str], RunConfig]) -> Spec:
    """What the file says, over the preset of its environment; raises `UserError` where it is wrong."""
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise UserError(f"{path} cannot be read as the file of a sweep: {reason}") from None
    for name, table in tables.items():
        if name not in TABLES or not isinstance(table, dict):
            raise UserError(f"{path}: {name} is none of its tables, which are [{'], ['.join(TABLES)}]")
    settings, search, sweep = (tables.get(name, {}) for name in ("settings", "search", "sweep"))
    for name in ("seed", "earlier_totals"):
        if name in settings or name in search:
            raise UserError(f"{path}: {name} cannot be set here" + ("; give [sweep] seeds" if name == "seed" else ""))
    for name in ("init_from", "init_vecnormalize"):
        if not Path(str(settings.get(name, "/"))).is_absolute():
            raise UserError(f"{path}: [settings] {name} must be an absolute path, so that --resume finds it anywhere")
    env = settings.get("env", Experiment.env)
    if not isinstance(env, str):
        raise UserError(f"{path}: [settings] env is {env!r}, and must be a text")
    base = preset(env).with_settings(settings, f"{path}: [settings]")
    if not search:
        raise UserError(f"{path} has no [search]: there is nothing to try")
    hints = {k: v for kind in (Experiment, PPOConfig, TrainingConfig) for k, v in typing.get_type_hints(kind).items()}
    searched = tuple(_searched(name, entry, hints, base, f"{path}: [search] {name}") for name, entry in search.items())
    if twice := sorted(settings.keys() & search.keys()):
        raise UserError(f"{path}: {twice[0]} is in [settings] and in [search]; leave it out of one of them")
    above: dict[str, Searched] = {}
    for one in searched:
        _check_when(one, above, base, hints, f"{path}: [search] {one.name}: when")
        above[one.name] = one
    return _sweep(path, sweep, base, settings, searched)


def _check_when(
    one: Searched, above: Mapping[str, Searched], base: RunConfig, hints: Mapping[str, Any], where: str
) -> None:
    """Raise `UserError` on a condition that can never hold. It names what is searched above, or what is fixed."""
    for name, wanted in one.when.items():
        if name not in hints:
            raise UserError(f"{where} names {name}, which is no setting")
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if name not in above and value != base.settings[name]:
                raise UserError(
                    f"{where} {name} = {value!r} never holds: it is {base.settings[name]!r}, or searched only below"
                )
            if name in above and not above[name].can_be(value):
                raise UserError(f"{where} {name} = {value!r} never holds: [search] {name} does not take this value")


def _searched(name: str, entry: Any, hints: Mapping[str, Any], base: RunConfig, where: str) -> Searched:
    if name not in hints:
        close = difflib.get_close_matches(name.replace("-", "_"), hints, 1)
        raise UserError(f"{where}: there is no such setting" + (f"; did you mean {close[0]}?" if close else ""))
    if isinstance(entry, list):
        entry = {"choices": entry}
    known = {field.name for field in dataclasses.fields(Searched)} - {"name", "kind"}
    if not isinstance(entry, dict) or (entry.keys() - known):
        raise UserError(f"{where} must be a list of choices, or {{ low, high, log, step, choices, when }}")
    when = entry.get("when", {})
    if not isinstance(when, dict):
        raise UserError(f"{where}: when must be {{ setting = value }}")
    choices = entry.get("choices")
    if choices is not None:
        if not isinstance(choices, list) or not choices or entry.keys() - {"choices", "when"}:
            raise UserError(f"{where}: choices must be a list with something in it, without low, high, log and step")
        if any(choice in choices[:i] for i, choice in enumerate(choices)):
            raise UserError(f"{where}: choices has one more than once")
        for choice in choices:
            base.with_settings({name: choice}, where)  # It is of the right type.
        return Searched(name, object, choices=tuple(choices), when=when)
    kinds = [kind for kind in (hints[name], *typing.get_args(hints[name])) if kind in (int, float)]
    if not kinds:
        raise UserError(f"{where} is no number: give choices = [...]")
    kind, numbers = kinds[0], {}
    for key in ("low", "high", "step"):
        value = entry.get(key)
        if value is None and key != "step":
            raise UserError(f"{where} needs low and high, or choices")
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int)
        ):
            raise UserError(f"{where}: {key} is {value!r}, and must be {KINDS[kind]}")
        numbers[key] = None if value is None else kind(value)
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{where}: log must be true or false")
    if not numbers["low"] <= numbers["high"] or (log and numbers["low"] <= 0) or (log and numbers["step"] is not None):
        raise UserError(f"{where}: low must not be above high; with log, it must be above 0, and there is no step")
    if numbers["step"] is not None and numbers["step"] <= 0:
        raise UserError(f"{where}: step must be above 0")
    return Searched(name, kind, log=log, when=when, **numbers)


def _sweep(
    path: Path, table: dict[str, Any], base: RunConfig, settings: dict[str, Any], search: tuple[Searched, ...]
) -> Spec:
    names = [field.name for field in dataclasses.fields(Spec) if field.name not in ("base", "settings", "search")]
    if unknown := sorted(table.keys() - set(names)):
        raise UserError(f"{path}: [sweep] has unknown {', '.join(unknown)}; there are {', '.join(names)}")
    found = dict(table)
    for name in ("trials", "seed", "at_once"):
        value = found.get(name, 1)
        if type(value) is not int or value < (0 if name == "seed" else 1):
            least = "0 or above" if name == "seed" else "above 0"
            raise UserError(f"{path}: [sweep] {name} is {value!r}, and must be a whole number {least}")
    seeds = found.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{path}: [sweep] seeds must be a list of whole numbers, such as [0, 1]")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: [sweep] seeds has one more than once")
    found["seeds"] = tuple(seeds)
    objective = found.get("objective", "return")
    if not _is_objective(objective):
        raise UserError(
            f"{path}: [sweep] objective is {objective!r}, and must be return, eval, {EPISODE}NAME or `steps to NUMBER`"
        )
    steps = objective.startswith("steps to ")
    found.setdefault("direction", "minimize" if steps else "maximize")
    if found["direction"] not in ("maximize", "minimize"):
        raise UserError(f"{path}: [sweep] direction must be maximize or minimize, not {found['direction']!r}")
    for name in ("sampler", "pruner"):
        given = found.get(name, {"name": "TPESampler" if name == "sampler" else "NopPruner"})
        given = {"name": given} if isinstance(given, str) else given
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            raise UserError(f'{path}: [sweep] {name} must be a name of Optuna\'s, or {{ name = "…", option = value }}')
        found[name] = given
    if steps and found["pruner"]["name"] != "NopPruner":
        raise UserError(f"{path}: a pruner compares returns, and the objective counts env-steps: leave the pruner out")
    return Spec(base=base, settings=settings, search=search, **found)


def _is_objective(objective: Any) -> bool:
    if not isinstance(objective, str):
        return False
    if objective.startswith("steps to "):
        try:
            float(objective.removeprefix("steps to "))
        except ValueError:
            return False
        return True
    return objective in ("return", "eval") or (objective.startswith(EPISODE) and len(objective) > len(EPISODE))
