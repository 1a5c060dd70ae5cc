"""The work card: what is to be trained and how, as flags that every contender reads, and the line that peers answer."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# What everyone does alike, and nobody needs to be told.
HIDDEN, VALUE_COEF, MAX_GRAD_NORM, ADAM_EPSILON = 64, 0.5, 0.5, 1e-5


@dataclass(frozen=True)
class Card:
    """A training run with PPO: Adam, and two networks of two layers of 64 tanh units."""

    env: str
    num_envs: int
    rollout_length: int
    minibatches: int
    epochs: int
    learning_rate: float
    total_steps: int
    learning_rate_schedule: str = "constant"  # or linear, to 0 at the end
    clip_range: float = 0.2
    clip_range_schedule: str = "constant"  # or linear
    discount: float = 0.99
    gae_lambda: float = 0.95
    entropy_coef: float = 0.0
    stop_return: float | None = None  # ends the run once the last 100 episodes reach it on average
    seed: int = 0

    @property
    def batch(self) -> int:
        return self.num_envs * self.rollout_length

    @property
    def minibatch(self) -> int:
        return self.batch // self.minibatches

    @property
    def iterations(self) -> int:
        return -(-self.total_steps // self.batch)

    def flags(self) -> list[str]:
        """The same card on a command line, launch.py's among others."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]

    @classmethod
    def from_flags(cls, arguments: list[str]) -> "Card":
        parser = argparse.ArgumentParser()
        for field in dataclasses.fields(cls):
            kind = float if field.name == "stop_return" else field.type
            assert callable(kind)
            required = field.default is dataclasses.MISSING
            default = None if required else field.default
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, required=required, default=default)
        return cls(**vars(parser.parse_args(arguments)))


@dataclass(frozen=True)
class Answer:
    """What a peer says of its run."""

    env_steps: int
    seconds: float  # of training, without imports
    episode_return: float | None  # mean of the last 100 episodes


def mean(returns: Sequence[float]) -> float | None:
    return sum(returns) / len(returns) if returns else None


def answer(train: Callable[[Card], Answer]) -> None:
    """Train as the command line says, and print the answer as the last line."""
    print(json.dumps(dataclasses.asdict(train(Card.from_flags(sys.argv[1:])))))
