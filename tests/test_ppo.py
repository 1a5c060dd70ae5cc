"""PPO against its formulas, written out in float64, and the guarantees of its update."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from making import batch_of, binary, continuous, discrete, numbers, snapshot_of, spoken, trained_model
from mlx.utils import tree_flatten

from actors.environment import make_environment
from actors.lane import Lane
from actors.policy import Policy
from actors.rollout import collect_rollout
from actors.spaces import describe_spaces
from learner.advantage import Steps, vtrace
from learner.batch import Batch
from learner.differentiated import Differentiated, forward, ppo_loss
from learner.model import ActorCritic
from learner.normalization import RunningStatistics
from learner.objective import normalized, objective
from learner.ppo import PPO, ToInputs, explained_variance
from learner.stacked_mlp import StackedMLP
from protocol.experiment import Experiment
from protocol.messages import Grant
from protocol.observations import network_inputs, normalized_size
from protocol.randomness import Purpose, generator
from protocol.spaces import Spaces
from rundir.config import PPOConfig
from rundir.schedules import Horizon, adapt_learning_rate

T, N = 6, 4
DISCRETE, CONTINUOUS, BITS = discrete(numbers(3), 2), continuous(numbers(3), 2), binary(numbers(3), 2)
SPACES = {"discrete": DISCRETE, "continuous": CONTINUOUS, "bits": BITS}
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
    """The arrays that the loss receives in each minibatch, plus the scheduled values `clip` and `entropy_coef`."""
    seen: list[dict[str, np.ndarray]] = []

    def look(minibatch: dict[str, Any], clip: mx.array, entropy_coef: mx.array) -> None:
        arrays = {name: array for name, array in minibatch.items() if name != "inputs"}
        arrays |= {"observations": minibatch["inputs"][0], "clip": clip, "entropy_coef": entropy_coef}
        seen.append({name: np.array(array) for name, array in arrays.items()})

    watch_gradients(monkeypatch, look)
    return seen


def watch_gradients(monkeypatch: pytest.MonkeyPatch, look: Callable[..., None]) -> None:
    """Call `look(minibatch, clip, entropy_coef)` whenever gradients are computed."""

    def watch(kind: type[StackedMLP] | type[Differentiated]) -> None:
        gradients = kind.gradients

        def watched(self: Any, vector: mx.array, minibatch: dict[str, Any], *rest: mx.array) -> Any:
            shown = minibatch
            if kind is StackedMLP:  # It appends a one to each input.
                shown = {**minibatch, "inputs": [x[:, :-1] for x in minibatch["inputs"]]}
            look(shown, *rest)
            return gradients(self, vector, minibatch, *rest)

        monkeypatch.setattr(kind, "gradients", watched)

    watch(StackedMLP)
    watch(Differentiated)


def loss_and_metrics(
    model: ActorCritic,
    minibatch: dict[str, Any],
    clip: mx.array,
    entropy_coef: mx.array,
    config: PPOConfig,
) -> tuple[mx.array, mx.array]:
    """(mean loss, means of the metrics) of a minibatch whose advantages are not normalised yet."""
    advantages = minibatch["advantages"]
    minibatch = {**minibatch, "advantages": normalized(advantages, 1) if config.normalize_advantages else advantages}
    loss, outcome = ppo_loss(model, minibatch, clip, entropy_coef, config)
    _, metrics = objective(outcome, minibatch, clip, entropy_coef, config)
    return loss, mx.stack([array.mean() for array in metrics])


def make_model(spaces: Spaces = DISCRETE, seed: int = 0) -> ActorCritic:
    """A model whose policy already prefers some actions."""
    model = ActorCritic(spaces, Experiment(seed=seed, hidden_sizes=(8,)))
    random = np.random.default_rng(seed)
    weights = {name: 0.6 * random.standard_normal(a.shape) for name, a in model.named_parameters()}
    model.load_state_dict({name: array.astype(np.float32) for name, array in weights.items()})
    return model


def make_ppo(config: PPOConfig = CONFIG, spaces: Spaces = DISCRETE, seed: int = 0) -> PPO:
    return PPO(make_model(spaces, seed), config, seed=5, horizon=Horizon((TOTAL_ITERATIONS,)))


def random_actions(spaces: Spaces, random: np.random.Generator, *lead: int) -> np.ndarray:
    """Actions [*lead, *action]."""
    if spaces.distribution == "categorical":
        return random.integers(2, size=lead)
    if spaces.distribution == "bernoulli":
        return random.integers(2, size=(*lead, 2)).astype(np.int8)
    return random.standard_normal((*lead, 2)).astype(np.float32)


def halved(observations: np.ndarray) -> list[np.ndarray]:
    """Replaces normalisation, so that code which forgets to normalise gives other results."""
    return [(observations.reshape(len(observations), -1) / 2).astype(np.float32)]


def as_is(observations: np.ndarray) -> list[np.ndarray]:
    return [observations]


def make_batch(
    model: ActorCritic, seed: int, policy_version: int, drift: float = 0.0, to_inputs: ToInputs = as_is
) -> Batch:
    """Random experience with both kinds of episode ends; log-probabilities differ from the model's by about `drift`."""
    random = np.random.default_rng(seed)
    observations = random.standard_normal((T + 1, N, 3)).astype(np.float32)
    actions = random_actions(model.spaces, random, T, N)
    distribution, _ = spoken(model, to_inputs(observations[:-1].reshape(T * N, 3)))
    log_probs = np.array(distribution.log_prob(mx.array(actions.reshape(T * N, -1)))).reshape(T, N)
    log_probs = log_probs + drift * random.standard_normal((T, N)).astype(np.float32)
    return batch_of(random, observations, actions, log_probs, policy_version)


