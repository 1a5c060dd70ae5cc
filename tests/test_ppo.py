"""PPO against its formulas, written out in float64, and the promises of its update."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from actors.environment import describe_spaces, make_environment
from actors.lane import Lane
from actors.policy import Policy
from actors.rollout import collect_rollout
from learner.advantage import gae, vtrace
from learner.batch import Batch
from learner.config import PPOConfig
from learner.model import ActorCritic
from learner.normalization import RunningStatistics
from learner.ppo import PPO, explained_variance, ppo_loss
from protocol.experiment import Experiment
from protocol.messages import Grant
from protocol.snapshot import PolicySnapshot, normalize
from protocol.spaces import BoxSpace, Spaces

T, N = 6, 4
DISCRETE = Spaces(BoxSpace((3,), "float32"), BoxSpace((), "int64"), "categorical", 2)
CONTINUOUS = Spaces(BoxSpace((3,), "float32"), BoxSpace((2,), "float32"), "gaussian", 2)
CONFIG = PPOConfig(learning_rate=0.01, epochs=3, minibatches=2, entropy_coef=0.01)
TOTAL_ITERATIONS = 4

Weights = dict[str, np.ndarray]


@pytest.fixture
def uncompiled() -> Iterator[None]:
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture
def minibatches(uncompiled: None, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, np.ndarray]]:
    """What the loss is given, minibatch by minibatch, with the clip range as `clip`."""
    seen: list[dict[str, np.ndarray]] = []

    def spy(model: ActorCritic, minibatch: dict[str, mx.array], clip: mx.array, config: PPOConfig) -> Any:
        seen.append({name: np.array(array) for name, array in {**minibatch, "clip": clip}.items()})
        return ppo_loss(model, minibatch, clip, config)

    monkeypatch.setattr("learner.ppo.ppo_loss", spy)
    return seen


def make_model(spaces: Spaces = DISCRETE, seed: int = 0) -> ActorCritic:
    """A model whose policy already has preferences."""
    model = ActorCritic(spaces, Experiment(seed=seed, hidden_sizes=(8,)))
    random = np.random.default_rng(seed)
    weights = {name: 0.6 * random.standard_normal(a.shape) for name, a in model.named_parameters()}
    model.load_state_dict({name: array.astype(np.float32) for name, array in weights.items()})
    return model


def make_ppo(config: PPOConfig = CONFIG, spaces: Spaces = DISCRETE, seed: int = 0) -> PPO:
    return PPO(make_model(spaces, seed), config, seed=5, total_iterations=TOTAL_ITERATIONS)


def make_batch(model: ActorCritic, seed: int, policy_version: int, drift: float = 0.0) -> Batch:
    """Random experience with both kinds of ends; its log-probabilities are the model's, off by about `drift`."""
    random = np.random.default_rng(seed)
    observations = random.standard_normal((T + 1, N, 3)).astype(np.float32)
    if model.spaces.distribution == "categorical":
        actions = random.integers(2, size=(T, N))
    else:
        actions = random.standard_normal((T, N, 2)).astype(np.float32)
    distribution = model.distribution(mx.array(observations[:-1].reshape(T * N, 3)))
    log_probs = np.array(distribution.log_prob(mx.array(actions.reshape(T * N, *actions.shape[2:])))).reshape(T, N)
    ends = random.permutation(T * N).reshape(T, N)
    return Batch(
        observations=observations[:-1],
        last_observations=observations[-1],
        final_observations=random.standard_normal((3, 3)).astype(np.float32),
        actions=actions,
        behaviour_log_probs=log_probs + drift * random.standard_normal((T, N)).astype(np.float32),
        rewards=random.standard_normal((T, N)).astype(np.float32),
        terminated=ends < 2,
        truncated=(ends >= 2) & (ends < 5),
        episode_returns=np.zeros(5),
        episode_lengths=np.ones(5, np.int64),
        policy_version=policy_version,
    )


def halved(observations: np.ndarray) -> np.ndarray:
    """A stand-in for normalisation that shows where it is forgotten."""
    return (observations.reshape(len(observations), -1) / 2).astype(np.float32)


