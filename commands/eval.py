"""`eval`: how good a policy is, acting with the mode of its distribution and frozen statistics."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from actors.closing import end_if_stuck
from actors.episodes import Results, playing
from actors.simulation import EnvironmentFault
from commands.helpers.command_line import parse
from commands.helpers.policies import open_policy
from protocol.errors import UserError
from protocol.files import replace_file
from protocol.lifeline import FAILURE, SUCCESS
from protocol.output import complain, say
from rundir.episode_metrics import in_words


@dataclass(frozen=True)
class EvalCommand:
    """Evaluate the newest policy of a run and write RUN_DIR/eval.json, or an exported policy.

    Examples:
      python launch.py eval runs/CartPole-v1-seed0 --episodes 100
      python launch.py eval policy.safetensors
    """

    policy: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="POLICY")]
    """Directory of a run, or a file that `export` or `import-sb3` wrote."""
    episodes: int = 20
    """Episodes to play."""
    best: bool = False
    """Evaluate the best policy by the evaluations during training (--eval-every), not the newest."""
    trust: bool = False
    """Import the modules that a file, or another user's run, names for an environment, a wrapper or a network."""


def main(arguments: list[str]) -> int:
    """Evaluate as the command line says; returns the exit code."""
    command = parse(EvalCommand, "launch.py eval", arguments)
    if command.episodes < 1:
        raise UserError(f"--episodes must be at least 1, not {command.episodes}")
    run_dir = command.policy.absolute() if command.policy.is_dir() else None  # an environment may change directory
    try:
        experiment, snapshot = open_policy(command.policy, command.best, command.trust)
        with playing(experiment, snapshot, command.episodes) as scores:
            # Kept and told before the environment is closed, since that may be the end of the process.
            found = Results.of(scores)
            code = _tell(found, snapshot.policy_version, run_dir, experiment.env)
            end_if_stuck(code)
        return code
    except EnvironmentFault as fault:
        complain(f"launch.py: {command.policy}: its environment cannot be made: {fault}")
        return FAILURE


def _tell(found: Results, version: int, run_dir: Path | None, env: str) -> int:
    """Write and print what was found; returns the exit code."""
    counted, statistics = len(found.returns), found.statistics()
    result = {"policy_version": version, "episodes": counted, **statistics, **found._asdict()}
    if run_dir is not None:
        path = run_dir / "eval.json"
        try:
            replace_file(path, json.dumps(result, indent=2, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
    faults = ""
    if found.faults:
        first = found.faults[0]
        count = f"{len(found.faults)} of {counted + len(found.faults)} episodes"
        faults = (
            f"{count} ended in a fault; the first, with seed {first['seed']}, at step {first['step']}: {first['text']}"
        )
    if not counted:
        complain(f"launch.py: {env}: {faults}")
        return FAILURE
    say(
        f"return {statistics['return_mean']:.2f} ± {statistics['return_std']:.2f} over {counted} episodes"
        f" (length {np.mean(found.lengths):.1f}), policy version {version}"
    )
    if metrics := in_words(statistics):
        say(", ".join(metrics))
    if faults:
        say(faults)
    return SUCCESS
