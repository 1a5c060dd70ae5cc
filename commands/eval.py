"""`eval RUN_DIR`: how good the newest policy is, acting with the mode of its distribution and frozen statistics."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from actors.environment import (
    ActionConverter,
    ObservationConverter,
    describe_spaces,
    make_environment,
    reset_environment,
)
from actors.policy import Policy
from learner.checkpoint import Checkpoint, load_newest_checkpoint, policy_weights, understood
from learner.config import RunConfig
from learner.normalization import RunningStatistics
from protocol.errors import UserError
from protocol.files import replace_file
from protocol.lifeline import SUCCESS
from protocol.randomness import Purpose, environment_seed
from protocol.snapshot import PolicySnapshot, part_of


@dataclass(frozen=True)
class EvalCommand:
    """Evaluate the newest policy of a run and write RUN_DIR/eval.json.

    Example:
      python launch.py eval runs/CartPole-v1-seed0 --episodes 100
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Directory of the run."""
    episodes: int = 20
    """Episodes to play."""


def main(arguments: list[str]) -> int:
    """Evaluate as the command line says; returns the exit code."""
    command = tyro.cli(EvalCommand, prog="launch.py eval", args=arguments)
    if command.episodes < 1:
        raise UserError(f"--episodes must be at least 1, not {command.episodes}")
    if not (command.run_dir / "config.json").exists():
        raise UserError(f"eval {command.run_dir}: there is no run here (no config.json)")
    config = RunConfig.load(command.run_dir / "config.json")
    checkpoint = load_newest_checkpoint(command.run_dir / "checkpoints", lambda text: print(f"warning: {text}"))
    if checkpoint is None:
        raise UserError(f"{command.run_dir} has no checkpoint that can be read")
    returns, lengths = evaluate(config, checkpoint, command.episodes)
    result = {
        "policy_version": checkpoint.policy_version,
        "episodes": command.episodes,
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "returns": returns,
        "lengths": lengths,
    }
    try:
        replace_file(command.run_dir / "eval.json", json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{command.run_dir / 'eval.json'} cannot be written: {error.strerror}") from None
    print(
        f"return {result['return_mean']:.2f} ± {result['return_std']:.2f} over {command.episodes} episodes"
        f" (length {np.mean(lengths):.1f}), policy version {checkpoint.policy_version}"
    )
    return SUCCESS


def evaluate(config: RunConfig, checkpoint: Checkpoint, episodes: int) -> tuple[list[float], list[int]]:
    """(returns, lengths) of `episodes` episodes, each with a seed that training never uses."""
    experiment = config.experiment
    env = make_environment(experiment)
    spaces = describe_spaces(env, experiment)
    with understood(checkpoint):
        policy = Policy(policy_snapshot(checkpoint), spaces, experiment)
        shape, size = spaces.observation.shape, experiment.recurrent_size
        policy.mode(np.zeros((1, *shape), spaces.observation.dtype), np.zeros((1, size), np.float32))
    convert, store = ActionConverter(env.action_space), ObservationConverter(env.observation_space, spaces)
    returns, lengths = [], []
    for episode in range(episodes):
        if experiment.rebuild_env and episode:
            env.close()
            env = make_environment(experiment)
        observation = reset_environment(env, environment_seed(experiment.seed, Purpose.EVALUATION_SEED, 0, episode))
        memory = np.zeros((1, experiment.recurrent_size), np.float32)
        total, length, over = 0.0, 0, False
        while not over and length < experiment.replay_cap:
            actions, memory = policy.mode(store(observation)[None], memory)
            (action,) = convert(actions)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, length, over = total + float(reward), length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    env.close()
    return returns, lengths


def policy_snapshot(checkpoint: Checkpoint) -> PolicySnapshot:
    """The policy that a checkpoint holds, as actors receive it."""
    arrays = checkpoint.arrays
    statistics = RunningStatistics(arrays["statistics.mean"].shape)
    statistics.load_state_dict(part_of(arrays, "statistics."))
    return PolicySnapshot(checkpoint.policy_version, policy_weights(arrays), *statistics.normalization())
