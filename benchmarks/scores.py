"""`scores`: what the presets learn: many seeds an environment, evaluated at the end, beside what others have published.

A seed that is finished is kept, and one that was stopped goes on, so that the same command can be given again.
"""

import argparse
import hashlib
import json
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.arguments import positive
from benchmarks.measurements import Row, Samples, Target
from benchmarks.processes import cores, launch_to_end
from benchmarks.published import PUBLISHED, TARGETS
from benchmarks.report import Report, number
from commands.helpers.command_line import parse
from commands.helpers.presets import defaults_for
from commands.helpers.run_directory import run_name
from commands.train import ExecutionConfig, SeveralConfig, TrainCommand
from multirun.pictures import draw_curves
from protocol.errors import UserError
from protocol.text import differences_in_words
from rundir.config import RunConfig
from rundir.curves import interquartile_mean, interval
from rundir.run import Run

EVALUATION = "eval.json"  # What `launch.py eval` writes.


@dataclass(frozen=True)
class Seed:
    """One run, and how it is evaluated."""

    config: RunConfig  # All settings.
    flags: tuple[str, ...]  # Those that are not the preset's, as they were given.
    folder: Path
    episodes: int

    @classmethod
    def of(cls, env: str, seed: int, flags: tuple[str, ...], folder: Path, episodes: int) -> "Seed":
        """Raises `UserError` on flags that are none. Not for threads: the parser redirects standard error."""
        words = ["--env", env, "--seed", str(seed), *flags]
        defaults = defaults_for(words)
        given = TrainCommand(defaults.experiment, defaults.ppo, defaults.training, ExecutionConfig(), SeveralConfig())
        command = parse(TrainCommand, "launch.py", words, default=given)
        config = RunConfig(command.experiment, command.ppo, command.training)
        return cls(config, flags, folder, episodes)

    @property
    def run_dir(self) -> Path:
        """Its directory, another one for other flags."""
        name = run_name(self.config.experiment)
        if self.flags:
            name += "-" + hashlib.blake2b(shlex.join(self.flags).encode(), digest_size=4).hexdigest()
        return self.folder / name

    def returns(self) -> np.ndarray:
        """The returns [episodes] of its last policy, trained and evaluated as far as that is missing. Raises
        `UserError`."""
        if not (self.run_dir / "config.toml").exists():
            experiment = self.config.experiment
            words = ["--env", experiment.env, "--seed", str(experiment.seed), *self.flags]
            launch_to_end([*words, "--run-dir", str(self.run_dir), "--in-process", "--actors", "1", "--quiet"])
        else:
            self._check()
            if _read(self.run_dir / "summary.json").get("status") != "finished":
                launch_to_end(["--resume", str(self.run_dir), "--quiet"])
        found = _read(self.run_dir / EVALUATION)
        version = _read(self.run_dir / "summary.json")["policy_version"]
        if (found.get("policy_version"), found.get("episodes")) != (version, self.episodes):
            launch_to_end(["eval", str(self.run_dir), "--episodes", str(self.episodes)])
            found = _read(self.run_dir / EVALUATION)
        return np.array(found["returns"])

    def _check(self) -> None:
        """Raise `UserError` if the run that is there has other settings, such as those of an older preset."""
        there = RunConfig.load(self.run_dir / "config.toml")
        if there != self.config:
            differences = differences_in_words(there.settings, self.config.settings)
            raise UserError(f"{self.run_dir} was trained with other settings: {differences}. Remove it, or give --runs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", nargs="+", default=["CartPole-v1"], help="environments, each with its preset")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="seeds of each environment")
    parser.add_argument("--episodes", type=positive(int), default=100, help="episodes that evaluate a policy")
    parser.add_argument("--parallel", type=positive(int), default=cores(), help="runs at a time")
    parser.add_argument("--flags", default="", help="more flags of launch.py, in one text, instead of the preset's")
    parser.add_argument("--runs", default="runs/scores", help="folder of the run directories")


def run(arguments: argparse.Namespace) -> Report:
    report = Report("scores")
    flags = tuple(shlex.split(arguments.flags))
    where = flags, Path(arguments.runs), arguments.episodes
    seeds = [Seed.of(env, seed, *where) for env in arguments.env for seed in arguments.seeds]

    def score(seed: Seed) -> float | UserError:
        try:
            mean = float(seed.returns().mean())
        except UserError as error:  # The other seeds are worth something without this one.
            print(f"{seed.run_dir.name}: {error}", file=sys.stderr)
            return error
        print(f"{seed.run_dir.name}: return {mean:,.2f} over {seed.episodes} episodes", file=sys.stderr)
        return mean

    with ThreadPoolExecutor(arguments.parallel) as pool:
        scores = dict(zip(seeds, pool.map(score, seeds), strict=True))
    for env in dict.fromkeys(arguments.env):
        of_env = {seed.config.experiment.seed: seed for seed in seeds if seed.config.experiment.env == env}
        found = {number: scores[seed] for number, seed in of_env.items()}
        values = {seed: value for seed, value in found.items() if isinstance(value, float)}
        if values:
            report.rows.append(Row(env, "return", "", "here", Samples.of(values.values())))
            report.notes.append(f"{env}: {in_words(values, TARGETS.get(env))}")
        for each in PUBLISHED.get(env, ()):
            report.rows.append(Row(env, "return", "", each.source, Samples.of([each.value])))
        failed = {seed: value for seed, value in found.items() if isinstance(value, UserError)}
        report.notes += [f"{env}: seed {seed} failed: {error}" for seed, error in failed.items()]
    if not any(isinstance(value, float) for value in scores.values()):
        raise UserError("no seed has a score")
    note_curves([seed.run_dir for seed in seeds if isinstance(scores[seed], float)], arguments.out, report)
    return report


def note_curves(run_dirs: list[Path], out: Path, report: Report) -> None:
    """Write learning curves, over the seeds of each environment, into `out`, where matplotlib is installed."""
    out.mkdir(parents=True, exist_ok=True)
    if path := draw_curves([Run.open(run_dir) for run_dir in run_dirs], out / "scores-curves.png"):
        report.notes.append(f"learning curves: {path}")


def in_words(values: dict[int, float], target: Target | None = None) -> str:
    """Mean, spread and interquartile mean of some seeds' scores, and each; and whether the mean is the target."""
    scores = np.array(list(values.values()))
    text = f"mean {number(scores.mean())} ± {number(scores.std())}"
    if target is not None:
        text += f" ({target}: {'yes' if target.met(scores.mean()) else 'no'})"
    if len(scores) > 1:
        middle = interval([scores], interquartile_mean)
        text += f", interquartile mean {number(middle.value)} (95 %: {number(middle.low)} to {number(middle.high)})"
    return f"{text}; " + ", ".join(f"seed {seed} {number(value)}" for seed, value in values.items())


def _read(path: Path) -> dict:
    """A JSON file; nothing where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}
