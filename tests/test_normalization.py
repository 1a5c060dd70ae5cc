"""Running statistics: of observations, for normalisation on both sides, and of returns, for scaling rewards."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import discrete, numbers

from actors.policy import Policy
from learner.normalization import RewardScaling, RunningStatistics
from protocol.experiment import Experiment
from protocol.observations import normalize
from protocol.snapshot import PolicySnapshot


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
    mean, scale = statistics_of([random.normal(100, 15, (50, 6))]).normalization()
    identity = {"policy_head.weight": np.eye(6, dtype=np.float32), "policy_head.bias": np.zeros(6, np.float32)}
    spaces = discrete(numbers(*shape, dtype=dtype), 6)
    policy = Policy(PolicySnapshot(0, identity, mean, scale), spaces, Experiment(hidden_sizes=()))
    expected = normalize(observations.reshape(50, 6), mean, scale)
    assert 0 < (np.abs(expected) == 10).mean() < 0.9
    np.testing.assert_array_equal(policy.forward(observations, np.zeros((50, 0), np.float32))[0], expected)


# Rewards

STEPS, ENVS, DISCOUNT = 5, 3, 0.9
EVERYONE = np.arange(ENVS)


def experience(seed: int, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """(rewards, ends of episodes), each [STEPS, ENVS]; the last environment's episode never ends."""
    random = np.random.default_rng(seed)
    done = random.random((STEPS, ENVS)) < 0.3
    done[:, -1] = False
    return (scale * random.standard_normal((STEPS, ENVS)) + 1).astype(np.float32), done


def literal_scaling(batches: list[tuple[np.ndarray, np.ndarray]]) -> list[list[list[float]]]:
    """The scaled rewards of all batches, computed environment by environment; each return counts once."""
    under_way, seen = [0.0] * ENVS, []
    scaled = []
    for rewards, done in batches:
        for n in range(ENVS):
            for t in range(STEPS):
                under_way[n] = DISCOUNT * under_way[n] + float(rewards[t, n])
                seen.append(under_way[n])
                if done[t, n]:
                    under_way[n] = 0.0
        mean = sum(seen) / len(seen)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in seen) / len(seen) + 1e-8)
        scaled.append([[min(max(float(r) / deviation, -10), 10) for r in row] for row in rewards])
    return scaled


def test_rewards_are_divided_by_the_deviation_of_all_returns_so_far() -> None:
    batches = [experience(seed) for seed in range(4)]
    assert any(done.any() for _, done in batches)
    scaling = RewardScaling(ENVS, DISCOUNT)
    for batch, expected in zip(batches, literal_scaling(batches), strict=True):
        scaled = scaling(*batch, EVERYONE)
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled, expected, rtol=1e-6, atol=1e-6)


def test_a_return_runs_on_from_one_batch_to_the_next() -> None:
    batches = [experience(0), experience(1)]
    whole, fresh = RewardScaling(ENVS, DISCOUNT), RewardScaling(ENVS, DISCOUNT)
    whole(*batches[0], EVERYONE)
    assert not np.allclose(whole(*batches[1], EVERYONE), fresh(*batches[1], EVERYONE))


def test_an_environment_with_several_columns_lived_them_from_left_to_right() -> None:
    rewards, done = experience(3)
    together = RewardScaling(ENVS, DISCOUNT)
    together(rewards, done, np.array([1, 1, 0]))
    one_by_one = RewardScaling(ENVS, DISCOUNT)
    for column, environment in enumerate([1, 1, 0]):
        one_by_one(rewards[:, [column]], done[:, [column]], np.array([environment]))
    returns = together.state_dict()["returns"]
    np.testing.assert_array_equal(returns, one_by_one.state_dict()["returns"])
    assert returns[0] and returns[2] == 0


def test_rewards_are_clipped_to_ten_and_given_in_their_own_sign() -> None:
    rewards, done = np.zeros((400, ENVS), np.float32), np.ones((400, ENVS), bool)
    rewards[0] = [1e6, -1e6, 0]
    np.testing.assert_array_equal(RewardScaling(ENVS, DISCOUNT)(rewards, done, EVERYONE)[0], [10, -10, 0])


def test_scaling_leaves_the_rewards_alone() -> None:
    rewards, done = experience(0)
    before = rewards.copy()
    RewardScaling(ENVS, DISCOUNT)(rewards, done, EVERYONE)
    np.testing.assert_array_equal(rewards, before)


def test_rewards_that_never_vary_stay_finite() -> None:
    rewards, done = np.zeros((STEPS, ENVS), np.float32), np.zeros((STEPS, ENVS), bool)
    np.testing.assert_array_equal(RewardScaling(ENVS, DISCOUNT)(rewards, done, EVERYONE), rewards)


def test_a_saved_scaling_goes_on_bit_for_bit() -> None:
    undisturbed, stopped = RewardScaling(ENVS, DISCOUNT), RewardScaling(ENVS, DISCOUNT)
    for seed in range(2):
        undisturbed(*experience(seed), EVERYONE)
        stopped(*experience(seed), EVERYONE)
    state = stopped.state_dict()
    stopped(*experience(9, scale=100.0), EVERYONE)  # This must not change the state saved before.
    restored = RewardScaling(ENVS, DISCOUNT)
    restored.load_state_dict(state)
    for seed in (2, 3):
        expected = undisturbed(*experience(seed), EVERYONE)
        np.testing.assert_array_equal(restored(*experience(seed), EVERYONE), expected)