def as_is(observations: np.ndarray) -> np.ndarray:
    return observations


def never() -> None:
    pass


def host_weights(model: ActorCritic) -> Weights:
    return {name: np.array(array, np.float64) for name, array in model.named_parameters()}


def run_updates(ppo: PPO, iterations: range, drift: float = 0.0) -> list[dict[str, Any]]:
    """Update on batches that depend on the iteration alone."""
    behaviour = make_model()
    return [ppo.update(make_batch(behaviour, k, k, drift), k, as_is, never) for k in iterations]


# The loss


def random_minibatch(spaces: Spaces, model: ActorCritic, seed: int, size: int = 16) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    observations = random.standard_normal((size, 3)).astype(np.float32)
    if spaces is DISCRETE:
        actions = random.integers(2, size=size)
    else:
        actions = random.standard_normal((size, 2)).astype(np.float32)
    distribution, values = model(mx.array(observations))
    vectors = {
        "proximal_log_probs": np.array(distribution.log_prob(mx.array(actions))) + 0.3 * random.standard_normal(size),
        "weights": random.uniform(0, 2, size),
        "advantages": 3 * random.standard_normal(size) + 1,
        "values": np.array(values) + 0.3 * random.standard_normal(size),
        "value_targets": random.standard_normal(size),
    }
    return {
        "observations": observations,
        "actions": actions,
        **{name: vector.astype(np.float32) for name, vector in vectors.items()},
    }


