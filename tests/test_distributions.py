"""The two implementations of the action distributions, against each other and against float64."""

import math

import mlx.core as mx
import numpy as np
import pytest

import actors.distributions as on_actor
import learner.distributions as on_learner

LOGITS = np.array([[0.3, -1.2, 2.0], [0.0, 0.0, 0.0], [5.0, -5.0, 1.0]], np.float32)
EXTREME = np.array([1000.0, 0.0, 0.0], np.float32)
MEAN = np.array([[0.5, -1.0], [2.0, 0.1]], np.float32)
LOG_STD = np.array([-0.7, 0.4], np.float32)
TAKEN = np.array([[0.9, -3.0], [1.5, 1.4]], np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=-1, keepdims=True)


def literal_gaussian_log_prob(mean: np.ndarray, log_std: np.ndarray, actions: np.ndarray) -> list[float]:
    return [
        sum(
            math.log(math.exp(-((a - m) ** 2) / (2 * math.exp(s) ** 2)) / (math.exp(s) * math.sqrt(2 * math.pi)))
            for a, m, s in zip(row.tolist(), means.tolist(), log_std.tolist(), strict=True)
        )
        for row, means in zip(actions, mean, strict=True)
    ]


@pytest.mark.parametrize("action", [0, 1, 2])
def test_both_categoricals_give_the_log_of_the_softmax(action: int) -> None:
    actions = np.full(len(LOGITS), action)
    expected = np.log(softmax(LOGITS)[:, action])
    ours = on_actor.Categorical().log_prob(LOGITS, actions)
    theirs = np.array(on_learner.Categorical(mx.array(LOGITS)).log_prob(mx.array(actions)))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(theirs, expected, atol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert ours.dtype == theirs.dtype == np.float32


def test_both_gaussians_give_the_log_of_the_density() -> None:
    expected = literal_gaussian_log_prob(MEAN, LOG_STD, TAKEN)
    ours = on_actor.Gaussian(LOG_STD).log_prob(MEAN, TAKEN)
    theirs = np.array(on_learner.Gaussian(mx.array(MEAN), mx.array(LOG_STD)).log_prob(mx.array(TAKEN)))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(theirs, expected, atol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert ours.dtype == theirs.dtype == np.float32


def test_categorical_entropy_is_minus_the_expected_log_probability() -> None:
    probabilities = softmax(LOGITS)
    expected = -(probabilities * np.log(probabilities)).sum(axis=-1)
    np.testing.assert_allclose(np.array(on_learner.Categorical(mx.array(LOGITS)).entropy()), expected, atol=1e-5)


def test_gaussian_entropy_sums_over_action_dimensions() -> None:
    expected = sum(0.5 * math.log(2 * math.pi * math.e * math.exp(s) ** 2) for s in LOG_STD.tolist())
    entropy = np.array(on_learner.Gaussian(mx.array(MEAN), mx.array(LOG_STD)).entropy())
    np.testing.assert_allclose(entropy, [expected, expected], atol=1e-5)


def test_a_certain_choice_has_finite_log_probabilities_and_no_entropy() -> None:
    actions = np.arange(3)
    logits = np.tile(EXTREME, (3, 1))
    learner = on_learner.Categorical(mx.array(logits))
    np.testing.assert_array_equal(on_actor.Categorical().log_prob(logits, actions), [0, -1000, -1000])
    np.testing.assert_array_equal(np.array(learner.log_prob(mx.array(actions))), [0, -1000, -1000])
    np.testing.assert_array_equal(np.array(learner.entropy()), [0, 0, 0])


def test_a_certain_choice_has_finite_gradients() -> None:
    def log_prob_and_entropy(logits: mx.array) -> mx.array:
        distribution = on_learner.Categorical(logits)
        return distribution.log_prob(mx.array([1])).sum() + distribution.entropy().sum()

    gradient = np.array(mx.grad(log_prob_and_entropy)(mx.array(EXTREME[None])))
    np.testing.assert_allclose(gradient, [[-1, 1, 0]], atol=1e-6)


def test_categorical_samples_follow_the_softmax() -> None:
    count, logits = 50_000, np.array([0.5, -1.0, 1.5, 0.0], np.float32)
    categorical = on_actor.Categorical()
    noise = categorical.draw_noise(np.random.default_rng(0), (count,), 4)
    seen = np.bincount(categorical.sample(np.tile(logits, (count, 1)), noise), minlength=4)
    expected = count * softmax(logits)
    chi_square = float((np.square(seen - expected) / expected).sum())
    assert chi_square < 16.27  # exceeded with probability 0.001


def test_gaussian_samples_have_the_mean_and_standard_deviation() -> None:
    count = 50_000
    gaussian = on_actor.Gaussian(LOG_STD)
    noise = gaussian.draw_noise(np.random.default_rng(0), (count,), 2)
    samples = gaussian.sample(np.tile(MEAN[0], (count, 1)), noise)
    std = np.exp(LOG_STD)
    np.testing.assert_array_less(np.abs(samples.mean(axis=0) - MEAN[0]), 4 * std / math.sqrt(count))
    np.testing.assert_array_less(np.abs(samples.std(axis=0) - std), 4 * std / math.sqrt(2 * count))


def test_noise_comes_in_float32_for_every_action() -> None:
    for distribution in (on_actor.Categorical(), on_actor.Gaussian(LOG_STD)):
        noise = distribution.draw_noise(np.random.default_rng(0), (5, 3), 2)
        assert noise.shape == (5, 3, 2)
        assert noise.dtype == np.float32


def test_the_mode_is_the_most_probable_action() -> None:
    np.testing.assert_array_equal(on_actor.Categorical().mode(LOGITS), [2, 0, 0])
    np.testing.assert_array_equal(on_actor.Gaussian(LOG_STD).mode(MEAN), MEAN)
