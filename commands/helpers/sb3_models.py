"""What is in a model of Stable-Baselines3: a zip file, of which nothing is unpickled."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from commands.helpers.torch_files import MAX_FILE, read_member, read_tensors
from protocol.errors import UserError

ACTIVATIONS = {"Tanh": "tanh", "ReLU": "relu", "SiLU": "silu"}
LAYER = re.compile(r"mlp_extractor\.policy_net\.(\d+)\.weight")
MAX_SETTINGS = 2**23  # A model's settings, which hold the last observations, may have so many bytes.
CRITIC = ("mlp_extractor.value_net.", "value_net.")


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


def critic_weights(tensors: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """The critic's weights by our names, for as many hidden layers; raises `ValueError` unless it has them."""
    names = {f"mlp_extractor.value_net.{2 * i}": f"value_encoder.layers.{i}" for i in range(layers)}
    names["value_net"] = "value_head"
    pairs = [(f"{theirs}.{kind}", f"{ours}.{kind}") for theirs, ours in names.items() for kind in ("weight", "bias")]
    found = {ours: tensors[theirs] for theirs, ours in pairs if theirs in tensors}
    other = [name for name in tensors if name.startswith(CRITIC) and name not in dict(pairs)]
    if other or len(found) < len(pairs):
        raise ValueError("its critic has other layers than its policy")
    return found
