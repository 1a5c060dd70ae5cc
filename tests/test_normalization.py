"""Running statistics of observations, and what is done with them on both sides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.policy import Policy
from learner.normalization import RunningStatistics
from protocol.snapshot import PolicySnapshot, normalize
from protocol.spaces import BoxSpace, Spaces


def statistics_of(pieces: list[np.ndarray]) -> RunningStatistics:
    statistics = RunningStatistics(pieces[0].shape[1:])
    for piece in pieces:
        statistics.update(piece)
    return statistics


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    shape=st.sampled_from([(), (3,), (2, 2)]),
    offset=st.sampled_from([0.0, 1000.0]),
)
def test_pieces_of_any_size_merge_into_the_statistics_of_all(
    seed: int, sizes: list[int], shape: tuple[int, ...], offset: float
) -> None:
    samples = (offset + np.random.default_rng(seed).standard_normal((sum(sizes), *shape))).astype(np.float32)
    statistics = statistics_of(np.split(samples, np.cumsum(sizes)[:-1]))
    everything = samples.astype(np.float64)
    assert statistics.count == len(samples)
    np.testing.assert_allclose(statistics.mean, everything.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(statistics.variance, everything.var(axis=0), rtol=1e-9, atol=1e-12)


def test_the_variance_is_one_before_the_first_sample() -> None:
    statistics = RunningStatistics((3,))
    np.testing.assert_array_equal(statistics.variance, np.ones(3))
    mean, scale = statistics.normalization()
    np.testing.assert_array_equal(mean, np.zeros(3))
    np.testing.assert_array_equal(scale, np.ones(3))


def test_a_constant_feature_becomes_zero() -> None:
    samples = np.full((64, 2), 0.1, np.float32)
    mean, scale = statistics_of([samples, samples]).normalization()
    assert np.isfinite(scale).all()
    np.testing.assert_array_equal(normalize(samples, mean, scale), np.zeros_like(samples))


def test_normalised_samples_have_mean_zero_and_standard_deviation_one() -> None:
    samples = np.random.default_rng(0).normal([5, -3], [0.1, 20], (2000, 2)).astype(np.float32)
    normalized = normalize(samples, *statistics_of([samples]).normalization())
    np.testing.assert_allclose(normalized.mean(axis=0), [0, 0], atol=1e-4)
    np.testing.assert_allclose(normalized.std(axis=0), [1, 1], atol=1e-4)


def test_far_observations_are_clipped_to_ten_standard_deviations() -> None:
    observations = np.array([[-1e6], [1e6]], np.float32)
    mean, scale = np.zeros(1, np.float32), np.ones(1, np.float32)
    np.testing.assert_array_equal(normalize(observations, mean, scale), [[-10], [10]])


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_normalising_leaves_the_observations_alone(dtype: str) -> None:
    observations = np.arange(6).reshape(2, 3).astype(dtype)
    before = observations.copy()
    assert normalize(observations, np.ones(3, np.float32), np.ones(3, np.float32)).dtype == np.float32
    np.testing.assert_array_equal(observations, before)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_actor_and_learner_normalise_to_the_same_bits(dtype: str) -> None:
    random = np.random.default_rng(0)
    shape = (2, 3)
    observations = random.integers(0, 255, (50, *shape)).astype(dtype)
    mean, scale = statistics_of([random.normal(100, 15, (50, *shape))]).normalization()
    identity = {"policy.layers.0.weight": np.eye(6, dtype=np.float32), "policy.layers.0.bias": np.zeros(6, np.float32)}
    spaces = Spaces(BoxSpace(shape, dtype), BoxSpace((), "int64"), "categorical", 6)
    policy = Policy(PolicySnapshot(0, identity, mean, scale), spaces, normalize_observations=True)
    expected = normalize(observations, mean, scale).reshape(50, -1)
    assert 0 < (np.abs(expected) == 10).mean() < 0.9
    np.testing.assert_array_equal(policy.forward(observations), expected)
