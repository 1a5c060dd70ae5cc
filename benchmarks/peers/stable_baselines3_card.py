"""Stable-Baselines3's PPO with its DummyVecEnv, with the card's settings and otherwise the defaults; with
`--maskable` the MaskablePPO of sb3-contrib."""

import sys
import time
from collections.abc import Callable
from typing import Any

from stable_baselines3 import PPO  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.base_class import BaseAlgorithm  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore[reportMissingImports]

from benchmarks.peers.card import Answer, Card, answer, mean


class StopAtReturn(BaseCallback):
    """Ends training once the mean return of the last 100 episodes reaches `target`; checks once per iteration."""

    def __init__(self, target: float | None) -> None:
        super().__init__()
        self._target = target
        self._reached = False

    def _on_rollout_start(self) -> None:
        returns = returns_of(self.model)
        if self._target is not None and len(returns) == 100:
            self._reached = (mean(returns) or 0.0) >= self._target

    def _on_step(self) -> bool:
        return not self._reached


def returns_of(model: BaseAlgorithm) -> list[float]:
    return [episode["r"] for episode in model.ep_info_buffer or ()]


def schedule(value: float, name: str) -> float | Callable[[float], float]:
    return (lambda remaining: value * remaining) if name == "linear" else value


def train(card: Card, algorithm: Any = PPO) -> Answer:
    """Do one run as the card says. Its MLP is two networks of tanh units."""
    envs = make_vec_env(card.env, n_envs=card.num_envs, seed=card.seed)
    model = algorithm(
        "MlpPolicy",
        envs,
        learning_rate=schedule(card.learning_rate, card.learning_rate_schedule),
        n_steps=card.rollout_length,
        batch_size=card.minibatch,
        n_epochs=card.epochs,
        gamma=card.discount,
        gae_lambda=card.gae_lambda,
        clip_range=schedule(card.clip_range, card.clip_range_schedule),
        ent_coef=card.entropy_coef,
        policy_kwargs={"net_arch": list(card.hidden_sizes)},
        seed=card.seed,
        device="cpu",
    )
    started = time.perf_counter()
    model.learn(card.iterations * card.batch, callback=StopAtReturn(card.stop_return))
    seconds = time.perf_counter() - started
    return Answer(model.num_timesteps, seconds, mean(returns_of(model)))


if __name__ == "__main__":
    if "--maskable" in sys.argv[2:]:
        from sb3_contrib import MaskablePPO  # pyright: ignore[reportMissingImports]

        answer(train(Card.parse(sys.argv[1]), MaskablePPO))
    else:
        answer(train(Card.parse(sys.argv[1])))
