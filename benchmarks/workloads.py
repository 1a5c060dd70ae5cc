"""Synthetic experience, which replaces environments in measurements of the learner."""

import math
from dataclasses import dataclass

import numpy as np

from protocol.experiment import Experiment
from protocol.spaces import BoxSpace, ObservationPart, Spaces
from protocol.trajectory import DIGEST_SIZE, Trajectory

MINIBATCHES = 4
SHAPES = {"mlp": (4,), "nature_cnn": (84, 84, 4)}
DTYPES = {"mlp": "float32", "nature_cnn": "uint8"}
ACTIONS = 2
EPISODE_LENGTH = 200


@dataclass(frozen=True)
class Workload:
    """The work of one iteration of PPO: a network, and a batch of four minibatches."""

    network: str  # mlp or nature_cnn
    hidden: int  # Units of each of the MLP's two hidden layers, or of the CNN's hidden layer.
    minibatch: int  # Samples in a minibatch.

    @property
    def name(self) -> str:
        return {"mlp": f"MLP {self.hidden}", "nature_cnn": "Nature CNN"}[self.network]

    @property
    def batch(self) -> int:
        return MINIBATCHES * self.minibatch

    @property
    def spaces(self) -> Spaces:
        return spaces_of(SHAPES[self.network], DTYPES[self.network])

    @property
    def experiment(self) -> Experiment:
        """An experiment with a single lane, whose rollout is the whole batch."""
        num_envs = math.gcd(self.batch, 64)
        return Experiment(
            num_envs=num_envs,
            lane_size=num_envs,
            rollout_length=self.batch // num_envs,
            network=self.network,
            hidden_sizes=(self.hidden,) * (2 if self.network == "mlp" else 1),
            normalize_observations=False,
        )


def spaces_of(shape: tuple[int, ...], dtype: str) -> Spaces:
    """Spaces with one observation of this shape, which is an image if `dtype` is uint8, and two discrete actions."""
    part = ObservationPart("image" if dtype == "uint8" else "numbers", BoxSpace(shape, dtype), ())
    return Spaces(part.box, (part,), BoxSpace((), "int64"), "categorical", (ACTIONS,))


def trajectory(spaces: Spaces, experiment: Experiment, lane: int, rollout_index: int) -> Trajectory:
    """A rollout of a lane with random contents that passes the learner's checks."""
    random = np.random.default_rng(lane)
    t, n = experiment.rollout_length, experiment.lane_size
    shape, dtype = spaces.observation.shape, np.dtype(spaces.observation.dtype)

    def observations(*leading: int) -> np.ndarray:
        if dtype == np.uint8:
            return random.integers(256, size=(*leading, *shape), dtype=np.uint8)
        return random.standard_normal((*leading, *shape)).astype(dtype)

    terminated = random.random((t, n)) < 1 / EPISODE_LENGTH
    episodes = int(terminated.sum())
    return Trajectory(
        run_id="benchmark",
        lane=lane,
        rollout_index=rollout_index,
        policy_version=rollout_index,
        fencing_token=0,
        observations=observations(t, n),
        last_observations=observations(n),
        actions=random.integers(ACTIONS, size=(t, n)),
        behaviour_log_probs=np.full((t, n), -math.log(ACTIONS), np.float32),
        rewards=random.standard_normal((t, n)).astype(np.float32),
        terminated=terminated,
        truncated=np.zeros((t, n), bool),
        final_observations=observations(0),
        episode_returns=np.ones(episodes),
        episode_lengths=np.full(episodes, EPISODE_LENGTH),
        episode_indices=np.zeros(n, np.int64),
        restarted=np.zeros(n, bool),
        failed_resets=np.zeros(n, np.int64),
        digests=np.zeros((n, DIGEST_SIZE), np.uint8),
        extras={},
        faults=(),
        fault_count=0,
        moved_global_random=False,
    )
