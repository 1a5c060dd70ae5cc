"""The work card: the training settings as flags that every contender reads, and the line that peers answer."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Settings that are the same for every contender, so they are not on the card.
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
    learning_rate_schedule: str = "constant"  # "constant", or "linear" to 0 at the end.
    clip_range: float = 0.2
    clip_range_schedule: str = "constant"  # "constant" or "linear".
    discount: float = 0.99
    gae_lambda: float = 0.95
    entropy_coef: float = 0.0
    stop_return: float | None = None  # The run ends once the mean return of the last 100 episodes reaches this.
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
        """The card as flags, which launch.py understands, too."""
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
    """The results that a peer prints about its run."""

    env_steps: int
    seconds: float  # Training time, without imports.
    episode_return: float | None  # Mean of the last 100 episodes.


def mean(returns: Sequence[float]) -> float | None:
    return sum(returns) / len(returns) if returns else None


def answer(train: Callable[[Card], Answer]) -> None:
    """Train as the command line says, and print the answer as the last line."""
    print(json.dumps(dataclasses.asdict(train(Card.from_flags(sys.argv[1:])))))
