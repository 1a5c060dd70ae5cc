"""The two implementations of the action distributions, against each other and against float64."""

import itertools
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
CHOICES = (3, 2, 4)
BITS = np.array([[0.3, -1.2, 2.0], [0.0, 5.0, -5.0]], np.float32)
ALL_BITS = np.array(list(itertools.product((0, 1), repeat=3)), np.int8)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=-1, keepdims=True)


def log_softmax(logits: list[float]) -> list[float]:
    """Log-probabilities computed one by one; subtracting the largest logit avoids overflow."""
    largest = max(logits)
    total = math.log(sum(math.exp(x - largest) for x in logits))
    return [x - largest - total for x in logits]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def literal_choices(logits: np.ndarray) -> list[list[float]]:
    """The log-probabilities of all choices for each component of an action, from one row of logits."""
    rest = logits.astype(np.float64).tolist()
    groups = []
    for n in CHOICES:
        groups.append(log_softmax(rest[:n]))
        rest = rest[n:]
    return groups


def both_categorical(logits: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities, by NumPy and by MLX, of actions that choose from `CHOICES`."""
    theirs = on_learner.Categorical(mx.array(logits), CHOICES).log_prob(mx.array(actions))
    return on_actor.Categorical(CHOICES).log_prob(logits, actions), np.array(theirs)


def both_bernoulli(logits: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    theirs = on_learner.Bernoulli(mx.array(logits)).log_prob(mx.array(actions))
    return on_actor.Bernoulli().log_prob(logits, actions), np.array(theirs)


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
    actions = np.full((len(LOGITS), 1), action)
    expected = np.log(softmax(LOGITS)[:, action])
    ours = on_actor.Categorical((3,)).log_prob(LOGITS, actions)
    theirs = np.array(on_learner.Categorical(mx.array(LOGITS), (3,)).log_prob(mx.array(actions)))
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
    np.testing.assert_allclose(np.array(on_learner.Categorical(mx.array(LOGITS), (3,)).entropy()), expected, atol=1e-5)


def test_gaussian_entropy_sums_over_action_dimensions() -> None:
    expected = sum(0.5 * math.log(2 * math.pi * math.e * math.exp(s) ** 2) for s in LOG_STD.tolist())
    entropy = np.array(on_learner.Gaussian(mx.array(MEAN), mx.array(LOG_STD)).entropy())
    np.testing.assert_allclose(entropy, [expected, expected], atol=1e-5)


def test_a_certain_choice_has_finite_log_probabilities_and_no_entropy() -> None:
    actions = np.arange(3)[:, None]
    logits = np.tile(EXTREME, (3, 1))
    learner = on_learner.Categorical(mx.array(logits), (3,))
    np.testing.assert_array_equal(on_actor.Categorical((3,)).log_prob(logits, actions), [0, -1000, -1000])
    np.testing.assert_array_equal(np.array(learner.log_prob(mx.array(actions))), [0, -1000, -1000])
    np.testing.assert_array_equal(np.array(learner.entropy()), [0, 0, 0])


def test_a_certain_choice_has_finite_gradients() -> None:
    def log_prob_and_entropy(logits: mx.array) -> mx.array:
        distribution = on_learner.Categorical(logits, (3,))
        return distribution.log_prob(mx.array([[1]])).sum() + distribution.entropy().sum()

    gradient = np.array(mx.grad(log_prob_and_entropy)(mx.array(EXTREME[None])))
    np.testing.assert_allclose(gradient, [[-1, 1, 0]], atol=1e-6)


def test_categorical_samples_follow_the_softmax() -> None:
    count, logits = 50_000, np.array([0.5, -1.0, 1.5, 0.0], np.float32)
    categorical = on_actor.Categorical((4,))
    noise = categorical.draw_noise(np.random.default_rng(0), (count, 4))
    seen = np.bincount(categorical.sample(np.tile(logits, (count, 1)), noise)[:, 0], minlength=4)
    expected = count * softmax(logits)
    chi_square = float((np.square(seen - expected) / expected).sum())
    assert chi_square < 16.27  # A correct sampler exceeds this with probability 0.001.


def test_gaussian_samples_have_the_mean_and_standard_deviation() -> None:
    count = 50_000
    gaussian = on_actor.Gaussian(LOG_STD)
    noise = gaussian.draw_noise(np.random.default_rng(0), (count, 2))
    samples = gaussian.sample(np.tile(MEAN[0], (count, 1)), noise)
    std = np.exp(LOG_STD)
    np.testing.assert_array_less(np.abs(samples.mean(axis=0) - MEAN[0]), 4 * std / math.sqrt(count))
    np.testing.assert_array_less(np.abs(samples.std(axis=0) - std), 4 * std / math.sqrt(2 * count))


def test_noise_comes_in_float32_for_every_action() -> None:
    for distribution in (on_actor.Categorical((2,)), on_actor.Gaussian(LOG_STD), on_actor.Bernoulli()):
        noise = distribution.draw_noise(np.random.default_rng(0), (5, 3, 2))
        assert noise.shape == (5, 3, 2)
        assert noise.dtype == np.float32


def test_the_mode_is_the_most_probable_action() -> None:
    np.testing.assert_array_equal(on_actor.Categorical((3,)).mode(LOGITS), [[2], [0], [0]])
    np.testing.assert_array_equal(on_actor.Categorical((1, 2)).mode(LOGITS), [[0, 1], [0, 0], [0, 1]])
    np.testing.assert_array_equal(on_actor.Bernoulli().mode(BITS), [[1, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(on_actor.Gaussian(LOG_STD).mode(MEAN), MEAN)


# Several choices


def test_several_choices_are_as_probable_as_each_of_them_together() -> None:
    logits = np.random.default_rng(0).normal(0, 2, sum(CHOICES)).astype(np.float32)
    groups = literal_choices(logits)
    actions = np.array(list(itertools.product(*map(range, CHOICES))))
    expected = [sum(group[choice] for group, choice in zip(groups, row, strict=True)) for row in actions.tolist()]
    ours, theirs = both_categorical(np.tile(logits, (len(actions), 1)), actions)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(theirs, expected, atol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert math.fsum(np.exp(ours.astype(np.float64))) == pytest.approx(1, abs=1e-5)
    assert ours.dtype == theirs.dtype == np.float32


@pytest.mark.parametrize(
    "logits",
    [[1000, 0, 0, -1000, 0, 0, 0, 0, 1000], [-1000, -1000, -999, 1000, 999, -1000, 0, 1000, 0]],
    ids=["certain", "nearly equal"],
)
def test_choices_with_extreme_logits_keep_their_log_probabilities(logits: list[int]) -> None:
    row = np.array(logits, np.float32)
    groups = literal_choices(row)
    actions = np.array(list(itertools.product(*map(range, CHOICES))))
    expected = [sum(group[choice] for group, choice in zip(groups, r, strict=True)) for r in actions.tolist()]
    ours, theirs = both_categorical(np.tile(row, (len(actions), 1)), actions)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(theirs, expected, rtol=1e-6, atol=1e-5)


def test_the_entropy_of_several_choices_is_the_sum_of_theirs() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (4, sum(CHOICES))).astype(np.float32)
    logits[0] = [1000, 0, 0, -1000, 0, 0, 0, 0, 1000]
    expected = [-sum(math.exp(p) * p for group in literal_choices(row) for p in group) for row in logits]
    entropy = np.array(on_learner.Categorical(mx.array(logits), CHOICES).entropy())
    np.testing.assert_allclose(entropy, expected, atol=1e-5)
    assert entropy[0] == 0


def test_several_choices_are_sampled_independently_of_each_other() -> None:
    count, choices = 50_000, (2, 3)
    logits = np.array([0.5, -0.5, 1.0, 0.0, -1.0], np.float32)
    categorical = on_actor.Categorical(choices)
    noise = categorical.draw_noise(np.random.default_rng(0), (count, 5))
    actions = categorical.sample(np.tile(logits, (count, 1)), noise)
    assert actions.shape == (count, 2)
    assert actions.dtype == np.int64
    seen = np.bincount(3 * actions[:, 0] + actions[:, 1], minlength=6)
    expected = count * np.outer(softmax(logits[:2]), softmax(logits[2:])).reshape(6)
    chi_square = float((np.square(seen - expected) / expected).sum())
    assert chi_square < 20.52  # A correct sampler exceeds this with probability 0.001.


def test_log_probabilities_of_a_whole_rollout_are_those_of_its_steps() -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal((5, 2, sum(CHOICES)), np.float32)
    actions = np.stack([random.integers(n, size=(5, 2)) for n in CHOICES], axis=-1)
    for found, by_step in zip(both_categorical(logits, actions), both_categorical(logits[3], actions[3]), strict=True):
        assert found.shape == (5, 2)
        np.testing.assert_array_equal(found[3], by_step)


# Bits


@pytest.mark.parametrize("logits", [*BITS, [1000, 0, 0], [-1000, 1000, -3]], ids=str)
def test_both_bernoullis_give_the_log_of_the_sigmoids(logits: list[float]) -> None:
    row = np.array(logits, np.float32)
    expected = [
        sum(log_sigmoid(x if bit else -x) for x, bit in zip(row.tolist(), bits, strict=True))
        for bits in ALL_BITS.tolist()
    ]
    ours, theirs = both_bernoulli(np.tile(row, (len(ALL_BITS), 1)), ALL_BITS)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(theirs, expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert math.fsum(np.exp(ours.astype(np.float64))) == pytest.approx(1, abs=1e-5)
    assert ours.dtype == theirs.dtype == np.float32


def test_bernoulli_entropy_is_minus_the_expected_log_probability_of_all_bits() -> None:
    logits = np.array([*BITS, [1000, -1000, 0], [1000, -1000, 1000]], np.float32)
    expected = [
        -sum(math.exp(log_sigmoid(x)) * log_sigmoid(x) + math.exp(log_sigmoid(-x)) * log_sigmoid(-x) for x in row)
        for row in logits.tolist()
    ]
    entropy = np.array(on_learner.Bernoulli(mx.array(logits)).entropy())
    np.testing.assert_allclose(entropy, expected, atol=1e-5)
    assert entropy[2] == pytest.approx(math.log(2))
    assert entropy[3] == 0


def test_a_certain_bit_has_finite_gradients() -> None:
    def log_prob_and_entropy(logits: mx.array) -> mx.array:
        distribution = on_learner.Bernoulli(logits)
        return distribution.log_prob(mx.array([[0, 0, 1]])).sum() + distribution.entropy().sum()

    gradient = np.array(mx.grad(log_prob_and_entropy)(mx.array([[1000.0, -1000.0, 1000.0]])))
    np.testing.assert_allclose(gradient, [[-1, 0, 0]], atol=1e-6)


def test_a_bits_log_probability_has_the_gradient_of_the_sigmoid() -> None:
    def log_prob(logits: mx.array) -> mx.array:
        return on_learner.Bernoulli(logits).log_prob(mx.array([[1, 0, 1]])).sum()

    gradient = np.array(mx.grad(log_prob)(mx.array(BITS)))  # One of these logits is exactly 0.
    probabilities = 1 / (1 + np.exp(-BITS.astype(np.float64)))
    np.testing.assert_allclose(gradient, np.array([1, 0, 1]) - probabilities, atol=1e-6)


def test_bernoulli_samples_follow_the_sigmoids() -> None:
    count, logits = 50_000, BITS[0]
    bernoulli = on_actor.Bernoulli()
    bits = bernoulli.sample(np.tile(logits, (count, 1)), bernoulli.draw_noise(np.random.default_rng(0), (count, 3)))
    assert bits.dtype == np.int8
    seen = np.bincount(bits.astype(np.int64) @ [4, 2, 1], minlength=8)
    expected = [
        count * math.exp(sum(log_sigmoid(x if bit else -x) for x, bit in zip(logits.tolist(), row, strict=True)))
        for row in ALL_BITS.tolist()
    ]
    chi_square = float((np.square(seen - expected) / expected).sum())
    assert chi_square < 24.32  # A correct sampler exceeds this with probability 0.001.
