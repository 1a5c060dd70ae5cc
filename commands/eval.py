"""`eval`: how good a policy is, acting with the mode of its distribution and frozen statistics."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from actors.episodes import play_episodes
from commands.command_line import parse
from commands.policies import open_policy
from protocol.errors import UserError
from protocol.files import replace_file
from protocol.lifeline import SUCCESS


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
    """Import the modules that a file names, for an environment, a wrapper or a network that is not a library's."""


def main(arguments: list[str]) -> int:
    """Evaluate as the command line says; returns the exit code."""
    command = parse(EvalCommand, "launch.py eval", arguments)
    if command.episodes < 1:
        raise UserError(f"--episodes must be at least 1, not {command.episodes}")
    experiment, snapshot = open_policy(command.policy, command.best, command.trust)
    returns, lengths = zip(*play_episodes(experiment, snapshot, command.episodes), strict=True)
    result = {
        "policy_version": snapshot.policy_version,
        "episodes": command.episodes,
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "returns": returns,
        "lengths": lengths,
    }
    if command.policy.is_dir():
        path = command.policy / "eval.json"
        try:
            replace_file(path, json.dumps(result, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
    print(
        f"return {result['return_mean']:.2f} ± {result['return_std']:.2f} over {command.episodes} episodes"
        f" (length {np.mean(lengths):.1f}), policy version {snapshot.policy_version}"
    )
    return SUCCESS
