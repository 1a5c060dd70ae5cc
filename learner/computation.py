"""Device, libraries and settings of the learner. They decide the low bits of all weights, so a run keeps them."""

import ctypes
import hashlib
import math
import platform
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import mlx.core as mx
import numpy as np

from learner.device import choose_device, use_device
from learner.model import ActorCritic
from learner.objective import normalized
from learner.optimizer import Adam
from learner.ppo import computation_of
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.observations import network_inputs
from protocol.spaces import BoxSpace, ObservationPart, Spaces
from rundir.config import PPOConfig

UPDATES = 3
FIXED = ("num_envs", "lane_size")  # These say which lanes there are, and stay as a run began.


def computation(device: str, threads: int | None, tf32: bool) -> dict[str, str]:
    """By name: device, BLAS and its threads, whether kernels are fused, versions, and digests of small updates.

    The digests are those of a CPU alone: sums of a GPU differ from run to run.
    """
    record = {
        "device": device,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "mlx": metadata.version("mlx"),
    }
    if device == "cpu":
        record |= {
            "blas": _blas(),
            "threads": str(threads or 1),
            "kernels": "fused" if sys.platform != "linux" or shutil.which("g++") else "not fused",
            "arithmetic": update_digest(),
            "LSTMs": lstm_digest(),
        }
    else:
        record["tf32"] = "yes" if tf32 else "no"
    return record


