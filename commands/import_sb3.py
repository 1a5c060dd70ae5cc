"""`import-sb3`: the policy of a Stable-Baselines3 model as a file like those that `export` writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from actors.exported import Description, ExportedPolicy, check_target, save_policy
from commands.helpers.command_line import parse
from commands.helpers.policies import describe
from commands.helpers.sb3_models import activation, policy_weights, read_model
from commands.helpers.vecnormalize import Statistics, read_statistics
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.lifeline import SUCCESS
from protocol.observations import InputShapes, normalized_size
from protocol.output import say
from protocol.snapshot import PolicySnapshot
from protocol.text import one_line


@dataclass(frozen=True)
class ImportCommand:
    """Read the policy of a Stable-Baselines3 model (PPO or A2C with MlpPolicy) for `eval`, `play`, `export` and
    `actors.exported.load_policy`. Nothing in it is unpickled. The statistics of VecNormalize are in a file of their
    own, and a policy that was trained with them acts badly without: give it as --vecnormalize.

    Example:
      python launch.py import-sb3 ppo_cartpole.zip policy.safetensors --env CartPole-v1
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The zip file that model.save wrote."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """File to write; an exported policy that is there is replaced, and nothing else is."""
    env: str
    """Gymnasium environment id that it was trained in, or `module:EnvId` of a module that registers it."""
    vecnormalize: Path | None = None
    """The file that VecNormalize.save wrote, if the model was trained in one."""
    env_kwargs: tuple[str, ...] = ()
    """Keyword arguments of the environment, `name=value` each."""
    wrapper: tuple[str, ...] = ()
    """Wrappers around it, from the inside out: `module:Class`, or `module:Class(name=value, …)`."""


def main(arguments: list[str]) -> int:
    """Import as the command line says; returns the exit code."""
    command = parse(ImportCommand, "launch.py import-sb3", arguments)
    check_target(command.out)
    try:
        statistics = read_statistics(command.vecnormalize) if command.vecnormalize is not None else None
        tensors, settings = read_model(command.model)
        weights, hidden_sizes = policy_weights(tensors)
        experiment = Experiment(
            env=command.env,
            env_kwargs=command.env_kwargs,
            wrapper=command.wrapper,
            network="mlp",
            hidden_sizes=hidden_sizes,
            activation=activation(settings),  # pyright: ignore[reportArgumentType]
            normalize_observations=statistics is not None,
        )
        description = describe(experiment, policy_version=0)
        policy = fitted(description, weights, statistics)
    except ValueError as error:
        raise UserError(f"{command.model} cannot be imported: {one_line(error)}") from None
    try:
        save_policy(command.out, description, policy.snapshot)
    except OSError as error:
        raise UserError(f"{command.out} cannot be written: {error.strerror}") from None
    say(f"{command.out}: a policy with layers of {' '.join(map(str, hidden_sizes)) or 'none'} for {command.env}")
    return SUCCESS


def fitted(
    description: Description, weights: dict[str, np.ndarray], statistics: Statistics | None = None
) -> ExportedPolicy:
    """The policy with these weights; raises `ValueError` unless they are of the sizes that the environment asks for."""
    spaces, experiment = description.spaces, description.experiment
    if len(spaces.parts) > 1 or description.observation.paths != ((),):
        raise ValueError(f"{experiment.env} has an observation of several parts, which no MlpPolicy takes")
    box = spaces.observation
    if any(map(any, description.observation.starts)) or any(description.action.start):
        raise ValueError(f"{experiment.env} counts choices from other numbers than 0, as Stable-Baselines3 cannot")
    if box.dtype == "uint8" and len(box.shape) == 3:
        raise ValueError(f"{experiment.env} shows images, which Stable-Baselines3 scales as this MLP does not")
    sizes = [InputShapes.of(spaces.parts).vector, *(experiment.hidden_sizes or ()), spaces.distribution_size]
    layers = [f"encoder.layers.{i}" for i in range(len(sizes) - 2)] + ["policy_head"]
    wanted: dict[str, tuple[int, ...]] = {}
    for name, inputs, outputs in zip(layers, sizes, sizes[1:], strict=False):
        wanted |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    if spaces.distribution == "gaussian":
        wanted["log_std"] = (spaces.distribution_size,)
    found = {name: array.shape for name, array in weights.items()}
    if found != wanted:
        differing = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
        texts = [f"{name} {_text(found.get(name))} instead of {_text(wanted.get(name))}" for name in differing]
        raise ValueError(f"it was made for other spaces than {experiment.env} has: {'; '.join(texts)}")
    size = normalized_size(spaces.parts)
    mean, scale = np.zeros(size, np.float32), np.ones(size, np.float32)
    if statistics is not None:
        if statistics.mean.size != size:
            raise ValueError(f"VecNormalize has statistics of {statistics.mean.size} numbers, and {size} are shown")
        mean, scale = statistics.mean.astype(np.float32), (1 / np.sqrt(statistics.variance)).astype(np.float32)
    return ExportedPolicy(description, PolicySnapshot(0, weights, mean, scale))


def _text(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(list(shape))
