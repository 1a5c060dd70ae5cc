"""One PPO update here and the same update in plain PyTorch: every parameter ends with the same value."""

import math
from typing import Any

import numpy as np
import pytest
from making import batch_of, continuous, discrete, numbers, trained_model

from learner.batch import Batch
from learner.model import ActorCritic
from learner.ppo import PPO
from protocol.experiment import Experiment
from protocol.randomness import Purpose, generator
from protocol.spaces import Spaces
from rundir.config import PPOConfig
from rundir.schedules import Horizon

torch: Any = pytest.importorskip("torch", reason="PyTorch is only here to compare with")

T, N, SEED, ITERATION = 8, 4, 11, 3
EXPERIMENT = Experiment(hidden_sizes=(16, 8))
DISCRETE, CONTINUOUS = discrete(numbers(3), 4), continuous(numbers(3), 2)
CONFIG = PPOConfig(
    learning_rate=3e-3,
    learning_rate_schedule="constant",
    epochs=3,
    minibatches=4,
    clip_range=0.1,
    discount=0.97,
    gae_lambda=0.9,
    entropy_coef=0.02,
    value_coef=0.6,
    max_grad_norm=0.4,
)


class Reference:
    """An actor and a critic in PyTorch, with the weights of an `ActorCritic`."""

    def __init__(self, model: ActorCritic) -> None:
        self.weights = {
            name: torch.tensor(np.array(array), requires_grad=True) for name, array in model.named_parameters()
        }
        self._gaussian = "log_std" in self.weights

    def __call__(self, observations: Any) -> tuple[Any, Any]:
        """(distribution, values)."""
        outputs = self._network("encoder", "policy_head", observations)
        values = self._network("value_encoder", "value_head", observations)[:, 0]
        if self._gaussian:
            normal = torch.distributions.Normal(outputs, self.weights["log_std"].exp(), validate_args=False)
            return torch.distributions.Independent(normal, 1, validate_args=False), values
        return torch.distributions.Categorical(logits=outputs, validate_args=False), values

    def _network(self, encoder: str, head: str, x: Any) -> Any:
        for i in range(2):
            x = torch.tanh(self._linear(f"{encoder}.layers.{i}", x))
        return self._linear(head, x)

    def _linear(self, name: str, x: Any) -> Any:
        return torch.nn.functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


def make_batch(reference: Reference, spaces: Spaces) -> Batch:
    """Experience whose log-probabilities come from the reference, with both kinds of episode ends."""
    random = np.random.default_rng(0)
    observations = random.standard_normal((T + 1, N, 3)).astype(np.float32)
    if spaces.distribution == "categorical":
        actions = random.integers(4, size=(T, N))
    else:
        actions = random.standard_normal((T, N, 2)).astype(np.float32)
    with torch.no_grad():
        distribution, _ = reference(torch.tensor(observations[:-1].reshape(T * N, 3)))
        log_probs = distribution.log_prob(torch.tensor(actions.reshape(T * N, *actions.shape[2:])))
    return batch_of(random, observations, actions, log_probs.numpy(), ITERATION)


def advantages_of(batch: Batch, values: Any, following: Any, finals: Any, config: PPOConfig) -> Any:
    """Generalised advantage estimation, environment by environment, backwards in time."""
    finals = dict(zip(map(tuple, np.argwhere(batch.truncated).tolist()), finals.tolist(), strict=True))
    advantages = torch.zeros(T, N)
    for n in range(N):
        advantage = 0.0
        for t in reversed(range(T)):
            value = values[t, n].item()
            after = following[n].item() if t == T - 1 else values[t + 1, n].item()
            reward = float(batch.rewards[t, n])
            if batch.terminated[t, n]:
                advantage = reward - value
            elif batch.truncated[t, n]:
                advantage = reward + config.discount * finals[t, n] - value
            else:
                error = reward + config.discount * after - value
                advantage = error + config.discount * config.gae_lambda * advantage
            advantages[t, n] = advantage
    return advantages


def update(reference: Reference, batch: Batch, config: PPOConfig) -> None:
    """One iteration of PPO."""
    observations = torch.tensor(batch.observations.reshape(T * N, 3))
    actions = torch.tensor(batch.actions.reshape(T * N, *batch.actions.shape[2:]))
    old_log_probs = torch.tensor(batch.behaviour_log_probs.reshape(T * N))
    with torch.no_grad():
        old_values = reference(observations)[1]
        following = reference(torch.tensor(batch.last_observations))[1]
        finals = reference(torch.tensor(batch.final_observations))[1]
    advantages = advantages_of(batch, old_values.reshape(T, N), following, finals, config).reshape(T * N)
    targets = advantages + old_values

    optimizer = torch.optim.Adam(reference.weights.values(), lr=config.learning_rate, eps=1e-5)
    for epoch in range(config.epochs):
        order = generator(SEED, Purpose.MINIBATCHES, ITERATION, epoch).permutation(T * N)
        for indices in np.split(order, config.minibatches):
            distribution, values = reference(observations[indices])
            ratio = torch.exp(distribution.log_prob(actions[indices]) - old_log_probs[indices])
            advantage = advantages[indices]
            if config.normalize_advantages:
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            clipped = torch.clamp(ratio, 1 - config.clip_range, 1 + config.clip_range)
            policy_loss = -torch.min(ratio * advantage, clipped * advantage).mean()
            errors = (values - targets[indices]) ** 2
            limit = config.value_clip_range
            if limit is not None:
                moved = torch.clamp(values - old_values[indices], -limit, limit)
                errors = torch.max(errors, (old_values[indices] + moved - targets[indices]) ** 2)
            entropy = distribution.entropy().mean()
            loss = policy_loss + config.value_coef * 0.5 * errors.mean() - config.entropy_coef * entropy
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(reference.weights.values(), config.max_grad_norm)
            optimizer.step()


def as_is(observations: np.ndarray) -> list[np.ndarray]:
    return [observations]


CASES = {
    "categorical": (DISCRETE, {}),
    "gaussian": (CONTINUOUS, {}),
    "categorical, values clipped": (DISCRETE, {"value_clip_range": 0.05, "max_grad_norm": math.inf}),
    "gaussian, values clipped": (CONTINUOUS, {"value_clip_range": 0.05, "normalize_advantages": False}),
}


@pytest.mark.parametrize(("spaces", "changes"), CASES.values(), ids=CASES)
def test_an_update_of_ppo_moves_every_parameter_as_pytorch_does(spaces: Spaces, changes: dict[str, Any]) -> None:
    config = PPOConfig(**(vars(CONFIG) | changes))
    model = trained_model(spaces, EXPERIMENT, np.random.default_rng(1))
    before = {name: np.array(array) for name, array in model.named_parameters()}
    reference = Reference(model)
    batch = make_batch(reference, spaces)

    update(reference, batch, config)
    metrics = PPO(model, config, SEED, horizon=Horizon((10,))).update(batch, ITERATION, as_is, lambda: None)
    assert 0 < metrics["train/clip_fraction"] < 1
    assert metrics["train/epochs"] == config.epochs
    for name, array in model.named_parameters():
        ours, theirs = np.array(array), reference.weights[name].detach().numpy()
        assert np.abs(ours - before[name]).max() > 1e-3, f"{name} has hardly moved"
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=name)
