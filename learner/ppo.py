"""PPO: one iteration of epochs over minibatches, each a compiled step of Adam on the device."""

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from learner.advantage import gae, vtrace
from learner.batch import Batch
from learner.config import PPOConfig
from learner.model import ActorCritic
from protocol.randomness import Purpose, generator

MAX_SAMPLE_WEIGHT = 2.0  # of a sample acted with older weights: π_proximal / π_behaviour
STEP_METRICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm")
ADAM_EPSILON = 1e-5

Normalize = Callable[[np.ndarray], np.ndarray]


class PPO:
    """The clipped objective in its decoupled form (Hilton et al., arXiv 2110.00641), which is plain PPO at lag 0."""

    def __init__(self, model: ActorCritic, config: PPOConfig, seed: int, total_iterations: int) -> None:
        self.model = model
        self._config = config
        self._seed = seed
        self._total_iterations = total_iterations
        self._optimizer = optim.Adam(config.learning_rate, eps=ADAM_EPSILON, bias_correction=True)
        self._optimizer.init(model.trainable_parameters())
        self._compile()

    def update(self, batch: Batch, iteration: int, normalize: Normalize, interrupt: Callable[[], None]) -> dict:
        """Train on `batch`; returns the iteration's metrics, None where one is undefined.

        `normalize` maps raw observations [B, …] to the network's input. `interrupt` is called between steps and may
        raise; the weights are then those of no completed version.
        """
        samples, values, value_targets = self._prepare(batch, iteration, normalize)
        remaining = 1 - iteration / self._total_iterations
        learning_rate = self._config.learning_rate * (remaining if self._config.anneal_learning_rate else 1)
        clip_range = self._config.clip_range * (remaining if self._config.anneal_clip_range else 1)
        self._optimizer.learning_rate = mx.array(learning_rate, mx.float32)
        clip = mx.array(clip_range, mx.float32)

        totals, steps = mx.zeros(len(STEP_METRICS)), 0
        for epoch in range(self._config.epochs):
            epoch_totals = mx.zeros(len(STEP_METRICS))
            previous = epoch_totals
            for indices in self._minibatches(batch.size, iteration, epoch):
                interrupt()
                latest = epoch_totals + self._step(samples, indices, clip)
                mx.async_eval(latest, self._state)
                mx.eval(previous)  # stay one step ahead of the device, not a whole iteration
                previous, epoch_totals = epoch_totals, latest
                steps += 1
            totals = totals + epoch_totals
            if self._config.target_kl is not None:
                approx_kl = float(np.array(epoch_totals)[STEP_METRICS.index("approx_kl")]) / self._config.minibatches
                if approx_kl > self._config.target_kl:
                    break
        means = np.array(totals) / steps
        finite = {f"train/{name}": _finite(mean) for name, mean in zip(STEP_METRICS, means.tolist(), strict=True)}
        return finite | {
            "train/explained_variance": explained_variance(values, value_targets),
            "train/learning_rate": learning_rate,
            "train/clip_range": clip_range,
            "train/epochs": steps // self._config.minibatches,
        }

    def state_dict(self) -> dict[str, np.ndarray]:
        """Weights as `model.NAME`, Adam's moments and step count as `optimizer.NAME`: host copies of all of it."""
        weights = {f"model.{name}": np.array(array) for name, array in self.model.named_parameters()}
        moments = {f"optimizer.{name}": np.array(array) for name, array in tree_flatten(self._optimizer.state)}
        return weights | moments

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Continue from what `state_dict` returned."""
        parts = {
            part: {name.removeprefix(part): array for name, array in state.items() if name.startswith(part)}
            for part in ("model.", "optimizer.")
        }
        self.model.load_state_dict(parts["model."])
        moments = [(name, mx.array(array)) for name, array in parts["optimizer."].items()]
        self._optimizer.state = tree_unflatten(moments)
        self._compile()

    def _compile(self) -> None:
        self._state = [self.model.state, self._optimizer.state]
        loss_and_gradients = nn.value_and_grad(self.model, self._loss)

        def step(samples: dict[str, mx.array], indices: mx.array, clip: mx.array) -> mx.array:
            minibatch = {name: array[indices] for name, array in samples.items()}
            (_, metrics), gradients = loss_and_gradients(minibatch, clip)
            gradients, norm = optim.clip_grad_norm(gradients, self._config.max_grad_norm)
            self._optimizer.update(self.model, gradients)
            return mx.concatenate([metrics, norm[None]])

        def evaluate(observations: mx.array, actions: mx.array) -> tuple[mx.array, mx.array]:
            distribution = self.model.distribution(observations[: len(actions)])
            return self.model.state_values(observations), distribution.log_prob(actions)

        self._step = mx.compile(step, inputs=self._state, outputs=self._state)
        self._evaluate = mx.compile(evaluate, inputs=[self.model.state])

    def _loss(self, minibatch: dict[str, mx.array], clip: mx.array) -> tuple[mx.array, mx.array]:
        return ppo_loss(self.model, minibatch, clip, self._config)

    def _prepare(
        self, batch: Batch, iteration: int, normalize: Normalize
    ) -> tuple[dict[str, mx.array], np.ndarray, np.ndarray]:
        """The batch as flat arrays on the device, and values and value targets [T, num_envs]."""
        shape = batch.rewards.shape
        flat = batch.observations.reshape(batch.size, *batch.observations.shape[2:])
        inputs = mx.array(normalize(np.concatenate([flat, batch.last_observations])))
        actions = mx.array(batch.actions.reshape(batch.size, *batch.actions.shape[2:]))
        all_values, log_probs = self._evaluate(inputs, actions)
        all_values = np.array(all_values).reshape(len(batch.rewards) + 1, -1)
        values, next_values = all_values[:-1], all_values[1:].copy()
        if len(batch.final_observations):
            next_values[batch.truncated] = np.array(
                self.model.state_values(mx.array(normalize(batch.final_observations)))
            )

        settings = {"discount": self._config.discount, "gae_lambda": self._config.gae_lambda}
        facts = (batch.rewards, values, next_values, batch.terminated, batch.truncated)
        if batch.policy_version == iteration:  # lag 0: the proximal policy is the behaviour policy, to the last bit
            proximal_log_probs = batch.behaviour_log_probs
            ratios = np.ones(shape, np.float32)
            advantages, value_targets = gae(*facts, **settings)
        else:
            proximal_log_probs = np.array(log_probs).reshape(shape)
            ratios = np.exp(proximal_log_probs - batch.behaviour_log_probs)
            advantages, value_targets = vtrace(*facts, ratios, **settings)
        samples = {
            "observations": inputs[: batch.size],
            "actions": actions,
            "proximal_log_probs": mx.array(proximal_log_probs.reshape(-1)),
            "weights": mx.array(np.minimum(ratios, MAX_SAMPLE_WEIGHT).reshape(-1)),
            "advantages": mx.array(advantages.reshape(-1)),
            "values": mx.array(values.reshape(-1)),
            "value_targets": mx.array(value_targets.reshape(-1)),
        }
        return samples, values, value_targets

    def _minibatches(self, size: int, iteration: int, epoch: int) -> list[mx.array]:
        """The sample indices of an epoch's minibatches, all of one length."""
        order = generator(self._seed, Purpose.MINIBATCHES, iteration, epoch).permutation(size).astype(np.uint32)
        return [mx.array(part) for part in np.split(order, self._config.minibatches)]


