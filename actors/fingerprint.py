"""What two machines must share to compute the same bits."""

import hashlib
import itertools
import platform

import gymnasium
import numpy as np

from actors.policy import Policy
from protocol.snapshot import PolicySnapshot
from protocol.spaces import BoxSpace, Spaces


def fingerprint() -> dict[str, str]:
    """Library versions, and a digest of a fixed forward pass through every operation a policy uses."""
    spaces = Spaces(BoxSpace((24,), "float32"), BoxSpace((4,), "float32"), "gaussian", 4)
    random = np.random.Generator(np.random.Philox(key=1))
    sizes = [24, 64, 64, 4]
    weights = {"log_std": random.standard_normal(4, np.float32)}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weights[f"policy.layers.{i}.weight"] = random.standard_normal((outputs, inputs), np.float32)
        weights[f"policy.layers.{i}.bias"] = random.standard_normal(outputs, np.float32)
    snapshot = PolicySnapshot(0, weights, *random.standard_normal((2, 24), np.float32))
    policy = Policy(snapshot, spaces, normalize_observations=True)
    digest = hashlib.blake2b(digest_size=8)
    for _ in range(8):
        noise = policy.draw_noise(random, (8,))
        actions, parameters = policy.act(random.standard_normal((8, 24), np.float32), noise)
        digest.update(actions.tobytes() + policy.log_prob(parameters, actions).tobytes())
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "gymnasium": gymnasium.__version__,
        "arithmetic": digest.hexdigest(),
    }
