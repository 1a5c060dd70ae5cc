"""Environments that depend on state outside of them, or exit, or hang: `doctor tests.environments_doctor:NAME-v0`."""

import os
import time
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv


class Odd(CartPoleEnv):
    """CartPole whose reward contains the value of `oddity`."""

    def oddity(self) -> float:
        return 0.0

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, float(reward) + self.oddity(), *rest


class Hashed(Odd):
    def oddity(self) -> float:
        return float(hash("pear") % 1000)


class Numbered(Odd):
    def oddity(self) -> float:
        return float(os.getpid())


class Shared(Odd):
    """The environment that was reset last changes the reward of all."""

    last: ClassVar[Any] = None

    def reset(self, **kwargs: Any) -> Any:
        Shared.last = self
        return super().reset(**kwargs)

    def oddity(self) -> float:
        return float(Shared.last is self)


class Drawn(Odd):
    def __init__(self) -> None:
        super().__init__()
        np.random.random()  # noqa: NPY002

    def reset(self, **kwargs: Any) -> Any:
        np.random.random()  # noqa: NPY002
        return super().reset(**kwargs)


class Leaving(Odd):
    def oddity(self) -> float:
        os._exit(3)


class Hanging(Odd):
    def oddity(self) -> float:
        time.sleep(1e6)
        return 0.0


for _kind in (Hashed, Numbered, Shared, Drawn, Leaving, Hanging):
    gymnasium.register(f"{_kind.__name__}-v0", entry_point=f"{__name__}:{_kind.__name__}", max_episode_steps=500)
