"""`import-sb3`: the policy of a Stable-Baselines3 model as a file like those that `export` writes."""

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from actors.exported import Description, ExportedPolicy, check_target, save_policy
from commands.helpers.command_line import parse
from commands.helpers.policies import describe
from commands.helpers.torch_files import MAX_FILE, read_member, read_tensors
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.lifeline import SUCCESS
from protocol.observations import InputShapes, normalized_size
from protocol.output import say
from protocol.snapshot import PolicySnapshot
from protocol.text import one_line

ACTIVATIONS = {"Tanh": "tanh", "ReLU": "relu", "SiLU": "silu"}
LAYER = re.compile(r"mlp_extractor\.policy_net\.(\d+)\.weight")
MAX_SETTINGS = 2**23  # A model's settings, which hold the last observations, may have so many bytes.
CRITIC = ("mlp_extractor.value_net.", "value_net.")


@dataclass(frozen=True)
class ImportCommand:
    """Read the policy of a Stable-Baselines3 model (PPO or A2C with MlpPolicy) for `eval`, `play`, `export` and
    `actors.exported.load_policy`. Nothing in it is unpickled. The statistics of VecNormalize are not in such a file: a
    policy that was trained with them acts badly without.

    Example:
      python launch.py import-sb3 ppo_cartpole.zip policy.safetensors --env CartPole-v1
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The zip file that model.save wrote."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """File to write; an exported policy that is there is replaced, and nothing else is."""
    env: str
    """Gymnasium environment id that it was trained in, or `module:EnvId` of a module that registers it."""
    env_kwargs: tuple[str, ...] = ()
    """Keyword arguments of the environment, `name=value` each."""
    wrapper: tuple[str, ...] = ()
    """Wrappers around it, from the inside out: `module:Class`, or `module:Class(name=value, …)`."""


def main(arguments: list[str]) -> int:
    """Import as the command line says; returns the exit code."""
    command = parse(ImportCommand, "launch.py import-sb3", arguments)
    check_target(command.out)
    try:
        tensors, settings = read_model(command.model)
        weights, hidden_sizes = policy_weights(tensors)
        experiment = Experiment(
            env=command.env,
            env_kwargs=command.env_kwargs,
            wrapper=command.wrapper,
            network="mlp",
            hidden_sizes=hidden_sizes,
            activation=activation(settings),  # pyright: ignore[reportArgumentType]
            normalize_observations=False,
        )
        description = describe(experiment, policy_version=0)
        policy = fitted(description, weights)
    except ValueError as error:
        raise UserError(f"{command.model} cannot be imported: {one_line(error)}") from None
    try:
        save_policy(command.out, description, policy.snapshot)
    except OSError as error:
        raise UserError(f"{command.out} cannot be written: {error.strerror}") from None
    say(f"{command.out}: a policy with layers of {' '.join(map(str, hidden_sizes)) or 'none'} for {command.env}")
    return SUCCESS


def read_model(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(the policy's tensors by name, the model's settings as text); raises `ValueError` or `UserError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            tensors, settings = (
                read_tensors(read_member(archive, "policy.pth", MAX_FILE)),
                json.loads(read_member(archive, "data", MAX_SETTINGS)),
            )
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except zipfile.BadZipFile:
        raise ValueError("it is no zip file, as Stable-Baselines3 writes them") from None
    except RecursionError:
        raise ValueError("its settings are nested too deep") from None
    if not isinstance(settings, dict):
        raise ValueError("its settings are no map")
    return tensors, settings


def activation(settings: dict[str, Any]) -> str:
    """Our name of the activation; raises `ValueError` for another, and for settings that change what actions mean."""
    if settings.get("use_sde"):
        raise ValueError("it was trained with gSDE (use_sde), which is not supported")
    given = settings.get("policy_kwargs") or {}
    text = given.get("activation_fn", "Tanh") if isinstance(given, dict) else "Tanh"
    if not isinstance(text, str):
        raise ValueError("its activation has no name")
    name = text.rpartition(".")[2].rstrip("'>")  # From "<class 'torch.nn.modules.activation.ReLU'>".
    if name not in ACTIVATIONS:
        raise ValueError(f"its activation is {name:.40}; {', '.join(ACTIVATIONS)} are supported")
    return ACTIVATIONS[name]


def policy_weights(tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
    """(the policy's weights by our names, widths of its hidden layers); raises `ValueError` unless it is an MLP."""
    numbers = sorted(int(found[1]) for found in map(LAYER.fullmatch, tensors) if found)
    layers = {f"mlp_extractor.policy_net.{number}": f"encoder.layers.{i}" for i, number in enumerate(numbers)}
    layers["action_net"] = "policy_head"
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in layers.items() for kind in ("weight", "bias")}
    if missing := sorted(names.keys() - tensors.keys()):
        raise ValueError(f"it is no MlpPolicy of PPO or A2C: {', '.join(missing)} missing")
    if "log_std" in tensors:
        names["log_std"] = "log_std"
    if other := sorted(name for name in tensors.keys() - names.keys() if not name.startswith(CRITIC)):
        raise ValueError(f"it is no MlpPolicy of PPO or A2C: it has {', '.join(other)[:200]}")
    weights = {ours: tensors[theirs] for theirs, ours in names.items()}
    if any(weights[f"{ours}.weight"].ndim != 2 for ours in layers.values()):
        raise ValueError("it is no MlpPolicy of PPO or A2C: a layer's weights are no matrix")
    return weights, tuple(len(weights[f"encoder.layers.{i}.weight"]) for i in range(len(numbers)))


def fitted(description: Description, weights: dict[str, np.ndarray]) -> ExportedPolicy:
    """The policy with these weights; raises `ValueError` unless they are of the sizes that the environment asks for."""
    spaces, experiment = description.spaces, description.experiment
    if len(spaces.parts) > 1 or description.observation.paths != ((),):
        raise ValueError(f"{experiment.env} has an observation of several parts, which no MlpPolicy takes")
    box = spaces.observation
    if any(map(any, description.observation.starts)) or any(description.action.start):
        raise ValueError(f"{experiment.env} counts choices from other numbers than 0, as Stable-Baselines3 cannot")
    if box.dtype == "uint8" and len(box.shape) == 3:
        raise ValueError(f"{experiment.env} shows images, which Stable-Baselines3 scales as this MLP does not")
    sizes = [InputShapes.of(spaces).vector, *(experiment.hidden_sizes or ()), spaces.distribution_size]
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
    size = normalized_size(spaces)
    return ExportedPolicy(
        description, PolicySnapshot(0, weights, np.zeros(size, np.float32), np.ones(size, np.float32))
    )


def _text(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(list(shape))
