"""The learner's settings, and the whole of an experiment's: what `config.toml` in a run directory holds."""

import dataclasses
import difflib
import itertools
import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.files import replace_file
from protocol.text import one_line
from rundir.schedules import ADAPTIVE, Horizon, parse_schedule

VERSIONS = "versions"  # This table of a configuration is for people; nothing is decided by it.
LARGEST_NUMBER = 2**53  # A larger setting is a mistake, and a float may not hold it.
ADDED = (  # Older runs lack these settings, and did what the defaults say.
    *("best_by", "critic_only", "earlier_totals", "episode_metrics", "recompute_advantages", "recurrent"),
    *("init_from", "init_vecnormalize", "init_partial"),
)
NONE = '"None"'  # TOML has no word for nothing, so a file has the command line's.


@dataclass(frozen=True)
class PPOConfig:
    """How the policy learns from a batch."""

    learning_rate: float = 3e-4
    """Step size of Adam."""
    learning_rate_schedule: str = "linear"
    """`constant`, `linear` or `cosine` (to 0 at the end), points such as `1:1,0.5:0.1,0:0.1` (remaining progress:
    factor), or `adaptive`: by the KL divergence of each iteration, see `--desired-kl`."""
    desired_kl: float = 0.01
    """What the `adaptive` learning rate steers the KL divergence of an iteration to."""
    epochs: int = 10
    """Passes over each batch."""
    minibatches: int = 8
    """Parts that a batch is split into; each is one step of Adam."""
    clip_range: float = 0.2
    """How far the probability ratio may move before its gradient is cut."""
    clip_range_schedule: str = "constant"
    """As for the learning rate, but for `adaptive`."""
    discount: float = 0.99
    """Discount of future rewards, gamma."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation: 0 trusts the critic, 1 trusts the rewards."""
    normalize_advantages: bool = True
    """Scale the advantages of each minibatch to mean 0 and standard deviation 1."""
    normalize_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return, and clip them to ±10."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    entropy_coef_schedule: str = "constant"
    """As for the learning rate, but for `adaptive`."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    value_clip_range: float | None = None
    """How far a value may move in one iteration; None does not limit it."""
    max_grad_norm: float = 0.5
    """Norm that the gradient is scaled down to; inf does not limit it."""
    recompute_advantages: bool = False
    """Compute advantages and value targets anew before each epoch, with the values as they are then."""
    target_kl: float | None = None
    """Skip an iteration's remaining epochs once the policy has moved this far (KL divergence); None never does."""

    def check(self, samples: int, recurrent: bool) -> None:
        """Raise `UserError` on a setting that cannot work with batches of that many samples: steps, or sequences."""
        limits: dict[str, tuple[float, float]] = {
            "learning_rate": (0, 1e3),
            "clip_range": (0, 1e6),
            "discount": (0, 1),
            "gae_lambda": (0, 1),
            "entropy_coef": (0, 1e6),
            "value_coef": (0, 1e6),
            "max_grad_norm": (0, float("inf")),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{_flag(name)} must lie between {low} and {high}, not {getattr(self, name)}")
        for name in ("epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise UserError(f"{_flag(name)} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate_schedule", "clip_range_schedule", "entropy_coef_schedule"):
            text = getattr(self, name)
            if name != "learning_rate_schedule" or text != ADAPTIVE:
                parse_schedule(text, _flag(name))
        for name in ("value_clip_range", "target_kl", "desired_kl"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{_flag(name)} must be above 0, or None, not {value}")
        if samples % self.minibatches:
            small = [d for d in range(1, math.isqrt(samples) + 1) if samples % d == 0]
            divisors = {*small, *(samples // d for d in small)}
            below = max(d for d in divisors if d < self.minibatches)
            above = min((d for d in divisors if d > self.minibatches), default=None)
            kind = "sequences (--num-envs)" if recurrent else "samples (--num-envs times --rollout-length)"
            raise UserError(
                f"a batch of {samples} {kind} does not divide into"
                f" --minibatches {self.minibatches}; use {below}" + (f" or {above}" if above else "")
            )


@dataclass(frozen=True)
class TrainingConfig:
    """How long to train, and on what."""

    total_steps: int = 1_000_000
    """Environment steps to train on, rounded up to whole iterations. With --resume, more than before let a finished or
    stopped run go on: up to the old total its schedules are as they were, and after it they go over the new one."""
    earlier_totals: tuple[int, ...] = ()
    """The totals that the run had before; --resume with more --total-steps writes them."""
    init_from: str | None = None
    """Begin from the weights and the observation statistics of a run directory, of a policy that `export` wrote, or of
    a model.zip of Stable-Baselines3; the optimiser begins anew."""
    init_vecnormalize: str | None = None
    """With such a model.zip: the file that VecNormalize.save wrote."""
    init_partial: bool = False
    """Leave what does not fit as it is initialised, instead of ending."""
    stop_return: float | None = None
    """End once the mean return of the last 100 episodes reaches this; None trains to the end."""
    checkpoint_every: int = 50
    """Iterations from one checkpoint to the next; the first and the last version are always saved."""
    eval_every: int | None = None
    """Iterations from one evaluation to the next, which other processes do meanwhile; the last version is evaluated as
    well. RUN_DIR/best keeps the best policy. None evaluates none."""
    best_by: str = "return"
    """What makes a policy the best: the mean return of its evaluation, or the name of an episode metric."""
    eval_episodes: int = 20
    """Episodes of each evaluation: deterministic actions, and seeds that training never uses."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where the learner computes. Where there is a GPU, `auto` takes it for images and for large networks, and the CPU
    for small ones, which a GPU makes slower. A CPU's updates repeat themselves; of a GPU `deterministic` in
    summary.json says what was seen."""
    tf32: bool = False
    """Let a GPU round the factors of float32 products to 10 bits, which some do many times faster. The learner then
    computes other probabilities than the actors, who do not round."""
    learner_threads: int | None = None
    """Threads with which the learner computes on a CPU. None takes one, and for images four, which give the same bits
    as one. For vectors they are the BLAS's, and another number may give other low bits."""

    def check(self) -> None:
        """Raise `UserError` on a setting that cannot work."""
        for name in ("total_steps", "checkpoint_every", "eval_episodes"):
            if getattr(self, name) < 1:
                raise UserError(f"{_flag(name)} must be at least 1, not {getattr(self, name)}")
        if self.init_from is None and (self.init_vecnormalize is not None or self.init_partial):
            raise UserError("--init-vecnormalize and --init-partial are for --init-from, which is missing")
        totals = (0, *self.earlier_totals, self.total_steps)
        if any(later <= earlier for earlier, later in itertools.pairwise(totals)):
            raise UserError(f"earlier_totals {list(self.earlier_totals)} must rise, and lie below --total-steps")
        for name in ("eval_every", "learner_threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{_flag(name)} must be at least 1, or None, not {getattr(self, name)}")
        if self.best_by != "return" and self.eval_every is None:
            raise UserError(f"--best-by {self.best_by} chooses among evaluations: give --eval-every as well")
        if self.stop_return is not None and not math.isfinite(self.stop_return):
            raise UserError(f"--stop-return must be a number, or None, not {self.stop_return}")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's numbers."""

    experiment: Experiment
    ppo: PPOConfig
    training: TrainingConfig

    @property
    def horizon(self) -> Horizon:
        """The iterations of the run."""
        totals = (*self.training.earlier_totals, self.training.total_steps)
        return Horizon(tuple(-(-steps // self.experiment.env_steps_per_iteration) for steps in totals))

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting, by its name."""
        return {name: value for part in vars(self).values() for name, value in dataclasses.asdict(part).items()}

    def check(self) -> None:
        """Raise `UserError` on settings that cannot work, alone or together."""
        for name, value in self.settings.items():
            if type(value) is int and abs(value) > LARGEST_NUMBER:
                raise UserError(f"{_flag(name)} must be at most {LARGEST_NUMBER:,}")
        self.experiment.check()
        self.training.check()
        wanted = self.experiment.episode_metrics
        if self.training.best_by not in ("return", *wanted) and wanted:
            raise UserError(f"--best-by {self.training.best_by} is none of --episode-metrics {' '.join(wanted)}")
        recurrent = self.experiment.recurrent_size > 0
        self.ppo.check(self.experiment.num_envs if recurrent else self.experiment.env_steps_per_iteration, recurrent)

    def with_settings(self, settings: dict[str, Any], where: str) -> "RunConfig":
        """This configuration with `settings`, by the names of fields, as TOML holds them.

        Raises `UserError`, naming `where` they stand, on a setting that does not exist or is of another type.
        """
        parts = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        owner = {field.name: name for name, part in parts.items() for field in dataclasses.fields(part)}
        if unknown := sorted(settings.keys() - owner.keys()):
            close = [difflib.get_close_matches(name.replace("-", "_"), owner, 1) for name in unknown]
            meant = [name for names in close for name in names]
            hint = f"; did you mean {', '.join(meant)}?" if meant else ""
            raise UserError(f"{where} has unknown settings {', '.join(unknown)}{hint}")
        for name, value in settings.items():
            part = parts[owner[name]]
            hint = typing.get_type_hints(type(part))[name]
            parts[owner[name]] = dataclasses.replace(part, **{name: _from_toml(value, hint, f"{where}: {name}")})
        return RunConfig(**parts)

    def save(self, path: Path, versions: dict[str, str]) -> None:
        """Write every setting to `path`, and the `versions` of what will compute with them. Raises `OSError`."""
        lines = ["# All that decides the numbers of this run; `python launch.py --config THIS_FILE` runs it again."]
        for part in dataclasses.fields(self):
            lines += ["", f"# {part.name}"]
            values = dataclasses.asdict(getattr(self, part.name))
            lines += [f"{name} = {to_toml(value)}" for name, value in values.items()]
        lines += ["", f"[{VERSIONS}]", *(f"{to_toml(name)} = {to_toml(text)}" for name, text in versions.items())]
        replace_file(path, "\n".join(lines) + "\n")

    @classmethod
    def load(cls, path: Path) -> "RunConfig":
        """The configuration saved at `path`; raises `UserError` if it is not one, whole."""
        settings = load_settings(path)
        config = cls(Experiment(), PPOConfig(), TrainingConfig())
        names = {field.name for part in vars(config).values() for field in dataclasses.fields(part)}
        if missing := sorted(names - settings.keys() - set(ADDED)):
            raise UserError(f"{path} is not a run's whole configuration: it lacks {', '.join(missing)}")
        return config.with_settings(settings, str(path))


def load_settings(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, by name; raises `UserError`."""
    try:
        settings = tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise UserError(f"{path} cannot be read as a file of settings: {reason}") from None
    settings.pop(VERSIONS, None)  # Versions are there for people to read.
    return settings


def to_toml(value: Any) -> str:
    """A setting as a file of settings has it."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False)
    return NONE if value is None else repr(value)


def _from_toml(value: Any, hint: Any, where: str) -> Any:
    """`value` as a field of type `hint` has it; raises `UserError`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:  # X | None
        return None if value == "None" else _from_toml(value, arguments[0], where)
    if origin is tuple and isinstance(value, list):
        return tuple(_from_toml(item, arguments[0], where) for item in value)
    if origin is typing.Literal:
        if value not in arguments:
            raise UserError(f"{where} is {value!r}, and must be one of {', '.join(arguments)}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise UserError(f"{where} is {value!r}, and must be {kinds.get(hint, 'a list')}")
    if isinstance(value, str) and not value.isprintable():
        raise UserError(f"{where} holds a character that cannot be shown")
    return value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
