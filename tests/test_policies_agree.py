"""The policy in NumPy and the policy in MLX are one policy."""

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.policy import Policy
from learner.activations import rational_tanh, tanh_for
from learner.model import ActorCritic
from learner.normalization import RunningStatistics
from protocol.experiment import Experiment
from protocol.snapshot import PolicySnapshot, normalize
from protocol.spaces import BoxSpace, Spaces

BLOCK = 8


def make_spaces(observation_shape: tuple[int, ...], discrete: bool, size: int) -> Spaces:
    observation = BoxSpace(observation_shape, "float32")
    if discrete:
        return Spaces(observation, BoxSpace((), "int64"), "categorical", size)
    return Spaces(observation, BoxSpace((size,), "float32"), "gaussian", size)


def make_model(spaces: Spaces, hidden_sizes: tuple[int, ...], random: np.random.Generator) -> ActorCritic:
    """A model with weights of the size that training gives, and biases and standard deviations that are not trivial."""
    model = ActorCritic(spaces, Experiment(hidden_sizes=hidden_sizes))
    weights = {}
    for name, array in model.named_parameters():
        scale = 1.5 / math.sqrt(array.shape[-1]) if name.endswith("weight") else 0.5
        weights[name] = (scale * random.standard_normal(array.shape)).astype(np.float32)
    if "log_std" in weights:
        weights["log_std"] = np.clip(weights["log_std"], -1, 1)
    model.load_state_dict(weights)
    return model


def make_snapshot(model: ActorCritic, statistics: RunningStatistics) -> PolicySnapshot:
    weights = {name: np.array(array) for name, array in model.named_parameters() if not name.startswith("value.")}
    return PolicySnapshot(0, weights, *statistics.normalization())


def make_statistics(shape: tuple[int, ...], random: np.random.Generator) -> RunningStatistics:
    statistics = RunningStatistics(shape)
    statistics.update(3 * random.standard_normal((50, *shape)) + 2)
    return statistics


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    hidden_sizes=st.lists(st.integers(1, 32), max_size=3).map(tuple),
    observation_shape=st.sampled_from([(), (1,), (5,), (2, 3)]),
    discrete=st.booleans(),
    size=st.integers(1, 4),
    normalized=st.booleans(),
)
def test_numpy_and_mlx_compute_the_same_policy(
    seed: int,
    hidden_sizes: tuple[int, ...],
    observation_shape: tuple[int, ...],
    discrete: bool,
    size: int,
    normalized: bool,
) -> None:
    random = np.random.default_rng(seed)
    spaces = make_spaces(observation_shape, discrete, size)
    model = make_model(spaces, hidden_sizes, random)
    snapshot = make_snapshot(model, make_statistics(observation_shape, random))
    policy = Policy(snapshot, spaces, normalize_observations=normalized)

    observations = (2 * random.standard_normal((BLOCK, *observation_shape))).astype(np.float32)
    actions, parameters = policy.act(observations, policy.draw_noise(random, (BLOCK,)))
    inputs = observations
    if normalized:
        inputs = normalize(observations, snapshot.observation_mean, snapshot.observation_scale)
    inputs = mx.array(inputs.reshape(BLOCK, -1))

    np.testing.assert_allclose(parameters, np.array(model.policy(inputs)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        policy.log_prob(parameters, actions),
        np.array(model.distribution(inputs).log_prob(mx.array(actions))),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("discrete", [True, False])
def test_the_same_block_gives_the_same_bits_twice(discrete: bool) -> None:
    random = np.random.default_rng(0)
    spaces = make_spaces((5,), discrete, 3)
    snapshot = make_snapshot(make_model(spaces, (64, 64), random), make_statistics((5,), random))
    observations = random.standard_normal((BLOCK, 5), np.float32)
    one, other = (Policy(snapshot, spaces, normalize_observations=True).forward(observations) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_acting_leaves_the_observations_alone() -> None:
    random = np.random.default_rng(0)
    spaces = make_spaces((5,), True, 3)
    snapshot = make_snapshot(make_model(spaces, (4,), random), make_statistics((5,), random))
    observations = random.standard_normal((BLOCK, 5), np.float32)
    before = observations.copy()
    Policy(snapshot, spaces, normalize_observations=True).forward(observations)
    np.testing.assert_array_equal(observations, before)


def test_the_mode_is_the_action_without_noise() -> None:
    random = np.random.default_rng(0)
    for discrete in (True, False):
        spaces = make_spaces((5,), discrete, 3)
        snapshot = make_snapshot(make_model(spaces, (4,), random), make_statistics((5,), random))
        policy = Policy(snapshot, spaces, normalize_observations=False)
        observations = random.standard_normal((BLOCK, 5), np.float32)
        actions, _ = policy.act(observations, np.zeros((BLOCK, 3), np.float32))
        np.testing.assert_array_equal(policy.mode(observations), actions)


def test_the_rational_tanh_is_off_by_less_than_4e_7() -> None:
    x = np.linspace(-20, 20, 200_001, dtype=np.float32)
    error = np.abs(np.array(rational_tanh(mx.array(x)), np.float64) - np.tanh(x.astype(np.float64)))
    assert error.max() < 4e-7


def test_the_rational_tanhs_gradient_is_one_minus_its_square() -> None:
    x = np.linspace(-20, 20, 2001, dtype=np.float32)
    tanh = tanh_for(mx.Device(mx.cpu))
    gradient = mx.grad(lambda a: tanh(a).sum())(mx.array(x))
    np.testing.assert_allclose(np.array(gradient), 1 - np.tanh(x.astype(np.float64)) ** 2, atol=1e-6)


def test_the_cpu_takes_the_rational_tanh_and_the_gpu_its_own() -> None:
    assert tanh_for(mx.Device(mx.cpu)) is rational_tanh
    assert tanh_for(mx.Device(mx.gpu)) is mx.tanh
