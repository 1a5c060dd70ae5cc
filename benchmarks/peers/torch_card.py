"""PPO in a single file of PyTorch, in the manner of CleanRL: MLPs, the Nature CNN, or an LSTM, in one process.

`--compile` compiles acting and the whole training step by torch.compile. `--vector` chooses who steps environments:
gymnasium's SyncVectorEnv, its AsyncVectorEnv with a process for each environment, or EnvPool with threads.
"""

import argparse
import time
from collections import deque
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from gymnasium.spaces import Discrete
from torch import nn  # pyright: ignore[reportMissingImports]

from benchmarks.peers.card import ADAM_EPSILON, MAX_GRAD_NORM, VALUE_COEF, Answer, Card, answer, mean

LOG_2PI = float(np.log(2 * np.pi))


def layer(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


def mlp(inputs: int, sizes: tuple[int, ...]) -> nn.Sequential:
    return nn.Sequential(*(m for pair in pairwise((inputs, *sizes)) for m in (layer(*pair), nn.Tanh())))


class NatureCNN(nn.Sequential):
    """Three convolutions and a layer (Mnih et al. 2015)."""

    def __init__(self, channels: int, size: int) -> None:
        convolutions = [nn.Conv2d(channels, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)]
        super().__init__(*(m for each in convolutions for m in (each, nn.ReLU())), nn.Flatten(), layer(3136, size))
        self.append(nn.ReLU())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input * (1 / 255))


