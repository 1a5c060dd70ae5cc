"""`eval RUN_DIR`: how good the newest policy is, acting with the mode of its distribution and frozen statistics."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from actors.episodes import play_episodes
from commands.runs import Run
from learner.checkpoint import policy_snapshot
from protocol.errors import UserError
from protocol.files import replace_file
from protocol.lifeline import SUCCESS


@dataclass(frozen=True)
class EvalCommand:
    """Evaluate the newest policy of a run, or its best, and write RUN_DIR/eval.json.

    Example:
      python launch.py eval runs/CartPole-v1-seed0 --episodes 100
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Directory of the run."""
    episodes: int = 20
    """Episodes to play."""
    best: bool = False
    """Evaluate the best policy by the evaluations during training (--eval-every), not the newest."""


def main(arguments: list[str]) -> int:
    """Evaluate as the command line says; returns the exit code."""
    command = tyro.cli(EvalCommand, prog="launch.py eval", args=arguments)
    if command.episodes < 1:
        raise UserError(f"--episodes must be at least 1, not {command.episodes}")
    run = Run.open(command.run_dir)
    checkpoint = run.checkpoint(command.best)
    returns, lengths = zip(
        *play_episodes(run.config.experiment, policy_snapshot(checkpoint), command.episodes), strict=True
    )
    result = {
        "policy_version": checkpoint.policy_version,
        "episodes": command.episodes,
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "returns": returns,
        "lengths": lengths,
    }
    try:
        replace_file(run.path / "eval.json", json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{run.path / 'eval.json'} cannot be written: {error.strerror}") from None
    print(
        f"return {result['return_mean']:.2f} ± {result['return_std']:.2f} over {command.episodes} episodes"
        f" (length {np.mean(lengths):.1f}), policy version {checkpoint.policy_version}"
    )
    return SUCCESS
