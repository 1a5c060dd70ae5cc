"""Make spaces, models, snapshots and batches for several tests."""

import math
from dataclasses import fields, replace

import mlx.core as mx
import numpy as np

from learner.batch import Batch
from learner.distributions import Distribution
from learner.model import ActorCritic
from protocol.experiment import Experiment
from protocol.observations import normalized_size
from protocol.snapshot import PolicySnapshot
from protocol.spaces import BoxSpace, ObservationPart, Spaces
from protocol.trajectory import AXES, EPISODE, EXTRAS, Trajectory


def numbers(*shape: int, dtype: str = "float32") -> ObservationPart:
    return ObservationPart("numbers", BoxSpace(shape, dtype), ())


def discrete(part: ObservationPart, *choices: int) -> Spaces:
    """Spaces with one observation part, and one discrete action for each of `choices`, which are numbers of choices."""
    action = BoxSpace((len(choices),) if len(choices) > 1 else (), "int64")
    return Spaces(part.box, (part,), action, "categorical", choices)


def continuous(part: ObservationPart, *shape: int) -> Spaces:
    """Spaces with one observation part, and a Box of actions."""
    return Spaces(part.box, (part,), BoxSpace(shape, "float32"), "gaussian", ())


def binary(part: ObservationPart, *shape: int) -> Spaces:
    """Spaces with one observation part, and actions of bits."""
    return Spaces(part.box, (part,), BoxSpace(shape, "int8"), "bernoulli", ())


def trained_model(spaces: Spaces, experiment: Experiment, random: np.random.Generator) -> ActorCritic:
    """A model with weights as large as after training, nonzero biases, and standard deviations other than 1."""
    model = ActorCritic(spaces, experiment)
    weights = {}
    for name, array in model.named_parameters():
        gain = 0.8 if array.ndim == 4 else 1.5  # Larger gains would make outputs explode over many convolutions.
        scale = gain / math.sqrt(array.size / len(array)) if name.endswith("weight") else 0.5
        weights[name] = (scale * random.standard_normal(array.shape)).astype(np.float32)
    if "log_std" in weights:
        weights["log_std"] = np.clip(weights["log_std"], -1, 1)
    model.load_state_dict(weights)
    return model


def snapshot_of(
    model: ActorCritic, normalization: tuple[np.ndarray, np.ndarray] | None = None, version: int = 0
) -> PolicySnapshot:
    """The policy of `model` as actors receive it; observations are not normalized unless `normalization` is given."""
    weights = {name: np.array(dict(model.named_parameters())[name]) for name in model.policy_names}
    size = normalized_size(model.spaces.parts)
    return PolicySnapshot(version, weights, *(normalization or (np.zeros(size, np.float32), np.ones(size, np.float32))))


def with_array(trajectory: Trajectory, name: str, array: np.ndarray) -> Trajectory:
    """A copy of `trajectory` whose array `name`, an extra or not, is replaced."""
    if name in EXTRAS or name.startswith(EPISODE):
        return replace(trajectory, extras={**trajectory.extras, name: array})
    return replace(trajectory, **{name: array})


def assert_same_bits(one: Trajectory, other: Trajectory) -> None:
    assert one.extras.keys() == other.extras.keys()
    for name in {*(name for name in AXES if one.has(name)), *one.extras}:
        mine, theirs = one.array(name), other.array(name)
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        assert mine.tobytes() == theirs.tobytes(), name
    for name in (field.name for field in fields(Trajectory) if field.type not in (np.ndarray, dict[str, np.ndarray])):
        assert getattr(one, name) == getattr(other, name)


def spoken(model: ActorCritic, inputs: list[np.ndarray]) -> tuple[Distribution, mx.array]:
    """(distribution, values) of a model without a recurrent layer."""
    none = mx.zeros((0,))
    distribution, values, _ = model([mx.array(x) for x in inputs], none, none)
    return distribution, values


def batch_of(
    random: np.random.Generator, observations: np.ndarray, actions: np.ndarray, log_probs: np.ndarray, version: int
) -> Batch:
    """A batch with these observations [T + 1, N, size] and actions, random rewards, and both kinds of episode ends."""
    length, num_envs, size = len(observations) - 1, *observations.shape[1:]
    ends = random.permutation(length * num_envs).reshape(length, num_envs)
    return Batch(
        observations=observations[:-1],
        last_observations=observations[-1],
        final_observations=random.standard_normal((3, size)).astype(np.float32),
        actions=actions,
        behaviour_log_probs=log_probs.reshape(length, num_envs),
        rewards=random.standard_normal((length, num_envs)).astype(np.float32),
        terminated=ends < 3,
        truncated=(ends >= 3) & (ends < 6),
        extras={},
        episode_returns=np.zeros(6),
        episode_lengths=np.ones(6, np.int64),
        environments=np.arange(num_envs),
        policy_versions=np.full(num_envs, version),
    )