class Agent(nn.Module):
    """Two networks for vectors; one body with two heads for images and with an LSTM."""

    def __init__(self, card: Card, shape: tuple[int, ...], outputs: int, discrete: bool) -> None:
        super().__init__()
        self.memory, self.entropy_coef = card.recurrent_size, card.entropy_coef
        size = card.hidden_sizes[-1]
        is_shared = card.network == "nature_cnn" or self.memory > 0
        if card.network == "nature_cnn":
            self.body = NatureCNN(shape[0], size)
        else:
            self.body = mlp(shape[0], card.hidden_sizes) if is_shared else nn.Identity()
        if self.memory:
            self.lstm, size = nn.LSTM(size, self.memory), self.memory
        heads = layer(size, outputs, 0.01), layer(size, 1, 1.0)
        if not is_shared:
            heads = tuple(nn.Sequential(mlp(shape[0], card.hidden_sizes), head) for head in heads)
        self.policy, self.value = heads
        self.log_std = None if discrete else nn.Parameter(torch.zeros(outputs))

    def evaluate(
        self, observations: torch.Tensor, state: torch.Tensor, starts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(outputs, values, state) of observations [T, n, …], and starts [T, n], 1 where an episode begins."""
        x = self.body(observations.flatten(0, 1).float())
        if self.memory:
            sequence = []
            for at, keep in zip(x.unflatten(0, starts.shape), 1 - starts[..., None], strict=True):
                _, (hidden, cell) = self.lstm(at[None], (state[:1] * keep, state[1:] * keep))
                state = torch.cat([hidden, cell])
                sequence.append(hidden[0])
            x = torch.cat(sequence)
        return self.policy(x), self.value(x)[:, 0], state

    def judge(self, outputs: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the actions, and the mean entropy."""
        if self.log_std is None:
            logits = outputs.log_softmax(-1)
            return logits.gather(1, actions[:, None])[:, 0], -(logits.exp() * logits).sum(-1).mean()
        deviations = (actions - outputs) * (-self.log_std).exp()
        log_probs = (-0.5 * (deviations**2 + LOG_2PI) - self.log_std).sum(-1)
        return log_probs, (self.log_std + 0.5 * (1 + LOG_2PI)).sum()

    def act(
        self, observations: torch.Tensor, state: torch.Tensor, starts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(actions, log-probabilities, values, state) for one observation of each environment."""
        with torch.no_grad():
            outputs, values, state = self.evaluate(observations[None], state, starts[None])
            if self.log_std is None:
                actions = (outputs - (-torch.rand_like(outputs).log()).log()).argmax(-1)
            else:
                actions = outputs + self.log_std.exp() * torch.randn_like(outputs)
            return actions, self.judge(outputs, actions)[0], values, state

    def forward(self, batch: dict[str, torch.Tensor], state: torch.Tensor, clip: torch.Tensor) -> torch.Tensor:
        """PPO's loss."""
        found, values, _ = self.evaluate(batch["observations"], state, batch["starts"])
        log_probs, entropy = self.judge(found, batch["actions"].flatten(0, 1))
        ratio = (log_probs - batch["log_probs"].flatten()).exp()
        advantages = batch["advantages"].flatten()
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        policy_loss = -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()
        value_loss = 0.5 * ((values - batch["targets"].flatten()) ** 2).mean()
        return policy_loss + VALUE_COEF * value_loss - self.entropy_coef * entropy


class Steps:
    """Training steps in the usual way of PyTorch."""

    def __init__(self, agent: Agent, card: Card) -> None:
        self.rate = torch.tensor(card.learning_rate)
        self._agent = agent
        self._optimizer = torch.optim.Adam(agent.parameters(), lr=self.rate, eps=ADAM_EPSILON, fused=True)

    def take(self, batch: dict[str, torch.Tensor], state: torch.Tensor, clip: torch.Tensor) -> None:
        self._optimizer.zero_grad()
        self._agent(batch, state, clip).backward()
        nn.utils.clip_grad_norm_(self._agent.parameters(), MAX_GRAD_NORM)
        self._optimizer.step()


class CompiledSteps:
    """Training steps of one compiled function: the loss, its gradient, its norm and Adam."""

    def __init__(self, agent: Agent, card: Card) -> None:
        self.rate = torch.tensor(card.learning_rate)
        self._params = {name: param.detach() for name, param in agent.named_parameters()}
        self._first, self._second = ({name: torch.zeros_like(p) for name, p in self._params.items()} for _ in "12")
        self._count = torch.tensor(0.0)

        @torch.compile
        def step(params: Any, first: Any, second: Any, count: Any, rate: Any, inputs: Any) -> None:
            gradients = torch.func.grad(lambda params: torch.func.functional_call(agent, params, inputs))(params)
            norm = sum((gradient**2).sum() for gradient in gradients.values()) ** 0.5
            scale = (MAX_GRAD_NORM / (norm + 1e-6)).clamp(max=1.0)
            count.add_(1)
            rate, root = rate / (1 - 0.9**count), (1 - 0.999**count).sqrt()
            for name, gradient in gradients.items():
                first[name].mul_(0.9).add_(0.1 * scale * gradient)
                second[name].mul_(0.999).add_(0.001 * (scale * gradient) ** 2)
                params[name].sub_(rate * first[name] / (second[name].sqrt() / root + ADAM_EPSILON))

        self._step = step

    def take(self, *inputs: Any) -> None:
        self._step(self._params, self._first, self._second, self._count, self.rate, inputs)


def make_environments(card: Card, vector: str) -> Any:
    if vector == "envpool":
        import envpool  # pyright: ignore[reportMissingImports]

        name = card.env.rsplit("/", 1)[-1]
        return envpool.make(name, env_type="gymnasium", num_envs=card.num_envs, seed=card.seed)
    kind = gymnasium.vector.SyncVectorEnv if vector == "sync" else gymnasium.vector.AsyncVectorEnv
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    return kind([lambda: gymnasium.make(card.env)] * card.num_envs, autoreset_mode=mode)


def train(card: Card, compiled: bool = False, vector: str = "sync") -> Answer:
    """Do one run as the card says."""
    random = np.random.default_rng(card.seed)
    torch.manual_seed(card.seed)
    envs = make_environments(card, vector)
    observation = envs.reset()[0] if vector == "envpool" else envs.reset(seed=card.seed)[0]
    space = envs.action_space if vector == "envpool" else envs.single_action_space
    discrete = isinstance(space, Discrete)
    outputs = int(space.n) if discrete else space.shape[0]
    agent = Agent(card, observation.shape[1:], outputs, discrete)
    steps = CompiledSteps(agent, card) if compiled else Steps(agent, card)
    act = torch.compile(agent.act) if compiled else agent.act
    length, num_envs = card.rollout_length, card.num_envs
    rollout = {
        "observations": torch.zeros(length, num_envs, *observation.shape[1:], dtype=torch.as_tensor(observation).dtype),
        "actions": torch.zeros(
            length, num_envs, *(() if discrete else (outputs,)), dtype=torch.long if discrete else None
        ),
        **{name: torch.zeros(length, num_envs) for name in ("log_probs", "values", "rewards", "starts")},
    }
    state, starts = torch.zeros(2, num_envs, agent.memory), torch.zeros(num_envs)
    returns: deque[float] = deque(maxlen=100)
    sums = np.zeros(num_envs)

    def collect() -> tuple[torch.Tensor, torch.Tensor]:
        """Fill the rollout; returns the state before it, and the values after it."""
        nonlocal observation, state, starts
        before = state
        for t in range(length):
            rollout["observations"][t], rollout["starts"][t] = torch.as_tensor(observation), starts
            actions, log_probs, values, state = act(torch.as_tensor(observation), state, starts)
            rollout["actions"][t], rollout["log_probs"][t], rollout["values"][t] = actions, log_probs, values
            taken = actions.numpy() if discrete else actions.numpy().clip(space.low, space.high)
            observation, rewards, terminated, truncated, _ = envs.step(taken)
            done = np.logical_or(terminated, truncated)
            sums[:] += rewards
            returns.extend(sums[done].tolist())
            sums[done] = 0
            rollout["rewards"][t] = torch.as_tensor(rewards)
            starts = torch.as_tensor(done, dtype=torch.float32)
        return before, act(torch.as_tensor(observation), state, starts)[2]

    def update(before: torch.Tensor, following: torch.Tensor, clip: torch.Tensor) -> None:
        advantages, advantage = torch.zeros(length, num_envs), torch.zeros(num_envs)
        alive = 1 - starts
        for t in reversed(range(length)):
            error = rollout["rewards"][t] + card.discount * following * alive - rollout["values"][t]
            advantage = error + card.discount * card.gae_lambda * alive * advantage
            advantages[t], following, alive = advantage, rollout["values"][t], 1 - rollout["starts"][t]
        samples = {**rollout, "advantages": advantages, "targets": advantages + rollout["values"]}
        if not agent.memory:
            samples = {name: array.flatten(0, 1)[None] for name, array in samples.items()}
        count = samples["rewards"].shape[1]
        for _ in range(card.epochs):
            for chosen in torch.as_tensor(random.permutation(count)).split(count // card.minibatches):
                parts = {name: array[:, chosen] for name, array in samples.items()}
                steps.take(parts, before[:, chosen] if agent.memory else before, clip)

    update(*collect(), torch.tensor(0.0))  # Before the time is measured, for it compiles.
    started = time.perf_counter()
    iteration = 0
    for iteration in range(card.iterations):
        remaining = 1 - iteration / card.iterations
        steps.rate.fill_(card.learning_rate * (remaining if card.learning_rate_schedule == "linear" else 1))
        clip = torch.tensor(card.clip_range * (remaining if card.clip_range_schedule == "linear" else 1))
        update(*collect(), clip)
        if card.stop_return is not None and len(returns) == 100 and (mean(returns) or 0.0) >= card.stop_return:
            break
    seconds = time.perf_counter() - started
    envs.close()
    return Answer((iteration + 1) * card.batch, seconds, mean(returns))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("card", type=Card.parse)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--vector", choices=("sync", "async", "envpool"), default="sync")
    arguments = parser.parse_args()
    answer(train(arguments.card, arguments.compile, arguments.vector))
