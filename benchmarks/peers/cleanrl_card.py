"""PPO in a single file, in the manner of CleanRL's ppo.py: PyTorch and a vector environment in one process."""

import random
import sys
import time
from collections import deque

import gymnasium
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from gymnasium.spaces import Box, Discrete
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.distributions import Categorical  # pyright: ignore[reportMissingImports]

from benchmarks.peers.card import ADAM_EPSILON, HIDDEN, MAX_GRAD_NORM, VALUE_COEF, Answer, Card, answer, mean


def layer(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


def network(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    hidden = [layer(inputs, HIDDEN), nn.Tanh(), layer(HIDDEN, HIDDEN), nn.Tanh()]
    return nn.Sequential(*hidden, layer(HIDDEN, outputs, gain))


class Agent(nn.Module):
    """Separate networks for the policy and the value."""

    def __init__(self, observation_size: int, actions: int) -> None:
        super().__init__()
        self.actor = network(observation_size, actions, gain=0.01)
        self.critic = network(observation_size, 1, gain=1.0)

    def value(self, observations: torch.Tensor) -> torch.Tensor:
        return self.critic(observations).flatten()

    def distribution(self, observations: torch.Tensor) -> Categorical:
        return Categorical(logits=self.actor(observations))


def make_environment(env_id: str) -> gymnasium.Env:
    return gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(env_id))


def train(card: Card) -> Answer:
    """Do one run as the card says."""
    random.seed(card.seed)
    np.random.seed(card.seed)  # noqa: NPY002
    torch.manual_seed(card.seed)
    envs = gymnasium.vector.SyncVectorEnv(
        [lambda: make_environment(card.env)] * card.num_envs,
        autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
    )
    observation_space, action_space = envs.single_observation_space, envs.single_action_space
    if not isinstance(observation_space, Box) or not isinstance(action_space, Discrete):
        sys.exit("only vectors to observe and choices to act are known here")
    observation_size = observation_space.shape[0]
    agent = Agent(observation_size, int(action_space.n))
    optimizer = torch.optim.Adam(agent.parameters(), lr=card.learning_rate, eps=ADAM_EPSILON)

    steps, num_envs = card.rollout_length, card.num_envs
    observations = torch.zeros(steps, num_envs, observation_size)
    actions = torch.zeros(steps, num_envs)
    log_probs, rewards, dones, values = (torch.zeros(steps, num_envs) for _ in range(4))
    returns: deque[float] = deque(maxlen=100)
    env_steps = 0

    started = time.perf_counter()
    next_observation = torch.tensor(envs.reset(seed=card.seed)[0])
    next_done = torch.zeros(num_envs)
    for iteration in range(card.iterations):
        remaining = 1 - iteration / card.iterations
        if card.learning_rate_schedule == "linear":
            optimizer.param_groups[0]["lr"] = card.learning_rate * remaining
        clip_range = card.clip_range * (remaining if card.clip_range_schedule == "linear" else 1)

        for step in range(steps):
            env_steps += num_envs
            observations[step], dones[step] = next_observation, next_done
            with torch.no_grad():
                distribution = agent.distribution(next_observation)
                action = distribution.sample()
                log_probs[step] = distribution.log_prob(action)
                values[step] = agent.value(next_observation)
            actions[step] = action
            observed, reward, terminated, truncated, infos = envs.step(action.numpy())
            rewards[step] = torch.tensor(reward)
            next_observation = torch.tensor(observed)
            next_done = torch.tensor(np.logical_or(terminated, truncated), dtype=torch.float32)
            if "final_info" in infos:
                ended = infos["final_info"]["episode"]
                returns.extend(ended["r"][infos["_final_info"]].tolist())

        with torch.no_grad():
            advantages = torch.zeros_like(rewards)
            following, advantage = agent.value(next_observation), torch.zeros(num_envs)
            for step in reversed(range(steps)):
                alive = 1 - (next_done if step == steps - 1 else dones[step + 1])
                error = rewards[step] + card.discount * following * alive - values[step]
                advantage = error + card.discount * card.gae_lambda * alive * advantage
                advantages[step], following = advantage, values[step]
            targets = advantages + values

        flat_observations, flat_actions = observations.flatten(0, 1), actions.flatten()
        flat_log_probs, flat_advantages, flat_targets = log_probs.flatten(), advantages.flatten(), targets.flatten()
        order = np.arange(card.batch)
        for _ in range(card.epochs):
            np.random.shuffle(order)  # noqa: NPY002
            for start in range(0, card.batch, card.minibatch):
                chosen = order[start : start + card.minibatch]
                distribution = agent.distribution(flat_observations[chosen])
                new_values = agent.value(flat_observations[chosen])
                log_ratio = distribution.log_prob(flat_actions[chosen]) - flat_log_probs[chosen]
                ratio = log_ratio.exp()
                chosen_advantages = flat_advantages[chosen]
                chosen_advantages = (chosen_advantages - chosen_advantages.mean()) / (chosen_advantages.std() + 1e-8)
                clipped = torch.clamp(ratio, 1 - clip_range, 1 + clip_range)
                policy_loss = -torch.min(ratio * chosen_advantages, clipped * chosen_advantages).mean()
                value_loss = 0.5 * ((new_values - flat_targets[chosen]) ** 2).mean()
                entropy = distribution.entropy().mean()
                loss = policy_loss + VALUE_COEF * value_loss - card.entropy_coef * entropy
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)
                optimizer.step()
        if card.stop_return is not None and len(returns) == 100 and (mean(returns) or 0.0) >= card.stop_return:
            break
    seconds = time.perf_counter() - started
    envs.close()
    return Answer(env_steps, seconds, mean(returns))


if __name__ == "__main__":
    answer(train)