class Conditions:
    """The learner's device, libraries and settings, and whether the run began with the same."""

    def __init__(self, device: str, settings: dict[str, Any], warn: Callable[[str], None]) -> None:
        """`device` may be `auto`, until `use` or `choose` decides. `settings` are all of the run."""
        self.device = device
        self.computation: dict[str, str] = {}  # Filled once the device is known.
        self.continued_elsewhere = False  # whether a learner that computes otherwise, or other settings, began the run
        self._settings = {name: str(value) for name, value in settings.items()}
        self._totals = (*settings["earlier_totals"], settings["total_steps"])
        self._threads, self._tf32 = settings["learner_threads"], settings["tf32"]
        self._warn = warn
        if device != "auto":
            self.use(device)

    @property
    def rounds(self) -> bool:
        """Whether the device rounds the factors of products."""
        return self._tf32 and self.device == "gpu"

    def use(self, device: str) -> None:
        """Compute on the CPU or the GPU from now on."""
        use_device(device)
        self.device = device
        self.computation = computation(device, self._threads, self._tf32)

    def choose(self, model: ActorCritic, samples: int) -> str:
        """Decide for the CPU or the GPU, by the network and the samples of a step; returns which and why, in words."""
        parameters = sum(array.size for array in model.parameters())
        has_images = any(array.ndim > 2 for array in model.parameters())
        device, why = choose_device(parameters, samples, has_images, model.recurrent)
        self.use(device)
        other = {"cpu": "gpu", "gpu": "cpu"}[device]
        return f"the learner computes on the {device.upper()}: {why}; --device {other} takes the other"

    def state_dict(self) -> dict[str, Any]:
        return {
            "learner": self.computation,
            "settings": self._settings,
            "continued_elsewhere": self.continued_elsewhere,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare with what the run began with, and warn of differences. Raises `UserError` where it cannot go on."""
        self.continued_elsewhere = state["continued_elsewhere"]
        # Checkpoints of older releases name only two things of the computation, and no settings.
        computation = state["learner"] if "learner" in state else {name: state[name] for name in ("mlx", "device")}
        if changes := _changes(self.computation, computation):
            self.continued_elsewhere = True
            self._warn(f"the learner goes on with {changes}: the run may not end with the same bits")
        settings = state.get("settings", {})
        if changes := _changes({name: self._settings[name] for name in FIXED}, settings):
            raise UserError(
                f"config.toml was edited, and has {changes}: the checkpoints hold other lanes. Put it back, or begin a"
                " new run with --config"
            )
        own = self._settings
        if self._has_more_steps(settings):
            own = {name: value for name, value in own.items() if name not in ("total_steps", "earlier_totals")}
        if changes := _changes(own, settings):
            self.continued_elsewhere = True
            self._warn(f"config.toml was edited, and the run goes on with {changes}: it is not reproducible any more")

    def _has_more_steps(self, theirs: dict[str, str]) -> bool:
        """Whether the run was given more steps than it had with these settings, and keeps its totals of then."""
        earlier, total = theirs.get("earlier_totals", "()"), theirs.get("total_steps")
        return any((str(self._totals[:i]), str(self._totals[i])) == (earlier, total) for i in range(len(self._totals)))


def _changes(ours: dict[str, str], theirs: dict[str, str]) -> str:
    """The differences of two records in words; empty if they are equal."""
    return ", ".join(f"{name} {ours[name]} instead of {theirs[name]}" for name in differences(ours, theirs))


def differences(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """The names of what differs, of what both records tell."""
    return [name for name in ours if name in theirs and ours[name] != theirs[name]]


def update_digest() -> str:
    """A digest of the weights that a few updates of two small networks lead to, on made-up data.

    One network is the built-in MLP, and the other has convolutions and a GRU. Models, loss and optimizer are those of
    training. They are not compiled here: each graph would cost a cold machine seconds.
    """
    box, action = BoxSpace((24,), "float32"), BoxSpace((4,), "float32")
    vector = Spaces(box, (ObservationPart("numbers", box, ()),), action, "gaussian", ())
    box = BoxSpace((36, 36, 1), "uint8")
    image = Spaces(box, (ObservationPart("image", box, ()),), action, "gaussian", ())
    digest = hashlib.blake2b(_weights_after(vector, Experiment(), (256,)).tobytes(), digest_size=8)
    digest.update(_weights_after(image, Experiment(network="nature_cnn", recurrent_size=8), (8, 2)).tobytes())
    return digest.hexdigest()


def lstm_digest() -> str:
    """The same for a network with an LSTM; a digest of its own, since older checkpoints do not have it."""
    box = BoxSpace((4,), "float32")
    spaces = Spaces(box, (ObservationPart("numbers", box, ()),), box, "gaussian", ())
    weights = _weights_after(spaces, Experiment(recurrent="lstm", recurrent_size=8), (8, 2))
    return hashlib.blake2b(weights.tobytes(), digest_size=8).hexdigest()


def _weights_after(spaces: Spaces, experiment: Experiment, lead: tuple[int, ...]) -> np.ndarray:
    """The weights after a few updates on samples of the leading shape `lead`."""
    model, config = ActorCritic(spaces, experiment), PPOConfig(value_clip_range=0.2)
    computation = computation_of(model, config)
    optimizer = Adam(model, config.max_grad_norm, computation.layout)
    optimizer.take_parameters()
    random = np.random.Generator(np.random.Philox(key=1))
    shape = math.prod(lead), *spaces.observation.shape
    for _ in range(UPDATES):
        if spaces.observation.dtype == "uint8":
            observations = random.integers(256, size=shape).astype(np.uint8)
        else:
            observations = random.standard_normal(shape, np.float32)
        inputs = [mx.array(x.reshape(*lead, *x.shape[1:])) for x in network_inputs(observations, spaces, None)]
        samples: dict[str, Any] = {
            "inputs": computation.prepare(inputs),
            "actions": mx.array(random.standard_normal((*lead, 4), np.float32)),
            "weights": mx.ones(lead),
        }
        names = ("proximal_log_probs", "advantages", "value_targets", "values")
        samples |= {name: mx.array(random.standard_normal(lead, np.float32)) for name in names}
        samples["proximal_log_probs"] = samples["proximal_log_probs"] / 4 - 5  # near those of the policy
        samples["advantages"] = normalized(samples["advantages"], minibatches=1)
        if model.recurrent:
            samples |= {"starts": mx.zeros(lead), "hidden_state": mx.zeros((lead[0], experiment.hidden_state_size))}
        gradient, _ = computation.gradients(optimizer.state[0], samples, mx.array(0.2), mx.array(0.01))
        optimizer.step(gradient, optimizer.begin_step(1e-3))
    return np.array(optimizer.state[0])


def _blas() -> str:
    """The BLAS that MLX calls, with the kind of processor that it took this machine for."""
    if sys.platform == "darwin":
        return f"Accelerate of macOS {platform.mac_ver()[0]}"
    try:
        config = ctypes.CDLL(None).openblas_get_config
    except AttributeError:
        return "MLX's own"
    config.restype = ctypes.c_char_p
    return config().decode(errors="replace").strip()
