"""PPO in a single file with JAX: NumPy acts, and an update with all of its epochs is one compiled function."""

import sys
import time
from collections import deque
from functools import partial
from itertools import pairwise
from typing import Any

import gymnasium
import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import numpy as np
from gymnasium.spaces import Discrete

from benchmarks.peers.card import ADAM_EPSILON, MAX_GRAD_NORM, VALUE_COEF, Answer, Card, answer, mean

Params = dict[str, Any]
LOG_2PI = float(np.log(2 * np.pi))


def initial_params(
    random: np.random.Generator, inputs: int, hidden: tuple[int, ...], outputs: int, discrete: bool
) -> Params:
    """Two networks of two hidden layers with orthogonal weights; each layer is (weight, bias)."""

    def layer(rows: int, columns: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
        square, _ = np.linalg.qr(random.standard_normal((max(rows, columns), max(rows, columns))))
        return (gain * square[:rows, :columns]).astype(np.float32), np.zeros(columns, np.float32)

    def network(last: int, gain: float) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            *(layer(rows, columns, 2**0.5) for rows, columns in pairwise((inputs, *hidden))),
            layer(hidden[-1], last, gain),
        ]

    params: Params = {"policy": network(outputs, 0.01), "value": network(1, 1.0)}
    return params if discrete else {**params, "log_std": np.zeros(outputs, np.float32)}


def forward(layers: list, x: Any, library: Any) -> Any:
    """The outputs of a network, in JAX or in NumPy."""
    *hidden, (weight, bias) = layers
    for each, offset in hidden:
        x = library.tanh(x @ each + offset)
    return x @ weight + bias


def log_probs_and_entropies(params: Params, outputs: Any, actions: Any) -> tuple[Any, Any]:
    if "log_std" in params:
        log_std = params["log_std"]
        deviations = (actions - outputs) * jnp.exp(-log_std)
        log_probs = (-0.5 * (deviations**2 + LOG_2PI) - log_std).sum(-1)
        return log_probs, jnp.broadcast_to((log_std + 0.5 * (1 + LOG_2PI)).sum(), log_probs.shape)
    log_softmax = jax.nn.log_softmax(outputs)
    chosen = jnp.take_along_axis(log_softmax, actions[:, None], 1)[:, 0]
    return chosen, -(jnp.exp(log_softmax) * log_softmax).sum(-1)


@partial(jax.jit, static_argnames=("card",))
def update(
    params: Params,
    moments: tuple[Params, Params],
    count: Any,
    rollout: dict[str, Any],
    orders: Any,
    rates: tuple[Any, Any],
    card: Card,
) -> Any:
    """(params, moments, count) after all epochs; `orders` [steps, minibatch] are the samples of each step."""
    learning_rate, clip = rates
    values = forward(params["value"], rollout["observations"], jnp)[..., 0]

    def backwards(advantage: Any, step: tuple[Any, ...]) -> tuple[Any, Any]:
        reward, done, value, following = step
        alive = 1 - done
        error = reward + card.discount * following * alive - value
        advantage = error + card.discount * card.gae_lambda * alive * advantage
        return advantage, advantage

    steps = (rollout["rewards"], rollout["dones"], values[:-1], values[1:])
    _, advantages = jax.lax.scan(backwards, jnp.zeros(card.num_envs), steps, reverse=True)
    samples = {
        "observations": rollout["observations"][:-1],
        "actions": rollout["actions"],
        "log_probs": rollout["log_probs"],
        "advantages": advantages,
        "targets": advantages + values[:-1],
    }
    samples = {name: array.reshape(card.batch, *array.shape[2:]) for name, array in samples.items()}

    def loss(params: Params, minibatch: dict[str, Any]) -> Any:
        outputs = forward(params["policy"], minibatch["observations"], jnp)
        log_probs, entropies = log_probs_and_entropies(params, outputs, minibatch["actions"])
        ratio = jnp.exp(log_probs - minibatch["log_probs"])
        advantages = minibatch["advantages"]
        advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)
        policy_loss = -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip, 1 + clip) * advantages)
        found = forward(params["value"], minibatch["observations"], jnp)[:, 0]
        value_loss = 0.5 * (found - minibatch["targets"]) ** 2
        return (policy_loss + VALUE_COEF * value_loss - card.entropy_coef * entropies).mean()

    def step(state: tuple[Any, ...], order: Any) -> tuple[tuple[Any, ...], None]:
        params, (first, second), count = state
        gradients = jax.grad(loss)(params, {name: array[order] for name, array in samples.items()})
        norm = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradients)))
        gradients = jax.tree.map(lambda g: g * jnp.minimum(1, MAX_GRAD_NORM / (norm + 1e-6)), gradients)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)
        count = count + 1
        scale, root = learning_rate / (1 - 0.9**count), jnp.sqrt(1 - 0.999**count)
        params = jax.tree.map(
            lambda p, m, v: p - scale * m / (jnp.sqrt(v) / root + ADAM_EPSILON), params, first, second
        )
        return (params, (first, second), count), None

    return jax.lax.scan(step, (params, moments, count), orders)[0]


