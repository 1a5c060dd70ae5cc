"""Environments that misbehave, for the tests: `--env tests.environments:NAME-v0`.

What goes wrong only a few times leaves marks in the directory that `MARKS` names, so that other processes know.
"""

import os
import random
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv


def first_times(name: str, count: int) -> bool:
    """Whether this is among the first `count` times, over all processes, that `name` happens."""
    for i in range(count):
        try:
            (Path(os.environ["MARKS"]) / f"{name}-{i}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return True
    return False


class Misbehaving(CartPoleEnv):
    """CartPole that does `fault` at the 20th step of every episode whose seed is a multiple of `every`."""

    def __init__(self, fault: str, every: int = 5) -> None:
        super().__init__()
        self._fault = fault
        self._every = every
        self._steps = 0
        self._doomed = False
        if fault == "constructor":
            raise RuntimeError("the constructor fails")

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self._steps = 0
        self._doomed = seed is not None and seed % self._every == 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        self._steps += 1
        observation, reward, terminated, truncated, info = super().step(action)
        if self._doomed and self._steps == 20:
            match self._fault:
                case "raise":
                    raise RuntimeError("the step fails")
                case "nan":
                    observation = observation * np.nan
                case "inf-reward":
                    reward = float("inf")
                case "shape":
                    observation = observation[:2]
                case "hang":
                    if first_times("hang", 2):
                        time.sleep(1e6)
                case "exit":
                    if first_times("exit", 3):
                        os._exit(7)
        return observation, reward, terminated, truncated, info


class Forgetful(CartPoleEnv):
    """CartPole whose noise survives a reset, so that replay leads elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._noise = np.random.default_rng()

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation + self._noise.normal(0, 1e-3, 4).astype(np.float32), reward, terminated, truncated, info


class GlobalRandom(CartPoleEnv):
    """CartPole that draws from the generator all share."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + random.random(), terminated, truncated, info


class RememberingReward(gymnasium.Wrapper):
    """CartPole under gymnasium's NormalizeReward, whose statistics survive a reset."""

    def __init__(self) -> None:
        super().__init__(gymnasium.wrappers.NormalizeReward(CartPoleEnv()))


for _fault in ("raise", "nan", "inf-reward", "shape", "hang", "exit", "constructor"):
    gymnasium.register(
        f"{_fault.title()}-v0", entry_point=f"{__name__}:Misbehaving", kwargs={"fault": _fault}, max_episode_steps=500
    )
gymnasium.register("Forgetful-v0", entry_point=f"{__name__}:Forgetful", max_episode_steps=500)
gymnasium.register("GlobalRandom-v0", entry_point=f"{__name__}:GlobalRandom", max_episode_steps=500)
gymnasium.register("RememberingReward-v0", entry_point=f"{__name__}:RememberingReward", max_episode_steps=500)
gymnasium.register(
    "PongRam-v0", entry_point="ale_py.env:AtariEnv", kwargs={"game": "pong", "obs_type": "ram", "frameskip": 4}
)
