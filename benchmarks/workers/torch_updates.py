"""The same networks and the same PPO step in plain PyTorch, as a textbook writes it."""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from benchmarks.workers.serving import serve
from benchmarks.workloads import ACTIONS, MINIBATCHES, SHAPES, Workload, trajectory

CLIP_RANGE, VALUE_COEF, MAX_GRAD_NORM, LEARNING_RATE, ADAM_EPSILON = 0.2, 0.5, 0.5, 1e-6, 1e-5


class ActorCritic(nn.Module):
    """Separate networks for policy and value for vectors; one shared encoder for images."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        hidden, shape = workload.hidden, SHAPES[workload.network]
        if workload.network == "mlp":
            self.encoder, self.value_encoder = _mlp(shape[0], hidden), _mlp(shape[0], hidden)
        else:
            self.encoder, self.value_encoder = _nature_cnn(shape[2], hidden), None
        self.policy_head = nn.Linear(hidden, ACTIONS)
        self.value_head = nn.Linear(hidden, 1)

    def forward(self, x: Any) -> tuple[Any, Any]:
        """(logits [B, actions], values [B])."""
        features = self.encoder(x)
        of_value = features if self.value_encoder is None else self.value_encoder(x)
        return self.policy_head(features), self.value_head(of_value)[:, 0]


class Scaled(nn.Module):
    """Scales bytes to numbers from 0 to 1."""

    def forward(self, x: Any) -> Any:
        return x.float() / 255


def _mlp(inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())


def _nature_cnn(channels: int, hidden: int) -> nn.Sequential:
    convolutions = [nn.Conv2d(channels, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()]
    convolutions += [nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(Scaled(), *convolutions, nn.Linear(64 * 7 * 7, hidden), nn.ReLU())


class Training:
    """Training steps, repeated on one batch."""

    def __init__(self, workload: Workload) -> None:
        random = trajectory(workload.spaces, workload.experiment, lane=0, rollout_index=0)
        observations = torch.tensor(random.observations).flatten(0, 1)
        if workload.network == "nature_cnn":
            observations = observations.permute(0, 3, 1, 2).contiguous()  # PyTorch expects channels first.
        self.size = workload.batch
        self.minibatch = workload.minibatch
        self.observations = observations
        self.actions = torch.tensor(random.actions).flatten()
        self.old_log_probs = torch.full((self.size,), -math.log(ACTIONS))
        self.advantages, self.value_targets = torch.randn(self.size), torch.randn(self.size)
        self.model = ActorCritic(workload)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, eps=ADAM_EPSILON)

    def epoch(self) -> None:
        for indices in torch.randperm(self.size).split(self.minibatch):
            self.step(indices)

    def step(self, indices: Any) -> None:
        """One step of Adam. It reports no metrics, because metrics would cost PyTorch extra time."""
        logits, values = self.model(self.observations[indices])
        distribution = torch.distributions.Categorical(logits=logits, validate_args=False)
        ratio = torch.exp(distribution.log_prob(self.actions[indices]) - self.old_log_probs[indices])
        advantages = self.advantages[indices]
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped = torch.clamp(ratio, 1 - CLIP_RANGE, 1 + CLIP_RANGE)
        policy_loss = -torch.min(ratio * advantages, clipped * advantages).mean()
        value_loss = 0.5 * (values - self.value_targets[indices]).square().mean()
        loss = policy_loss + VALUE_COEF * value_loss - 0.0 * distribution.entropy().mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()


def prepare() -> Callable[..., dict[str, Any]]:
    """Prepare PyTorch; returns the function that answers requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if on_gpu := arguments.device == "gpu":
        torch.set_default_device(torch.accelerator.current_accelerator())  # CUDA or Apple's GPU
    trainings: dict[Workload, Training] = {}

    def answer(workload: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Measure the seconds of a minibatch step, over as many epochs as fit into `seconds`."""
        wanted = Workload(**workload)
        if wanted not in trainings:
            trainings[wanted] = Training(wanted)
            trainings[wanted].epoch()
        training, steps, started = trainings[wanted], 0, time.perf_counter()
        while time.perf_counter() - started < seconds or not steps:
            training.epoch()
            steps += MINIBATCHES
            if on_gpu:
                torch.accelerator.synchronize()  # A step returns before the GPU has finished it.
        elapsed = time.perf_counter() - started
        return {"seconds": elapsed / steps}

    return answer


if __name__ == "__main__":
    serve(prepare)