def train(card: Card) -> Answer:
    """Do one run as the card says."""
    random = np.random.default_rng(card.seed)
    envs = [gymnasium.make(card.env) for _ in range(card.num_envs)]
    discrete = isinstance(envs[0].action_space, Discrete)
    observation = np.stack([env.reset(seed=card.seed + i)[0] for i, env in enumerate(envs)]).astype(np.float32)
    outputs = int(envs[0].action_space.n) if discrete else envs[0].action_space.shape[0]  # pyright: ignore
    low, high = (None, None) if discrete else (envs[0].action_space.low, envs[0].action_space.high)  # pyright: ignore
    params = initial_params(random, observation.shape[1], card.hidden_sizes, outputs, discrete)
    moments = jax.tree.map(np.zeros_like, params), jax.tree.map(np.zeros_like, params)
    count = np.float32(0)

    length, num_envs = card.rollout_length, card.num_envs
    rollout = {
        "observations": np.zeros((length + 1, *observation.shape), np.float32),
        "actions": np.zeros((length, num_envs), np.int32)
        if discrete
        else np.zeros((length, num_envs, outputs), np.float32),
        "log_probs": np.zeros((length, num_envs), np.float32),
        "rewards": np.zeros((length, num_envs), np.float32),
        "dones": np.zeros((length, num_envs), np.float32),
    }
    returns: deque[float] = deque(maxlen=100)
    sums = [0.0] * num_envs
    # Compile before the time is measured.
    orders = np.zeros((card.epochs * card.minibatches, card.minibatch), np.int32)
    rates = np.float32(card.learning_rate), np.float32(card.clip_range)
    jax.block_until_ready(update(params, moments, count, rollout, orders, rates, card))
    started = time.perf_counter()
    iteration = 0
    for iteration in range(card.iterations):
        remaining = 1 - iteration / card.iterations
        learning_rate = card.learning_rate * (remaining if card.learning_rate_schedule == "linear" else 1)
        clip = card.clip_range * (remaining if card.clip_range_schedule == "linear" else 1)
        policy = jax.tree.map(np.asarray, params)
        noise = (
            random.gumbel(size=(length, num_envs, outputs))
            if discrete
            else random.standard_normal((length, num_envs, outputs))
        )
        std = None if discrete else np.exp(policy["log_std"])
        for t in range(length):
            rollout["observations"][t] = observation
            out = forward(policy["policy"], observation, np)
            if discrete:
                shifted = out - out.max(axis=1, keepdims=True)
                log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
                actions = (out + noise[t]).argmax(axis=1)
                rollout["log_probs"][t] = log_softmax[np.arange(num_envs), actions]
                taken = actions.tolist()
            else:
                actions = out + std * noise[t]
                rollout["log_probs"][t] = (-0.5 * (noise[t] ** 2 + LOG_2PI) - policy["log_std"]).sum(axis=1)
                taken = np.clip(actions, low, high).astype(np.float32)
            rollout["actions"][t] = actions
            for n, env in enumerate(envs):
                found, reward, terminated, truncated, _ = env.step(taken[n])
                sums[n] += float(reward)
                rollout["rewards"][t, n] = reward
                ended = terminated or truncated
                rollout["dones"][t, n] = ended
                if ended:
                    returns.append(sums[n])
                    sums[n] = 0.0
                    found, _ = env.reset()
                observation[n] = found
        rollout["observations"][length] = observation
        orders = np.stack([random.permutation(card.batch) for _ in range(card.epochs)]).astype(np.int32)
        orders = orders.reshape(-1, card.minibatch)
        rates = np.float32(learning_rate), np.float32(clip)
        params, moments, count = update(params, moments, count, rollout, orders, rates, card)
        if card.stop_return is not None and len(returns) == 100 and (mean(returns) or 0.0) >= card.stop_return:
            break
    jax.block_until_ready(params)
    seconds = time.perf_counter() - started
    return Answer((iteration + 1) * card.batch, seconds, mean(returns))


if __name__ == "__main__":
    answer(train(Card.parse(sys.argv[1])))
