"""The work card: the training settings, as flags of launch.py and as text for peers, and the line that peers answer."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

# Settings that are the same for every contender, so they are not on the card.
VALUE_COEF, MAX_GRAD_NORM, ADAM_EPSILON = 0.5, 0.5, 1e-5


@dataclass(frozen=True)
class Card:
    """A training run with PPO and Adam."""

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
    network: str = "mlp"  # "mlp", two networks of two layers of tanh units, or "nature_cnn".
    hidden_sizes: tuple[int, ...] = (64, 64)  # Units of the MLP's two layers, or of the layer after convolutions.
    recurrent_size: int = 0  # Units of the recurrent cell after the MLP, if any.

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
        """The card as flags of launch.py."""
        words = []
        for name, value in dataclasses.asdict(self).items():
            if value is not None:
                words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
        return words

    def text(self) -> str:
        """The card as the one argument that a peer reads by `parse`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def parse(cls, text: str) -> "Card":
        values = json.loads(text)
        return cls(**{**values, "hidden_sizes": tuple(values["hidden_sizes"])})


@dataclass(frozen=True)
class Answer:
    """The results that a peer prints about its run."""

    env_steps: int
    seconds: float  # Training time, without imports.
    episode_return: float | None  # Mean of the last 100 episodes.


def mean(returns: Sequence[float]) -> float | None:
    return sum(returns) / len(returns) if returns else None


def answer(result: Answer) -> None:
    """Print the result of a run as the last line."""
    print(json.dumps(dataclasses.asdict(result)))