def never() -> None:
    pass


def host_weights(model: ActorCritic) -> Weights:
    return {name: np.array(array, np.float64) for name, array in model.named_parameters()}


def run_updates(ppo: PPO, iterations: range, drift: float = 0.0) -> list[dict[str, Any]]:
    """Update on batches that depend only on the iteration."""
    behaviour = make_model()
    return [ppo.update(make_batch(behaviour, k, k, drift), k, as_is, never) for k in iterations]


# The loss


def random_minibatch(model: ActorCritic, seed: int, size: int = 16) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    observations = random.standard_normal((size, 3)).astype(np.float32)
    actions = random_actions(model.spaces, random, size).reshape(size, -1)
    distribution, values = spoken(model, [observations])
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


def on_device(minibatch: dict[str, np.ndarray]) -> dict[str, Any]:
    """A minibatch in the form that the loss expects."""
    arrays: dict[str, Any] = {name: mx.array(array) for name, array in minibatch.items()}
    return arrays | {"inputs": [arrays.pop("observations")]}


def literal_network(weights: Weights, encoder: str, head: str, x: np.ndarray) -> np.ndarray:
    hidden = np.tanh(weights[f"{encoder}.layers.0.weight"] @ x + weights[f"{encoder}.layers.0.bias"])
    return weights[f"{head}.weight"] @ hidden + weights[f"{head}.bias"]


