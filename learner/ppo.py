"""PPO: one iteration of epochs over minibatches, each a compiled step of Adam on the device."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from learner.advantage import Steps, vtrace
from learner.batch import Batch
from learner.device import limit_blas_threads
from learner.differentiated import Differentiated
from learner.model import ActorCritic
from learner.objective import normalized, objective
from learner.optimizer import Adam
from learner.stacked_mlp import StackedMLP
from protocol import trace
from protocol.randomness import Purpose, generator
from protocol.snapshot import part_of
from rundir.config import PPOConfig
from rundir.schedules import ADAPTIVE, Horizon, adapt_learning_rate, parse_schedule

MAX_SAMPLE_WEIGHT = 2.0  # π_proximal / π_behaviour of a sample that older weights acted is cut here.
TARGETS = ("proximal_log_probs", "weights", "advantages", "values", "value_targets")  # What the loss compares with.
STEP_METRICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm")

ToInputs = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class Prepared:
    """A batch on the device, and what metrics need of it on the host."""

    samples: dict[str, Any]  # arrays, with the samples first
    values: np.ndarray  # [T, num_envs]
    value_targets: np.ndarray  # [T, num_envs]
    ratios: np.ndarray  # [T, num_envs], π_proximal / π_behaviour


def computation_of(model: ActorCritic, config: PPOConfig, threads: int | None = None) -> StackedMLP | Differentiated:
    """The fastest computation of values and gradients of `model`."""
    return StackedMLP(model, config) if StackedMLP.fits(model) else Differentiated(model, config, threads)


class PPO:
    """The clipped objective in its decoupled form (Hilton et al., arXiv 2110.00641), which is plain PPO at lag 0."""

    def __init__(
        self, model: ActorCritic, config: PPOConfig, seed: int, horizon: Horizon, threads: int | None = None
    ) -> None:
        self.model = model
        self._config = config
        self._seed = seed
        self._horizon = horizon
        self._adapted_learning_rate = config.learning_rate  # Used where the schedule is adaptive.
        self._computation = computation_of(model, config, threads)
        if not self._computation.is_small:
            limit_blas_threads(1)  # Parts of images have threads of their own.
        self._optimizer = Adam(model, config.max_grad_norm, self._computation.layout)
        self._compile()

    def update(self, batch: Batch, iteration: int, to_inputs: ToInputs, interrupt: Callable[[], None]) -> dict:
        """Train on `batch`; returns the iteration's metrics, None where one is undefined.

        `to_inputs` maps raw observations [B, …] to the network's inputs. `interrupt` is called between steps and may
        raise; the weights are then those of no completed version.
        """
        self._optimizer.take_parameters()
        with trace.span("prepare"):
            prepared = self._prepare(batch, iteration, to_inputs)
        settings = self._scheduled(iteration)
        try:
            with trace.span("epochs"):
                recompute = partial(self._recomputed, prepared, batch, to_inputs)
                totals, steps = self._run_epochs(prepared.samples, iteration, settings, interrupt, recompute)
                mx.eval(totals)
        finally:
            self._optimizer.give_parameters()
        means = np.array(totals) / steps
        metrics = {f"train/{name}": _finite(mean) for name, mean in zip(STEP_METRICS, means.tolist(), strict=True)}
        adaptive = self._config.learning_rate_schedule == ADAPTIVE
        if adaptive and (approx_kl := metrics["train/approx_kl"]) is not None:
            rate = adapt_learning_rate(self._adapted_learning_rate, approx_kl, self._config.desired_kl)
            self._adapted_learning_rate = rate
        return metrics | {
            "train/explained_variance": explained_variance(prepared.values, prepared.value_targets),
            "train/effective_sample_size": effective_sample_size(prepared.ratios),
            **{f"train/{name}": value for name, value in settings.items()},
            "train/epochs": steps // self._config.minibatches,
        }

    def disagreement(self, batch: Batch, weights: dict[str, np.ndarray], to_inputs: ToInputs) -> float:
        """The mean difference between the log-probabilities of a batch's actions as its actors computed them and as
        this device does, with the `weights` that the actors had."""
        theirs = {name: mx.array(array) for name, array in weights.items()}
        vector = self._computation.layout.join({**self.model.state_dict(), **theirs})
        log_probs = self._evaluate_samples(vector, self._samples(batch, to_inputs), batch.rewards.shape)[1]
        return float(np.abs(log_probs - batch.behaviour_log_probs).mean())

    def _run_epochs(
        self,
        samples: dict[str, Any],
        iteration: int,
        settings: dict[str, float],
        interrupt: Callable[[], None],
        recompute: Callable[[], dict[str, Any]],
    ) -> tuple[mx.array, int]:
        """(the sums of all steps' metrics, in the order of `STEP_METRICS`, how many steps) of an update. `recompute`
        gives the samples with the advantages of now."""
        clip, entropy_coef = (mx.array(settings[name], mx.float32) for name in ("clip_range", "entropy_coef"))
        totals, steps, limit = mx.zeros(len(STEP_METRICS)), 0, self._config.target_kl
        previous: list[mx.array] = []
        judged, outcomes = [], []  # Of the epochs that are not measured yet.
        for epoch in range(self._config.epochs):
            if epoch and self._config.recompute_advantages:
                samples = recompute()
            order = mx.array(self._order(len(samples["actions"]), iteration, epoch))
            shuffled, minibatches = self._shuffle(samples, order)
            judged.append(shuffled)
            for minibatch in minibatches:
                interrupt()
                factors = self._optimizer.begin_step(settings["learning_rate"])
                outcome = self._step(minibatch, clip, entropy_coef, factors)
                mx.async_eval(outcome, self._optimizer.state)
                mx.eval(previous)  # Stay one step ahead of the device, not a whole iteration.
                previous = outcome
                outcomes.append(outcome)
                steps += 1
            if limit is None and epoch < self._config.epochs - 1:
                continue
            means = self._measure(judged, outcomes, clip, entropy_coef)
            totals = totals + len(outcomes) * means
            judged, outcomes = [], []
            if limit is not None and float(np.array(means)[STEP_METRICS.index("approx_kl")]) > limit:
                break
        return totals, steps

    def state_dict(self) -> dict[str, np.ndarray]:
        """Weights as `model.NAME`, Adam's moments and step count as `optimizer.NAME`: host copies of all of it."""
        weights = {f"model.{name}": array for name, array in self._optimizer.parameters().items()}
        moments = {f"optimizer.{name}": array for name, array in self._optimizer.state_dict().items()}
        return weights | moments | {"schedule.learning_rate": np.array(self._adapted_learning_rate)}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Continue from what `state_dict` returned."""
        self.model.load_state_dict(part_of(state, "model."))
        self._adapted_learning_rate = float(state["schedule.learning_rate"])
        self._optimizer.load_state_dict(part_of(state, "optimizer."))

    def _compile(self) -> None:
        computation, state = self._computation, self._optimizer.state

        def step(
            minibatch: dict[str, Any], clip: mx.array, entropy_coef: mx.array, factors: list[mx.array]
        ) -> list[mx.array]:
            gradient, outcome = computation.gradients(state[0], minibatch, clip, entropy_coef)
            return [*outcome, self._optimizer.step(gradient, factors)]

        def measure(
            judged: list[dict[str, mx.array]], outcomes: list[list[mx.array]], clip: mx.array, entropy_coef: mx.array
        ) -> mx.array:
            """The means of the metrics of some epochs, in the order of `STEP_METRICS`."""
            *outcome, norms = zip(*outcomes, strict=True)
            outcome = [mx.concatenate(list(arrays)) for arrays in outcome]
            samples = {name: mx.concatenate([epoch[name] for epoch in judged]) for name in TARGETS}
            _, shown = objective(outcome, samples, clip, entropy_coef, self._config)
            return mx.stack([*(array.mean() for array in shown), mx.stack(list(norms)).mean()])

        self._step = mx.compile(step, inputs=state, outputs=state)
        self._shuffle = mx.compile(self._minibatches)
        self._measure = mx.compile(measure)
        self._evaluate = mx.compile(computation.evaluate)
        self._evaluate_states = mx.compile(computation.values)

    def _scheduled(self, iteration: int) -> dict[str, float]:
        """The settings that follow a schedule, as they are in `iteration`."""
        remaining = 1 - self._horizon.progress(iteration)
        settings = {}
        for name in ("learning_rate", "clip_range", "entropy_coef"):
            text = getattr(self._config, f"{name}_schedule")
            if text == ADAPTIVE:
                settings[name] = self._adapted_learning_rate
            else:
                settings[name] = getattr(self._config, name) * parse_schedule(text, name)(remaining)
        return settings

    def _prepare(self, batch: Batch, iteration: int, to_inputs: ToInputs) -> Prepared:
        """The batch as samples, valued and with advantages.

        A sample is a step or, for a recurrent policy, the sequence of an environment's steps; samples come first in all
        arrays, which are then [B, …] or [num_envs, T, …].
        """
        samples = self._samples(batch, to_inputs)
        values, log_probs, next_values = self._valued(samples, batch, to_inputs)
        if (batch.policy_versions == iteration).all():
            # Lag 0: the proximal policy is the behaviour policy, to the last bit.
            proximal_log_probs = batch.behaviour_log_probs
            ratios = np.ones(batch.rewards.shape, np.float32)
        else:
            proximal_log_probs = log_probs
            ratios = np.exp(proximal_log_probs - batch.behaviour_log_probs)
        advantages, value_targets = self._advantages(batch, values, next_values, ratios)
        targets = {
            "proximal_log_probs": proximal_log_probs,
            "weights": np.minimum(ratios, MAX_SAMPLE_WEIGHT),
            "advantages": advantages,
            "values": values,
            "value_targets": value_targets,
        }
        samples |= {name: mx.array(self._arranged(array)) for name, array in targets.items()}
        return Prepared(samples, values, value_targets, ratios)

    def _recomputed(self, prepared: Prepared, batch: Batch, to_inputs: ToInputs) -> dict[str, Any]:
        """The samples of a batch, with advantages and value targets by the values of now."""
        values, _, next_values = self._valued(prepared.samples, batch, to_inputs)
        found = self._advantages(batch, values, next_values, prepared.ratios)
        targets = dict(zip(("advantages", "value_targets"), found, strict=True))
        return prepared.samples | {name: mx.array(self._arranged(array)) for name, array in targets.items()}

    def _valued(
        self, samples: dict[str, Any], batch: Batch, to_inputs: ToInputs
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(values, log-probabilities, values of what each step led to), all [T, num_envs], by the weights of now."""
        vector = self._optimizer.state[0]
        values, log_probs, hidden_states = self._evaluate_samples(vector, samples, batch.rewards.shape)
        return values, log_probs, self._next_values(batch, values, hidden_states, to_inputs)

    def _advantages(
        self, batch: Batch, values: np.ndarray, next_values: np.ndarray, ratios: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(advantages, value targets), both [T, num_envs]; by GAE where all ratios are 1."""
        steps = Steps(batch.rewards, values, next_values, batch.terminated, batch.truncated)
        return vtrace(steps, ratios, discount=self._config.discount, gae_lambda=self._config.gae_lambda)

    def _samples(self, batch: Batch, to_inputs: ToInputs) -> dict[str, Any]:
        """The arrays that a forward pass needs, with the samples first."""
        inputs = [mx.array(self._arranged(x)) for x in self._inputs(batch.observations, to_inputs)]
        samples: dict[str, Any] = {
            "inputs": self._computation.prepare(inputs),
            "actions": mx.array(self._arranged(batch.actions.reshape(*batch.rewards.shape, -1))),
        }
        if self.model.spaces.has_action_masks:
            allowed = self.model.spaces.unpack_masks(batch.extras["action_masks"])
            samples["allowed"] = mx.array(self._arranged(allowed))
        if self.model.recurrent:
            starts = np.concatenate([np.zeros_like(batch.done[:1]), batch.done[:-1]])
            samples |= {
                "starts": mx.array(self._arranged(starts), mx.float32),
                "hidden_state": mx.array(batch.extras["initial_hidden_state"]),
            }
        return samples

    def _evaluate_samples(
        self, vector: mx.array, samples: dict[str, Any], shape: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """(values, log-probabilities) [T, num_envs] and hidden states after each step [T, num_envs, hidden_state_size].

        Of a large network as many at a time as make a minibatch, so that its features need no more memory.
        """
        count = len(samples["actions"])
        size = count if self._computation.is_small else count // self._config.minibatches
        parts = [
            self._evaluate(vector, tree_map(lambda x: x[i : i + size], samples) if size < count else samples)  # noqa: B023
            for i in range(0, count, size)
        ]
        mx.eval(parts)  # All at once: the device need not wait for the host in between.
        values, log_probs, *hidden_states = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        if self.model.recurrent:
            return values.swapaxes(0, 1), log_probs.swapaxes(0, 1), hidden_states[0].swapaxes(0, 1)
        return values.reshape(shape), log_probs.reshape(shape), None

    def _next_values(
        self, batch: Batch, values: np.ndarray, hidden_states: np.ndarray | None, to_inputs: ToInputs
    ) -> np.ndarray:
        """Values [T, num_envs] of what each step led to: the next, last or truncated episode's final observation."""
        num_envs = values.shape[1]
        observations = np.concatenate([batch.last_observations, batch.final_observations])
        count = len(observations)
        if hidden_states is None:
            hidden_state = np.zeros((count, 0), np.float32)
        else:
            hidden_state = np.concatenate([hidden_states[-1], hidden_states[batch.truncated]])
        # Filled up with the first, so that shapes recur and nothing is compiled anew.
        rows = np.pad(np.arange(count), (0, -count % num_envs))
        inputs = self._computation.prepare([mx.array(x) for x in to_inputs(observations[rows])])
        everything = [*inputs, mx.array(hidden_state[rows])]
        found = []
        for start in range(0, len(rows), num_envs):
            *inputs, remembered = (x[start : start + num_envs] for x in everything)
            found.append(self._evaluate_states(self._optimizer.state[0], inputs, remembered))
        mx.eval(found)
        last, finals = np.split(np.concatenate(found)[:count], [num_envs])
        next_values = np.concatenate([values[1:], last[None]])
        next_values[batch.truncated] = finals
        return next_values

    def _inputs(self, observations: np.ndarray, to_inputs: ToInputs) -> list[np.ndarray]:
        """A network's inputs [T, num_envs, …] for raw observations [T, num_envs, *observation]."""
        shape = observations.shape[:2]
        return [x.reshape(*shape, *x.shape[1:]) for x in to_inputs(observations.reshape(-1, *observations.shape[2:]))]

    def _arranged(self, array: np.ndarray) -> np.ndarray:
        """[T, num_envs, …] with the samples first."""
        return (
            array.swapaxes(0, 1)
            if self.model.recurrent
            else array.reshape(math.prod(array.shape[:2]), *array.shape[2:])
        )

    def _order(self, count: int, iteration: int, epoch: int) -> np.ndarray:
        """The order of so many samples, uint32 [count], which only iteration and epoch decide."""
        random = generator(self._seed, Purpose.MINIBATCHES, iteration, epoch)
        return random.permutation(count).astype(np.uint32)

    def _minibatches(
        self, samples: dict[str, Any], order: mx.array
    ) -> tuple[dict[str, mx.array], list[dict[str, Any]]]:
        """(the targets in this order, all in it as minibatches), with advantages normalised over each minibatch."""
        shuffled = tree_map(lambda x: x[order], samples)
        if self._config.normalize_advantages:
            shuffled["advantages"] = normalized(shuffled["advantages"], self._config.minibatches)
        names, arrays = zip(*tree_flatten(shuffled), strict=True)
        split = zip(*(mx.split(x, self._config.minibatches) for x in arrays), strict=True)
        minibatches = [tree_unflatten(list(zip(names, parts, strict=True))) for parts in split]
        return {name: shuffled[name] for name in TARGETS}, minibatches


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def explained_variance(values: np.ndarray, value_targets: np.ndarray) -> float | None:
    """1 − Var(target − value) / Var(target): 1 is perfect, 0 is a constant's worth; None for constant targets."""
    variance = float(np.var(value_targets, dtype=np.float64))
    if variance == 0 or not math.isfinite(variance):
        return None
    return 1 - float(np.var(value_targets - values, dtype=np.float64)) / variance


def effective_sample_size(weights: np.ndarray) -> float | None:
    """(Σw)² / (n Σw²), of samples with importance weights (Kish 1965): 1 where all count the same, near 0 where few
    outweigh the rest; None where weights are not finite."""
    weights = weights.astype(np.float64)
    squares = float(np.square(weights).mean())
    return float(weights.mean()) ** 2 / squares if 0 < squares < math.inf else None