def literal_network(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    hidden = np.tanh(weights[f"{name}.layers.0.weight"] @ x + weights[f"{name}.layers.0.bias"])
    return weights[f"{name}.layers.1.weight"] @ hidden + weights[f"{name}.layers.1.bias"]


def literal_policy(weights: Weights, x: np.ndarray, action: np.ndarray) -> tuple[float, float]:
    """(log-probability, entropy) for one observation and one action."""
    outputs = literal_network(weights, "policy", x)
    if "log_std" not in weights:
        probabilities = np.exp(outputs) / np.exp(outputs).sum()
        return math.log(probabilities[action]), -sum(p * math.log(p) for p in probabilities)
    std = np.exp(weights["log_std"])
    densities = np.exp(-((action - outputs) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
    return math.log(np.prod(densities)), sum(0.5 * math.log(2 * math.pi * math.e * s**2) for s in std)


def literal_loss(weights: Weights, minibatch: dict[str, np.ndarray], clip: float, config: PPOConfig) -> list[float]:
    """[loss, policy loss, value loss, entropy, approximate KL, clip fraction], sample by sample."""
    size = len(minibatch["actions"])
    advantages = minibatch["advantages"].astype(np.float64)
    if config.normalize_advantages:
        advantages = (advantages - advantages.mean()) / advantages.std(ddof=1)
    sums = np.zeros(5)
    for i in range(size):
        x = minibatch["observations"][i].astype(np.float64)
        log_prob, entropy = literal_policy(weights, x, minibatch["actions"][i])
        ratio = math.exp(log_prob - minibatch["proximal_log_probs"][i])
        bounded = min(max(ratio, 1 - clip), 1 + clip)
        objective = minibatch["weights"][i] * min(ratio * advantages[i], bounded * advantages[i])
        value, old, target = (
            literal_network(weights, "value", x)[0],
            minibatch["values"][i],
            minibatch["value_targets"][i],
        )
        error = (value - target) ** 2
        if config.value_clip_range is not None:
            near = old + min(max(value - old, -config.value_clip_range), config.value_clip_range)
            error = max(error, (near - target) ** 2)
        sums += [-objective, error / 2, entropy, ratio - 1 - math.log(ratio), float(abs(ratio - 1) > clip)]
    policy_loss, value_loss, entropy, *rest = (sums / size).tolist()
    loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
    return [loss, policy_loss, value_loss, entropy, *rest]


@pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("normalize_advantages", [True, False])
@pytest.mark.parametrize("value_clip_range", [None, 0.2])
def test_the_loss_is_the_formula(spaces: Spaces, normalize_advantages: bool, value_clip_range: float | None) -> None:
    config = PPOConfig(
        normalize_advantages=normalize_advantages, value_clip_range=value_clip_range, entropy_coef=0.1, value_coef=0.7
    )
    model = make_model(spaces)
    for seed in range(5):
        minibatch = random_minibatch(spaces, model, seed)
        arrays = {name: mx.array(array) for name, array in minibatch.items()}
        loss, metrics = ppo_loss(model, arrays, mx.array(0.2), config)
        expected = literal_loss(host_weights(model), minibatch, 0.2, config)
        np.testing.assert_allclose([loss.item(), *np.array(metrics)], expected, rtol=1e-5, atol=1e-5)
        assert 0 < expected[-1] < 1


@pytest.mark.parametrize(("advantage", "drift"), [(1.0, 0.5), (-1.0, -0.5)])
def test_a_clipped_sample_has_no_gradient(advantage: float, drift: float) -> None:
    config = PPOConfig(normalize_advantages=False, value_coef=0, entropy_coef=0)
    model = make_model()
    minibatch = {name: mx.array(array) for name, array in random_minibatch(DISCRETE, model, 0).items()}
    minibatch["advantages"] = mx.full(16, advantage)

    def largest_gradient(sign: float) -> float:
        log_probs = model.distribution(minibatch["observations"]).log_prob(minibatch["actions"])
        drifted = {**minibatch, "proximal_log_probs": log_probs - sign * drift}
        gradients = nn.value_and_grad(model, lambda: ppo_loss(model, drifted, mx.array(0.2), config))()[1]
        return max(float(np.abs(np.array(gradient)).max()) for _, gradient in tree_flatten(gradients))

    assert largest_gradient(1) == 0
    assert largest_gradient(-1) > 0


def test_the_advantage_of_a_single_sample_is_not_normalised() -> None:
    model = make_model()
    minibatch = {name: mx.array(array) for name, array in random_minibatch(DISCRETE, model, 0, size=1).items()}
    expected, _ = ppo_loss(model, minibatch, mx.array(0.2), replace(CONFIG, normalize_advantages=False))
    assert ppo_loss(model, minibatch, mx.array(0.2), CONFIG)[0].item() == expected.item()


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_first_ratio_of_an_on_policy_update_is_one(env: str) -> None:
    experiment = Experiment(env=env, num_envs=8, lane_size=8, rollout_length=32)
    environment = make_environment(experiment)
    spaces = describe_spaces(environment)
    environment.close()
    model = make_model(spaces)
    statistics = RunningStatistics(spaces.observation.shape)
    statistics.update(np.random.default_rng(0).standard_normal((10, *spaces.observation.shape)))
    weights = {name: np.array(array) for name, array in model.named_parameters() if not name.startswith("value.")}
    snapshot = PolicySnapshot(0, weights, *statistics.normalization())
    lane = Lane(0, experiment, spaces, progress=lambda: None)
    lane.begin()
    policy = Policy(snapshot, spaces, normalize_observations=True)
    trajectory = collect_rollout(lane, policy, Grant("run", 0, 0, 0, 0, None), experiment, spaces)
    lane.close()
    observations = trajectory.observations.reshape(256, *spaces.observation.shape)
    inputs = mx.array(normalize(observations, snapshot.observation_mean, snapshot.observation_scale).reshape(256, -1))
    actions = mx.array(trajectory.actions.reshape(256, *spaces.action.shape))
    log_probs = np.array(model.distribution(inputs).log_prob(actions), np.float64)
    assert np.ptp(trajectory.behaviour_log_probs) > 0.1
    np.testing.assert_allclose(np.exp(log_probs - trajectory.behaviour_log_probs.reshape(256)), 1, atol=1e-5)


# The update


class LiteralAdam:
    """Adam (Kingma & Ba, arXiv 1412.6980, algorithm 1) with clipping by the global norm, in float64."""

    def __init__(self) -> None:
        self.step = 0
        self.m: Weights = {}
        self.v: Weights = {}

    def __call__(self, weights: Weights, gradients: Weights, learning_rate: float, max_norm: float) -> Weights:
        norm = math.sqrt(sum(float(np.square(gradient).sum()) for gradient in gradients.values()))
        self.step += 1
        updated = {}
        for name, gradient in gradients.items():
            gradient = gradient * min(1.0, max_norm / norm)
            self.m[name] = 0.9 * self.m.get(name, 0) + 0.1 * gradient
            self.v[name] = 0.999 * self.v.get(name, 0) + 0.001 * gradient**2
            m_hat = self.m[name] / (1 - 0.9**self.step)
            v_hat = self.v[name] / (1 - 0.999**self.step)
            updated[name] = weights[name] - learning_rate * m_hat / (np.sqrt(v_hat) + 1e-5)
        return updated


def literal_samples(model: ActorCritic, batch: Batch, iteration: int, config: PPOConfig) -> dict[str, mx.array]:
    """The whole batch as the loss takes it."""
    spaces = model.spaces

    def values_of(observations: np.ndarray) -> np.ndarray:
        return np.array([float(model.state_values(mx.array(halved(o[None])))) for o in observations])

    values = np.stack([values_of(row) for row in batch.observations]).astype(np.float32)
    next_values = np.concatenate([values[1:], values_of(batch.last_observations)[None]]).astype(np.float32)
    finals = iter(values_of(batch.final_observations))
    for t, n in np.argwhere(batch.truncated):
        next_values[t, n] = next(finals)
    observations = mx.array(halved(batch.observations.reshape(T * N, 3)))
    actions = mx.array(batch.actions.reshape(T * N, *spaces.action.shape))
    log_probs = np.array(model.distribution(observations).log_prob(actions)).reshape(T, N)
    facts = (batch.rewards, values, next_values, batch.terminated, batch.truncated)
    if iteration == batch.policy_version:
        weights = np.ones((T, N), np.float32)
        log_probs = batch.behaviour_log_probs
        advantages, targets = gae(*facts, discount=config.discount, gae_lambda=config.gae_lambda)
    else:
        weights = np.exp(log_probs - batch.behaviour_log_probs)
        advantages, targets = vtrace(*facts, weights, discount=config.discount, gae_lambda=config.gae_lambda)
    vectors = {
        "proximal_log_probs": log_probs,
        "weights": np.minimum(weights, 2),
        "advantages": advantages,
        "values": values,
        "value_targets": targets,
    }
    flat = {name: mx.array(vector.reshape(T * N)) for name, vector in vectors.items()}
    return {"observations": observations, "actions": actions, **flat}


@pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("max_grad_norm", [math.inf, 1e-4], ids=["unlimited", "clipped"])
@pytest.mark.usefixtures("uncompiled")
def test_updates_of_one_minibatch_are_adams_first_steps(spaces: Spaces, lag: int, max_grad_norm: float) -> None:
    config = replace(CONFIG, epochs=1, minibatches=1, max_grad_norm=max_grad_norm)
    ppo, model, adam = make_ppo(config, spaces), make_model(spaces), LiteralAdam()
    for iteration in range(3):
        batch = make_batch(model, seed=iteration, policy_version=iteration - lag, drift=lag * 0.5)
        samples = literal_samples(model, batch, iteration, config)
        gradients = nn.value_and_grad(model, lambda s=samples: ppo_loss(model, s, mx.array(0.2), config))()[1]
        flat: Weights = {name: np.array(gradient, np.float64) for name, gradient in tree_flatten(gradients)}
        learning_rate = 0.01 * (1 - iteration / TOTAL_ITERATIONS)
        weights = adam(host_weights(model), flat, learning_rate, max_grad_norm)
        model.load_state_dict({name: array.astype(np.float32) for name, array in weights.items()})

        metrics = ppo.update(batch, iteration, halved, never)
        norm = math.sqrt(sum(float(np.square(gradient).sum()) for gradient in flat.values()))
        assert metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-3)
        for name, array in ppo.model.named_parameters():
            np.testing.assert_allclose(np.array(array), weights[name], atol=2e-5, err_msg=f"{name}, step {iteration}")


@pytest.mark.usefixtures("uncompiled")
def test_adams_first_step_is_as_long_as_the_learning_rate() -> None:
    ppo = make_ppo(replace(CONFIG, epochs=1, minibatches=1, max_grad_norm=math.inf))
    before = host_weights(ppo.model)
    run_updates(ppo, range(1))
    after = host_weights(ppo.model)
    moved = np.concatenate([np.abs(after[name] - before[name]).ravel() for name in before])
    assert np.median(moved) == pytest.approx(0.01, rel=0.01)
    assert moved.max() < 0.0101


@pytest.mark.usefixtures("uncompiled")
def test_gradients_are_scaled_down_to_the_largest_norm() -> None:
    ppo = make_ppo(replace(CONFIG, epochs=1, minibatches=1, max_grad_norm=0.01))
    (metrics,) = run_updates(ppo, range(1))
    assert metrics["train/grad_norm"] > 0.1
    moments = [array for name, array in ppo.state_dict().items() if name.startswith("optimizer.") and name[-2:] == ".m"]
    norm = math.sqrt(sum(float(np.square(moment / 0.1).sum()) for moment in moments))
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_every_epoch_trains_on_every_sample_once(minibatches: list[dict[str, np.ndarray]]) -> None:
    ppo = make_ppo()
    batch = make_batch(ppo.model, seed=0, policy_version=0)
    ppo.update(batch, 0, as_is, never)
    assert len(minibatches) == CONFIG.epochs * CONFIG.minibatches
    expected = np.sort(batch.observations.reshape(T * N, 3), axis=0)
    orders = []
    for epoch in range(CONFIG.epochs):
        parts = minibatches[epoch * CONFIG.minibatches : (epoch + 1) * CONFIG.minibatches]
        assert {len(part["observations"]) for part in parts} == {T * N // CONFIG.minibatches}
        orders.append(np.concatenate([part["observations"] for part in parts]))
        np.testing.assert_array_equal(np.sort(orders[-1], axis=0), expected)
    assert not np.array_equal(orders[0], orders[1])


def test_at_lag_zero_every_weight_is_exactly_one(minibatches: list[dict[str, np.ndarray]]) -> None:
    ppo = make_ppo(replace(CONFIG, minibatches=1, epochs=1))
    batch = make_batch(ppo.model, seed=0, policy_version=2, drift=0.5)
    ppo.update(batch, 2, as_is, never)
    np.testing.assert_array_equal(minibatches[0]["weights"], np.ones(T * N))
    taken = np.sort(minibatches[0]["proximal_log_probs"])
    np.testing.assert_array_equal(taken, np.sort(batch.behaviour_log_probs.reshape(T * N)))


def test_at_a_lag_the_weights_are_ratios_of_at_most_two(minibatches: list[dict[str, np.ndarray]]) -> None:
    ppo = make_ppo(replace(CONFIG, minibatches=1, epochs=1))
    exact = make_batch(ppo.model, seed=0, policy_version=1)
    batch = make_batch(ppo.model, seed=0, policy_version=1, drift=1.0)
    ppo.update(batch, 2, as_is, never)
    ratios = np.exp(exact.behaviour_log_probs - batch.behaviour_log_probs).reshape(T * N)
    assert (ratios > 2).any()
    assert (ratios < 1).any()
    np.testing.assert_allclose(np.sort(minibatches[0]["weights"]), np.sort(np.minimum(ratios, 2)), rtol=1e-5)
    assert minibatches[0]["weights"].max() == 2


@pytest.mark.usefixtures("uncompiled")
def test_target_kl_skips_the_remaining_epochs() -> None:
    (stopped,) = run_updates(make_ppo(replace(CONFIG, target_kl=1e-9)), range(1))
    (patient,) = run_updates(make_ppo(replace(CONFIG, target_kl=1e9)), range(1))
    assert stopped["train/epochs"] < patient["train/epochs"] == CONFIG.epochs


@pytest.mark.usefixtures("uncompiled")
def test_without_a_target_kl_no_epoch_is_skipped() -> None:
    (metrics,) = run_updates(make_ppo(replace(CONFIG, learning_rate=1.0)), range(1))
    assert metrics["train/approx_kl"] > 0.1
    assert metrics["train/epochs"] == CONFIG.epochs


def test_annealed_settings_fall_linearly_from_what_was_configured(minibatches: list[dict[str, np.ndarray]]) -> None:
    ppo = make_ppo(replace(CONFIG, anneal_learning_rate=True, anneal_clip_range=True, epochs=1, minibatches=1))
    metrics = run_updates(ppo, range(TOTAL_ITERATIONS))
    fractions = np.array([1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose([row["train/learning_rate"] for row in metrics], 0.01 * fractions)
    np.testing.assert_allclose([row["train/clip_range"] for row in metrics], 0.2 * fractions)
    np.testing.assert_allclose([minibatch["clip"] for minibatch in minibatches], 0.2 * fractions, rtol=1e-6)


def test_settings_that_are_not_annealed_stay(minibatches: list[dict[str, np.ndarray]]) -> None:
    ppo = make_ppo(replace(CONFIG, anneal_learning_rate=False, anneal_clip_range=False, epochs=1, minibatches=1))
    metrics = run_updates(ppo, range(TOTAL_ITERATIONS))
    assert {row["train/learning_rate"] for row in metrics} == {0.01}
    assert {row["train/clip_range"] for row in metrics} == {0.2}
    np.testing.assert_allclose([minibatch["clip"] for minibatch in minibatches], 0.2, rtol=1e-6)


@pytest.mark.usefixtures("uncompiled")
def test_an_interrupt_between_steps_ends_the_update() -> None:
    calls = []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    ppo = make_ppo()
    with pytest.raises(KeyboardInterrupt):
        ppo.update(make_batch(ppo.model, 0, 0), 0, as_is, interrupt)
    assert ppo.state_dict()["optimizer.step"] == 3


def test_a_whole_run_traces_the_loss_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []

    def counted(*args: Any) -> Any:
        traces.append(1)
        return ppo_loss(*args)

    monkeypatch.setattr("learner.ppo.ppo_loss", counted)
    run_updates(make_ppo(replace(CONFIG, anneal_clip_range=True)), range(TOTAL_ITERATIONS))
    assert len(traces) == 1


def test_compiling_changes_nothing_but_the_last_bits() -> None:
    compiled, plain = make_ppo(), make_ppo()
    run_updates(compiled, range(2))
    mx.disable_compile()
    try:
        run_updates(plain, range(2))
    finally:
        mx.enable_compile()
    for name, array in compiled.state_dict().items():
        np.testing.assert_allclose(array, plain.state_dict()[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_saved_ppo_goes_on_bit_for_bit() -> None:
    undisturbed, stopped = make_ppo(), make_ppo()
    run_updates(undisturbed, range(4))
    run_updates(stopped, range(2))
    state = stopped.state_dict()
    run_updates(stopped, range(2, 3))  # must not reach into the state saved before

    restored = make_ppo(seed=1)
    restored.load_state_dict(state)
    run_updates(restored, range(2, 4))
    expected, actual = undisturbed.state_dict(), restored.state_dict()
    assert expected.keys() == actual.keys()
    for name in expected:
        np.testing.assert_array_equal(expected[name], actual[name], err_msg=name)
    assert actual["optimizer.step"] == 4 * CONFIG.epochs * CONFIG.minibatches

    forgetful = make_ppo()
    weights = {name.removeprefix("model."): array for name, array in state.items() if name.startswith("model.")}
    forgetful.model.load_state_dict(weights)
    run_updates(forgetful, range(2, 4))
    assert any((forgetful.state_dict()[name] != expected[name]).any() for name in expected if name.startswith("model."))


def test_a_perfect_critic_explains_everything() -> None:
    targets = np.random.default_rng(0).standard_normal((T, N)).astype(np.float32)
    assert explained_variance(targets, targets) == 1
    assert explained_variance(np.full_like(targets, 3), targets) == pytest.approx(0, abs=1e-6)
    assert explained_variance(-targets, targets) == pytest.approx(-3)


def test_constant_targets_leave_nothing_to_explain() -> None:
    assert explained_variance(np.ones((T, N), np.float32), np.full((T, N), 0.1, np.float32)) is None