def ppo_loss(
    model: ActorCritic, minibatch: dict[str, mx.array], clip: mx.array, config: PPOConfig
) -> tuple[mx.array, mx.array]:
    """(loss, metrics [5] in the order of `STEP_METRICS` without the norm) of a minibatch of flat arrays [B, …].

    The clipped objective of Schulman et al. (arXiv 1707.06347, equation 7), each sample weighted by
    min(π_proximal / π_behaviour, 2); approx_kl is Schulman's low-variance estimator, E[(r − 1) − log r].
    """
    distribution, values = model(minibatch["observations"])
    log_ratio = distribution.log_prob(minibatch["actions"]) - minibatch["proximal_log_probs"]
    ratio = mx.exp(log_ratio)
    advantages = minibatch["advantages"]
    if config.normalize_advantages and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (mx.sqrt(advantages.var(ddof=1)) + 1e-8)
    clipped = mx.clip(ratio, 1 - clip, 1 + clip)
    policy_loss = -(minibatch["weights"] * mx.minimum(ratio * advantages, clipped * advantages)).mean()

    errors = mx.square(values - minibatch["value_targets"])
    if config.value_clip_range is not None:
        moved = mx.clip(values - minibatch["values"], -config.value_clip_range, config.value_clip_range)
        errors = mx.maximum(errors, mx.square(minibatch["values"] + moved - minibatch["value_targets"]))
    value_loss = 0.5 * errors.mean()
    entropy = distribution.entropy().mean()

    loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
    approx_kl = (ratio - 1 - log_ratio).mean()
    clip_fraction = (mx.abs(ratio - 1) > clip).astype(mx.float32).mean()
    return loss, mx.stack([policy_loss, value_loss, entropy, approx_kl, clip_fraction])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def explained_variance(values: np.ndarray, value_targets: np.ndarray) -> float | None:
    """1 − Var(target − value) / Var(target): 1 is perfect, 0 is a constant's worth; None for constant targets."""
    variance = float(np.var(value_targets, dtype=np.float64))
    if variance == 0 or not math.isfinite(variance):
        return None
    return 1 - float(np.var(value_targets - values, dtype=np.float64)) / variance
