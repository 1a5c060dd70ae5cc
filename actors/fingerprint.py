"""A fingerprint of this machine's arithmetic. Machines with equal fingerprints compute equal bits."""

import hashlib
import platform
import sys

import gymnasium
import numpy as np

from actors.networks import Convolution
from actors.policy import Policy
from protocol.experiment import Experiment
from protocol.process import hash_seed_is_fixed
from protocol.snapshot import PolicySnapshot
from protocol.spaces import BoxSpace, ObservationPart, Spaces

NATIVE = {  # The packages that parts of gymnasium compute with.
    "gymnasium.envs.box2d": "Box2D",
    "gymnasium.envs.mujoco": "mujoco",
    "gymnasium.wrappers.atari_preprocessing": "cv2",
}


def libraries_of(env: gymnasium.Env) -> dict[str, str]:
    """The versions, where packages tell theirs, of what an environment and its wrappers are made of."""
    layers, layer = [env], env
    while isinstance(layer, gymnasium.Wrapper):
        layer = layer.env
        layers.append(layer)
    modules = {kind.__module__ for layer in layers for kind in type(layer).__mro__}
    packages = {module.partition(".")[0] for module in modules} - {"gymnasium"}
    packages |= {library for part, library in NATIVE.items() if any(module.startswith(part) for module in modules)}
    loaded = {name: sys.modules[name] for name in sorted(packages) if name in sys.modules}
    return {name: str(module.__version__) for name, module in loaded.items() if hasattr(module, "__version__")}


def fingerprint() -> dict[str, str]:
    """Library versions, and a digest of a fixed forward pass through every operation a policy uses."""
    observation, action = BoxSpace((24,), "float32"), BoxSpace((4,), "float32")
    spaces = Spaces(observation, (ObservationPart("numbers", observation, ()),), action, "gaussian", ())
    random = np.random.Generator(np.random.Philox(key=1))
    shapes = {
        "encoder.layers.0": (64, 24),
        "encoder.layers.1": (64, 64),
        "gru.inputs": (96, 64),
        "gru.recurrent": (96, 32),
        "policy_head": (4, 32),
    }
    weights = {"log_std": random.standard_normal(4, np.float32)}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = random.standard_normal(shape, np.float32)
        weights[f"{name}.bias"] = random.standard_normal(shape[0], np.float32)
    snapshot = PolicySnapshot(0, weights, *random.standard_normal((2, 24), np.float32))
    policy = Policy(snapshot, spaces, Experiment(recurrent_size=32))
    digest = hashlib.blake2b(digest_size=8)
    hidden_state = np.zeros((8, 32), np.float32)
    for _ in range(8):
        noise = policy.draw_noise(random, (8,))
        actions, parameters, hidden_state = policy.act(random.standard_normal((8, 24), np.float32), hidden_state, noise)
        digest.update(actions.tobytes() + policy.log_prob(parameters, actions).tobytes())
    kernel = {"c.weight": random.standard_normal((32, 8, 8, 4), np.float32), "c.bias": np.zeros(32, np.float32)}
    images = random.standard_normal((8, 36, 36, 4), np.float32)
    digest.update(Convolution(kernel, "c", stride=4, padding=0)(images).tobytes())
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "gymnasium": gymnasium.__version__,
        "arithmetic": digest.hexdigest(),
        "hashing": "fixed" if hash_seed_is_fixed() else "random",
    }