def literal_policy(spaces: Spaces, weights: Weights, outputs: np.ndarray, action: np.ndarray) -> tuple[float, float]:
    """(log-probability, entropy) for the outputs of one observation and one action."""
    if spaces.distribution == "categorical":
        probabilities = np.exp(outputs) / np.exp(outputs).sum()
        return math.log(probabilities[action[0]]), -sum(p * math.log(p) for p in probabilities)
    if spaces.distribution == "bernoulli":
        ones = [1 / (1 + math.exp(-x)) for x in outputs]
        log_prob = sum(math.log(p if bit else 1 - p) for p, bit in zip(ones, action, strict=True))
        return log_prob, -sum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in ones)
    std = np.exp(weights["log_std"])
    densities = np.exp(-((action - outputs) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
    return math.log(np.prod(densities)), sum(0.5 * math.log(2 * math.pi * math.e * s**2) for s in std)


def literal_loss(
    spaces: Spaces,
    weights: Weights,
    minibatch: dict[str, np.ndarray],
    clip: float,
    entropy_coef: float,
    config: PPOConfig,
) -> list[float]:
    """[loss, policy loss, value loss, entropy, approximate KL, clip fraction], computed sample by sample."""
    minibatch = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in minibatch.items()}
    if "hidden_state" in minibatch:  # The samples are sequences; the loss averages over their steps.
        said = [literal_steps(weights, minibatch, i)[:2] for i in range(len(minibatch["actions"]))]
        outputs = [row for rows, _ in said for row in rows]
        values = [value for _, row in said for value in row]
        minibatch = {
            k: v.reshape(-1, *v.shape[2:]) for k, v in minibatch.items() if k not in ("hidden_state", "starts")
        }
    else:
        x = minibatch["observations"]
        outputs = [literal_network(weights, "encoder", "policy_head", row) for row in x]
        values = [literal_network(weights, "value_encoder", "value_head", row)[0] for row in x]
    size = len(minibatch["actions"])
    advantages = minibatch["advantages"].astype(np.float64)
    if config.normalize_advantages:
        advantages = (advantages - advantages.mean()) / advantages.std(ddof=1)
    sums = np.zeros(5)
    for i in range(size):
        log_prob, entropy = literal_policy(spaces, weights, outputs[i], minibatch["actions"][i])
        ratio = math.exp(log_prob - minibatch["proximal_log_probs"][i])
        bounded = min(max(ratio, 1 - clip), 1 + clip)
        objective = minibatch["weights"][i] * min(ratio * advantages[i], bounded * advantages[i])
        value, old, target = values[i], minibatch["values"][i], minibatch["value_targets"][i]
        error = (value - target) ** 2
        if config.value_clip_range is not None:
            near = old + min(max(value - old, -config.value_clip_range), config.value_clip_range)
            error = max(error, (near - target) ** 2)
        sums += [-objective, error / 2, entropy, ratio - 1 - math.log(ratio), float(abs(ratio - 1) > clip)]
    policy_loss, value_loss, entropy, *rest = (sums / size).tolist()
    loss = policy_loss + config.value_coef * value_loss - entropy_coef * entropy
    return [loss, policy_loss, value_loss, entropy, *rest]


@pytest.mark.parametrize("spaces", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("normalize_advantages", [True, False])
@pytest.mark.parametrize("value_clip_range", [None, 0.2])
def test_the_loss_is_the_formula(spaces: Spaces, normalize_advantages: bool, value_clip_range: float | None) -> None:
    config = PPOConfig(normalize_advantages=normalize_advantages, value_clip_range=value_clip_range, value_coef=0.7)
    model = make_model(spaces)
    for seed in range(5):
        minibatch = random_minibatch(model, seed)
        loss, metrics = loss_and_metrics(model, on_device(minibatch), mx.array(0.2), mx.array(0.1), config)
        expected = literal_loss(spaces, host_weights(model), minibatch, 0.2, 0.1, config)
        np.testing.assert_allclose([loss.item(), *np.array(metrics)], expected, rtol=1e-5, atol=1e-5)
        assert 0 < expected[-1] < 1


@pytest.mark.parametrize(("advantage", "drift"), [(1.0, 0.5), (-1.0, -0.5)])
def test_a_clipped_sample_has_no_gradient(advantage: float, drift: float) -> None:
    config = PPOConfig(normalize_advantages=False, value_coef=0)
    model = make_model()
    plain = random_minibatch(model, 0)
    minibatch = on_device(plain) | {"advantages": mx.full(16, advantage)}

    def largest_gradient(sign: float) -> float:
        log_probs = spoken(model, [plain["observations"]])[0].log_prob(minibatch["actions"])
        drifted = {**minibatch, "proximal_log_probs": log_probs - sign * drift}
        loss = partial(ppo_loss, model, drifted, mx.array(0.2), mx.array(0.0), config)
        gradients = nn.value_and_grad(model, loss)()[1]
        return max(float(np.abs(np.array(gradient)).max()) for _, gradient in tree_flatten(gradients))

    assert largest_gradient(1) == 0
    assert largest_gradient(-1) > 0


def test_the_advantage_of_a_single_sample_is_not_normalised() -> None:
    model = make_model()
    given = model, on_device(random_minibatch(model, 0, size=1)), mx.array(0.2), mx.array(0.01)
    expected, _ = loss_and_metrics(*given, replace(CONFIG, normalize_advantages=False))
    assert loss_and_metrics(*given, CONFIG)[0].item() == expected.item()


ON_POLICY = {
    "CartPole": Experiment(env="CartPole-v1"),
    "Pendulum": Experiment(env="Pendulum-v1"),
    "recurrent": Experiment(env="Pendulum-v1", recurrent_size=5, replay_cap=11),
    "LSTM": Experiment(env="Pendulum-v1", recurrent="lstm", recurrent_size=5, replay_cap=11),
    "every part": Experiment(
        env="tests.environments:EverySpace-v0",
        env_kwargs=("observation=dict", "action=multi_binary"),
        rollout_length=8,
        recurrent_size=5,
    ),
}


@pytest.mark.parametrize("experiment", ON_POLICY.values(), ids=ON_POLICY)
@pytest.mark.usefixtures("uncompiled")
def test_the_first_ratio_of_an_on_policy_update_is_one(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = replace(experiment, num_envs=8, lane_size=8)
    environment = make_environment(experiment)
    spaces = describe_spaces(environment, experiment)
    environment.close()
    random = np.random.default_rng(0)
    model = trained_model(spaces, experiment, random)
    statistics = RunningStatistics((normalized_size(spaces.parts),))
    statistics.update(random.standard_normal((10, normalized_size(spaces.parts))))
    lane = Lane(0, experiment, spaces, progress=lambda: None)
    lane.begin()
    policy = Policy(snapshot_of(model, statistics.normalization()), spaces, experiment)
    # This rollout makes the hidden state nonzero.
    collect_rollout(lane, policy, Grant("run", 0, 0, 0, 0, None), experiment, spaces)
    trajectory = collect_rollout(lane, policy, Grant("run", 0, 1, 0, 0, None), experiment, spaces)
    lane.close()
    assert np.ptp(trajectory.behaviour_log_probs) > 0.1
    if model.recurrent:
        assert trajectory.done[:-1].any()
        assert trajectory.extras["initial_hidden_state"].any()

    seen: list[dict[str, Any]] = []

    watch_gradients(monkeypatch, lambda minibatch, *_: seen.append(minibatch))
    to_inputs = partial(network_inputs, spaces=spaces, normalization=statistics.normalization())
    ppo = PPO(model, PPOConfig(epochs=1, minibatches=1, learning_rate=0.0), seed=0, horizon=Horizon((1,)))
    metrics = ppo.update(Batch.stack([trajectory]), 0, to_inputs, never)
    distribution, _, _ = forward(model, seen[0])
    log_probs = np.array(distribution.log_prob(seen[0]["actions"]), np.float64)
    np.testing.assert_allclose(np.exp(log_probs - np.array(seen[0]["proximal_log_probs"])), 1, atol=1e-5)
    assert metrics["train/clip_fraction"] == 0


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


def literal_samples(
    model: ActorCritic, batch: Batch, iteration: int, config: PPOConfig, ratios: np.ndarray | None = None
) -> dict[str, Any]:
    """The whole batch in the form that the loss expects; with `ratios`, advantages are estimated with these."""

    def values_of(observations: np.ndarray) -> np.ndarray:
        return np.array([spoken(model, halved(o[None]))[1].item() for o in observations])

    values = np.stack([values_of(row) for row in batch.observations]).astype(np.float32)
    next_values = np.concatenate([values[1:], values_of(batch.last_observations)[None]]).astype(np.float32)
    finals = iter(values_of(batch.final_observations))
    for t, n in np.argwhere(batch.truncated):
        next_values[t, n] = next(finals)
    inputs = halved(batch.observations.reshape(T * N, 3))
    actions = mx.array(batch.actions.reshape(T * N, -1))
    log_probs = np.array(spoken(model, inputs)[0].log_prob(actions)).reshape(T, N)
    steps = Steps(batch.rewards, values, next_values, batch.terminated, batch.truncated)
    if (batch.policy_versions == iteration).all():
        weights = np.ones((T, N), np.float32)
        log_probs = batch.behaviour_log_probs
    else:
        weights = np.exp(log_probs - batch.behaviour_log_probs) if ratios is None else ratios
    advantages, targets = vtrace(steps, weights, discount=config.discount, gae_lambda=config.gae_lambda)
    vectors = {
        "proximal_log_probs": log_probs,
        "weights": np.minimum(weights, 2),
        "advantages": advantages,
        "values": values,
        "value_targets": targets,
    }
    flat = {name: mx.array(vector.reshape(T * N)) for name, vector in vectors.items()}
    return {"inputs": [mx.array(x) for x in inputs], "actions": actions, **flat}


@pytest.mark.parametrize("spaces", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("max_grad_norm", [math.inf, 1e-4], ids=["unlimited", "clipped"])
@pytest.mark.usefixtures("uncompiled")
def test_updates_of_one_minibatch_are_adams_first_steps(spaces: Spaces, lag: int, max_grad_norm: float) -> None:
    config = replace(CONFIG, epochs=1, minibatches=1, max_grad_norm=max_grad_norm)
    ppo, model, adam = make_ppo(config, spaces), make_model(spaces), LiteralAdam()
    for iteration in range(3):
        batch = make_batch(model, seed=iteration, policy_version=iteration - lag, drift=lag * 0.5, to_inputs=halved)
        samples = literal_samples(model, batch, iteration, config)
        loss = partial(loss_and_metrics, model, samples, mx.array(0.2), mx.array(0.01), config)
        gradients = nn.value_and_grad(model, loss)()[1]
        flat: Weights = {name: np.array(gradient, np.float64) for name, gradient in tree_flatten(gradients)}
        learning_rate = 0.01 * (1 - iteration / TOTAL_ITERATIONS)
        weights = adam(host_weights(model), flat, learning_rate, max_grad_norm)
        model.load_state_dict({name: array.astype(np.float32) for name, array in weights.items()})

        metrics = ppo.update(batch, iteration, halved, never)
        norm = math.sqrt(sum(float(np.square(gradient).sum()) for gradient in flat.values()))
        assert metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-3)
        for name, array in ppo.model.named_parameters():
            np.testing.assert_allclose(np.array(array), weights[name], atol=2e-5, err_msg=f"{name}, step {iteration}")


@pytest.mark.parametrize("spaces", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.usefixtures("uncompiled")
def test_advantages_are_those_of_the_values_before_each_epoch(spaces: Spaces, lag: int) -> None:
    config = replace(CONFIG, epochs=3, minibatches=1, recompute_advantages=True, learning_rate_schedule="constant")
    ppo, model, adam = make_ppo(config, spaces), make_model(spaces), LiteralAdam()
    batch = make_batch(model, seed=0, policy_version=-lag, drift=lag * 0.5, to_inputs=halved)
    first = literal_samples(model, batch, 0, config)
    ratios = np.exp(np.array(first["proximal_log_probs"]).reshape(T, N) - batch.behaviour_log_probs)
    changes, weights = [], host_weights(model)
    for _ in range(3):
        # Only the values change from epoch to epoch: not what the policy is compared with.
        now = literal_samples(model, batch, 0, config, ratios)
        samples = first | {name: now[name] for name in ("advantages", "value_targets")}
        changes.append(np.abs(np.array(now["advantages"]) - np.array(first["advantages"])).max())
        loss = partial(loss_and_metrics, model, samples, mx.array(0.2), mx.array(0.01), config)
        gradients = nn.value_and_grad(model, loss)()[1]
        flat: Weights = {name: np.array(gradient, np.float64) for name, gradient in tree_flatten(gradients)}
        weights = adam(weights, flat, 0.01, config.max_grad_norm)
        model.load_state_dict({name: array.astype(np.float32) for name, array in weights.items()})
    assert changes[0] < 1e-6 < 1e-3 < changes[1] < changes[2]
    ppo.update(batch, 0, halved, never)
    for name, array in ppo.model.named_parameters():
        np.testing.assert_allclose(np.array(array), weights[name], atol=2e-5, err_msg=name)


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


SCHEDULED = {"learning_rate": 0.01, "clip_range": 0.2, "entropy_coef": 0.01}


def with_schedules(text: str) -> PPOConfig:
    schedules = {f"{name}_schedule": text for name in SCHEDULED}
    return replace(CONFIG, epochs=1, minibatches=1, **schedules)


def test_linear_schedules_fall_linearly_from_what_was_configured(minibatches: list[dict[str, np.ndarray]]) -> None:
    metrics = run_updates(make_ppo(with_schedules("linear")), range(TOTAL_ITERATIONS))
    fractions = np.array([1, 0.75, 0.5, 0.25])
    for name, configured in SCHEDULED.items():
        np.testing.assert_allclose([row[f"train/{name}"] for row in metrics], configured * fractions)
    np.testing.assert_allclose([minibatch["clip"] for minibatch in minibatches], 0.2 * fractions, rtol=1e-6)
    np.testing.assert_allclose([minibatch["entropy_coef"] for minibatch in minibatches], 0.01 * fractions, rtol=1e-6)


def test_constant_schedules_leave_settings_as_they_are(minibatches: list[dict[str, np.ndarray]]) -> None:
    metrics = run_updates(make_ppo(with_schedules("constant")), range(TOTAL_ITERATIONS))
    for name, configured in SCHEDULED.items():
        assert {row[f"train/{name}"] for row in metrics} == {configured}
    np.testing.assert_allclose([minibatch["clip"] for minibatch in minibatches], 0.2, rtol=1e-6)
    np.testing.assert_allclose([minibatch["entropy_coef"] for minibatch in minibatches], 0.01, rtol=1e-6)


@pytest.mark.usefixtures("uncompiled")
def test_a_scheduled_learning_rate_is_that_of_adam() -> None:
    for text, expected in {"1:1,0.75:0.5": 0.005, "constant": 0.01}.items():
        config = replace(CONFIG, epochs=1, minibatches=1, max_grad_norm=math.inf, learning_rate_schedule=text)
        ppo = make_ppo(config)
        run_updates(ppo, range(1))
        fresh = make_ppo(config)
        fresh.model.load_state_dict(ppo.model.state_dict())
        before = host_weights(fresh.model)
        run_updates(fresh, range(1, 2))
        moved = [np.abs(array - before[name]).ravel() for name, array in host_weights(fresh.model).items()]
        assert np.median(np.concatenate(moved)) == pytest.approx(expected, rel=0.01)


@pytest.mark.usefixtures("uncompiled")
def test_the_entropy_bonus_acts_only_while_its_schedule_lets_it() -> None:
    config = replace(CONFIG, entropy_coef=100.0, epochs=1, minibatches=1)
    entropies = {}
    for text in ("constant", "1:0"):
        ppo = make_ppo(replace(config, entropy_coef_schedule=text))
        entropies[text] = [row["train/entropy"] for row in run_updates(ppo, range(4))]
    without = run_updates(make_ppo(replace(config, entropy_coef=0.0)), range(4))
    assert entropies["1:0"] == [row["train/entropy"] for row in without]
    assert entropies["constant"][-1] > entropies["1:0"][-1] + 0.01


@pytest.mark.usefixtures("uncompiled")
def test_the_adaptive_learning_rate_follows_the_divergence_and_is_saved_and_restored() -> None:
    config = replace(CONFIG, learning_rate_schedule="adaptive", desired_kl=1e-4, learning_rate=2e-3)
    undisturbed, stopped = make_ppo(config), make_ppo(config)
    metrics = run_updates(undisturbed, range(4))
    rate = 2e-3
    for row in metrics:
        assert row["train/learning_rate"] == pytest.approx(rate, rel=1e-12)
        rate = adapt_learning_rate(rate, row["train/approx_kl"], 1e-4)
    assert len({row["train/learning_rate"] for row in metrics}) > 1
    assert float(undisturbed.state_dict()["schedule.learning_rate"]) == pytest.approx(rate, rel=1e-12)

    run_updates(stopped, range(2))
    restored = make_ppo(config, seed=1)
    restored.load_state_dict(stopped.state_dict())
    rest = run_updates(restored, range(2, 4))
    assert [row["train/learning_rate"] for row in rest] == [row["train/learning_rate"] for row in metrics[2:]]
    for name, array in undisturbed.state_dict().items():
        np.testing.assert_array_equal(array, restored.state_dict()[name], err_msg=name)


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
    watch_gradients(monkeypatch, lambda *_: traces.append(1))
    run_updates(
        make_ppo(replace(CONFIG, clip_range_schedule="linear", entropy_coef_schedule="cosine")), range(TOTAL_ITERATIONS)
    )
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
    run_updates(stopped, range(2, 3))  # This must not change the state saved before.

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


# With a recurrent layer

HIDDEN = 5
RECURRENT = Experiment(hidden_sizes=(8,), recurrent_size=HIDDEN)


def literal_hidden_state(weights: Weights, x: np.ndarray, hidden_state: np.ndarray) -> np.ndarray:
    """The hidden state after one step with the observation x."""
    hidden = np.tanh(weights["encoder.layers.0.weight"] @ x + weights["encoder.layers.0.bias"])
    a = weights["gru.inputs.weight"] @ hidden + weights["gru.inputs.bias"]
    b = weights["gru.recurrent.weight"] @ hidden_state + weights["gru.recurrent.bias"]
    reset, update = (1 / (1 + np.exp(-(a[part] + b[part]))) for part in (slice(HIDDEN), slice(HIDDEN, 2 * HIDDEN)))
    candidate = np.tanh(a[2 * HIDDEN :] + reset * b[2 * HIDDEN :])
    return (1 - update) * candidate + update * hidden_state


def literal_value(weights: Weights, hidden_state: np.ndarray) -> float:
    return (weights["value_head.weight"] @ hidden_state + weights["value_head.bias"])[0]


def literal_steps(
    weights: Weights, minibatch: dict[str, np.ndarray], i: int
) -> tuple[list[np.ndarray], list[float], list[np.ndarray]]:
    """(outputs of the policy, values, hidden states after each step) of sequence i, computed step by step."""
    hidden_state = minibatch["hidden_state"][i].astype(np.float64)
    hidden_states = []
    for x, start in zip(minibatch["observations"][i].astype(np.float64), minibatch["starts"][i], strict=True):
        hidden_state = literal_hidden_state(weights, x, np.zeros(HIDDEN) if start else hidden_state)
        hidden_states.append(hidden_state)
    outputs = [weights["policy_head.weight"] @ m + weights["policy_head.bias"] for m in hidden_states]
    return outputs, [literal_value(weights, m) for m in hidden_states], hidden_states


def recurrent_model(spaces: Spaces = DISCRETE) -> ActorCritic:
    return trained_model(spaces, RECURRENT, np.random.default_rng(0))


def recurrent_batch(spaces: Spaces, seed: int, policy_version: int) -> Batch:
    """Random experience whose episodes end in the middle of sequences; the initial hidden states are random."""
    random = np.random.default_rng(seed)
    batch = make_batch(make_model(spaces), seed, policy_version)
    log_probs = -random.uniform(0.2, 1.5, (T, N)).astype(np.float32)
    hidden_state = random.standard_normal((N, HIDDEN)).astype(np.float32)
    assert batch.truncated[:-1].any() and batch.terminated[:-1].any()
    return replace(batch, behaviour_log_probs=log_probs, extras={"initial_hidden_state": hidden_state})


def random_sequences(model: ActorCritic, seed: int, count: int = 3) -> dict[str, np.ndarray]:
    """A minibatch of sequences of T steps."""
    random = np.random.default_rng(seed)
    starts = random.random((count, T)) < 0.3
    starts[0, 2] = True
    vectors = {
        "proximal_log_probs": -random.uniform(0.5, 1.0, (count, T)),
        "weights": random.uniform(0, 2, (count, T)),
        "advantages": 3 * random.standard_normal((count, T)) + 1,
        "values": random.standard_normal((count, T)),
        "value_targets": random.standard_normal((count, T)),
        "observations": random.standard_normal((count, T, 3)),
        "hidden_state": random.standard_normal((count, HIDDEN)),
        "starts": starts,
    }
    actions = random_actions(model.spaces, random, count, T).reshape(count, T, -1)
    return {"actions": actions, **{name: vector.astype(np.float32) for name, vector in vectors.items()}}


@pytest.mark.parametrize("spaces", SPACES.values(), ids=SPACES)
def test_the_loss_of_sequences_and_its_gradient_are_the_formula_step_by_step(spaces: Spaces) -> None:
    config = PPOConfig(value_clip_range=0.5, value_coef=0.7)
    model = recurrent_model(spaces)
    minibatch = random_sequences(model, 0)
    weights = host_weights(model)
    given = model, on_device(minibatch), mx.array(0.2), mx.array(0.1), config
    loss, metrics = loss_and_metrics(*given)
    expected = literal_loss(spaces, weights, minibatch, 0.2, 0.1, config)
    np.testing.assert_allclose([loss.item(), *np.array(metrics)], expected, rtol=1e-5, atol=1e-5)

    gradients = dict(tree_flatten(nn.value_and_grad(model, lambda: loss_and_metrics(*given)[0])()[1]))
    random = np.random.default_rng(1)
    for name, array in weights.items():
        direction = random.standard_normal(array.shape)
        ahead, behind = (
            literal_loss(spaces, weights | {name: array + step * direction}, minibatch, 0.2, 0.1, config)[0]
            for step in (1e-6, -1e-6)
        )
        slope = float((np.array(gradients[name], np.float64) * direction).sum())
        assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("lag", [0, 1])
def test_a_recurrent_update_trains_on_what_a_step_by_step_reference_says(
    lag: int, minibatches: list[dict[str, np.ndarray]]
) -> None:
    model, iteration = recurrent_model(), 2
    batch, weights = recurrent_batch(DISCRETE, 0, iteration - lag), host_weights(model)
    config = replace(CONFIG, epochs=1, minibatches=1)
    observations = np.asarray(halved(batch.observations.reshape(T * N, 3))[0]).reshape(T, N, 3)
    starts = np.concatenate([np.zeros((1, N), bool), batch.done[:-1]])
    sequences = {
        "observations": observations.swapaxes(0, 1),
        "starts": starts.T,
        "hidden_state": batch.extras["initial_hidden_state"],
        "actions": batch.actions.T,
    }
    values, next_values, log_probs = np.empty((3, T, N))
    finals = {
        tuple(where): x / 2 for where, x in zip(np.argwhere(batch.truncated), batch.final_observations, strict=True)
    }
    for n in range(N):
        outputs, row, hidden_states = literal_steps(weights, sequences, n)
        values[:, n] = row
        for t in range(T):
            following = values[t + 1, n] if t + 1 < T else None
            if batch.truncated[t, n] or following is None:
                x = finals.get((t, n), batch.last_observations[n] / 2)
                following = literal_value(weights, literal_hidden_state(weights, x, hidden_states[t]))
            next_values[t, n] = following
            action = batch.actions[t, n]
            log_probs[t, n] = literal_policy(DISCRETE, weights, outputs[t], np.array([action]))[0]
    steps = Steps(batch.rewards, values, next_values, batch.terminated, batch.truncated)
    settings = {"discount": config.discount, "gae_lambda": config.gae_lambda}
    if lag:
        ratios = np.exp(log_probs - batch.behaviour_log_probs)
        advantages, targets = vtrace(steps, ratios, **settings)
    else:
        ratios, log_probs = np.ones((T, N)), batch.behaviour_log_probs
        advantages, targets = vtrace(steps, np.ones(steps.rewards.shape), **settings)

    PPO(model, config, seed=5, horizon=Horizon((TOTAL_ITERATIONS,))).update(batch, iteration, halved, never)
    (minibatch,) = minibatches
    order = generator(5, Purpose.MINIBATCHES, iteration, 0).permutation(N)
    expected = {
        **sequences,
        "actions": batch.actions.T[..., None],
        "proximal_log_probs": log_probs.T,
        "weights": np.minimum(ratios, 2).T,
        "advantages": ((advantages - advantages.mean()) / advantages.std(ddof=1)).T,
        "values": values.T,
        "value_targets": targets.T,
    }
    for name, array in expected.items():
        np.testing.assert_allclose(minibatch[name], array[order], rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_truncated_episode_bootstraps_from_its_final_observation_and_the_hidden_state_of_that_step(
    minibatches: list[dict[str, np.ndarray]],
) -> None:
    model = recurrent_model()
    batch = replace(
        recurrent_batch(DISCRETE, 0, 2), terminated=np.zeros((T, N), bool), truncated=np.zeros((T, N), bool)
    )
    batch.truncated[2, 1] = True
    batch = replace(batch, final_observations=np.array([[0.5, -1.0, 2.0]], np.float32))
    config = replace(CONFIG, epochs=1, minibatches=1, gae_lambda=0.0)
    weights = host_weights(model)
    PPO(model, config, seed=5, horizon=Horizon((TOTAL_ITERATIONS,))).update(batch, 2, as_is, never)

    hidden_state = batch.extras["initial_hidden_state"][1].astype(np.float64)
    for t in range(3):
        hidden_state = literal_hidden_state(weights, batch.observations[t, 1].astype(np.float64), hidden_state)
    value = literal_value(weights, literal_hidden_state(weights, np.array([0.5, -1.0, 2.0]), hidden_state))
    targets = minibatches[0]["value_targets"][np.argsort(generator(5, Purpose.MINIBATCHES, 2, 0).permutation(N))]
    assert targets[1, 2] == pytest.approx(batch.rewards[2, 1] + config.discount * value, abs=1e-5)
    started_anew = literal_value(weights, literal_hidden_state(weights, batch.observations[3, 1], np.zeros(HIDDEN)))
    assert targets[1, 2] != pytest.approx(batch.rewards[2, 1] + config.discount * started_anew, abs=1e-2)


def test_every_epoch_of_a_recurrent_update_trains_on_every_sequence_once(
    minibatches: list[dict[str, np.ndarray]],
) -> None:
    batch = recurrent_batch(DISCRETE, 0, 2)
    PPO(recurrent_model(), CONFIG, seed=5, horizon=Horizon((TOTAL_ITERATIONS,))).update(batch, 2, as_is, never)
    for epoch in range(CONFIG.epochs):
        parts = minibatches[epoch * CONFIG.minibatches : (epoch + 1) * CONFIG.minibatches]
        assert {part["observations"].shape for part in parts} == {(N // CONFIG.minibatches, T, 3)}
        seen = np.concatenate([part["observations"] for part in parts])
        order = generator(5, Purpose.MINIBATCHES, 2, epoch).permutation(N)
        np.testing.assert_array_equal(seen, batch.observations.swapaxes(0, 1)[order])


# Explained variance of the critic


def test_a_perfect_critic_explains_everything() -> None:
    targets = np.random.default_rng(0).standard_normal((T, N)).astype(np.float32)
    assert explained_variance(targets, targets) == 1
    assert explained_variance(np.full_like(targets, 3), targets) == pytest.approx(0, abs=1e-6)
    assert explained_variance(-targets, targets) == pytest.approx(-3)


def test_constant_targets_leave_nothing_to_explain() -> None:
    assert explained_variance(np.ones((T, N), np.float32), np.full((T, N), 0.1, np.float32)) is None
