"""Environments that misbehave, for the tests: `--env tests.environments:NAME-v0`.

A fault that happens only a few times leaves files in the directory that the environment variable `MARKS` names, so that
other processes know how often it has happened.
"""

import os
import random
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv


def first_times(name: str, count: int) -> bool:
    """Whether this call is among the first `count` calls with `name`, counted over all processes."""
    for i in range(count):
        try:
            (Path(os.environ["MARKS"]) / f"{name}-{i}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return True
    return False


class Misbehaving(CartPoleEnv):
    """CartPole with a `fault` at the 20th step of every episode whose seed is a multiple of `every`."""

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
    """CartPole whose noise generator is not reset, so that a replay gives other observations."""

    def __init__(self) -> None:
        super().__init__()
        self._noise = np.random.default_rng()

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation + self._noise.normal(0, 1e-3, 4).astype(np.float32), reward, terminated, truncated, info


class GlobalRandom(CartPoleEnv):
    """CartPole that draws from Python's global random generator."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + random.random(), terminated, truncated, info


class RememberingReward(gymnasium.Wrapper):
    """CartPole in gymnasium's NormalizeReward, whose statistics are not reset with the environment."""

    def __init__(self) -> None:
        super().__init__(gymnasium.wrappers.NormalizeReward(CartPoleEnv()))


class EverySpace(gymnasium.Env):
    """Random observations and actions of the named spaces; the reward is the action's sum divided by 10."""

    OBSERVATIONS = {  # noqa: RUF012
        "matrix": spaces.Box(-5, 5, (2, 3), np.float64),
        "ram": spaces.Box(0, 255, (16,), np.uint8),
        "image": spaces.Box(0, 255, (12, 10, 3), np.uint8),
        "frames": spaces.Box(0, 255, (4, 40, 40), np.uint8),
        "discrete": spaces.Discrete(5, start=3),
        "multi_discrete": spaces.MultiDiscrete([3, 4], start=[1, -2]),
        "multi_binary": spaces.MultiBinary((2, 2)),
        "dict": spaces.Dict(
            {
                "where": spaces.Box(-5, 5, (3,), np.float64),
                "camera": spaces.Box(0, 255, (3, 12, 12), np.uint8),
                "bag": spaces.Tuple((spaces.Discrete(4, start=-1), spaces.MultiBinary(3))),
            }
        ),
        "text": spaces.Dict({"where": spaces.Box(-5, 5, (3,)), "mission": spaces.Text(5)}),
    }
    ACTIONS = {  # noqa: RUF012
        "discrete": spaces.Discrete(3, start=5),
        "box": spaces.Box(np.float32(-0.5), np.float32(0.5), (2, 2)),
        "unbounded": spaces.Box(-np.inf, np.inf, (3,), np.float64),
        "multi_discrete": spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
        "multi_binary": spaces.MultiBinary(4),
        "dict": spaces.Dict({"a": spaces.Discrete(2)}),
    }

    def __init__(self, observation: str = "matrix", action: str = "discrete") -> None:
        # Copies, because drawing from a space changes it, and actors may be threads of one process.
        self.observation_space = deepcopy(self.OBSERVATIONS[observation])
        self.action_space = deepcopy(self.ACTIONS[action])

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self._draw(self.observation_space), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        over = self.np_random.random() < 0.05
        reward = float(np.sum(action)) / 10
        return self._draw(self.observation_space), reward, over and reward < 0.5, over and reward >= 0.5, {}

    def _draw(self, space: gymnasium.Space) -> Any:
        match space:
            case spaces.Dict():
                return {key: self._draw(part) for key, part in space.items()}
            case spaces.Tuple():
                return tuple(self._draw(part) for part in space)
            case spaces.Text():
                return "hello"
        space.seed(int(self.np_random.integers(2**31)))
        return space.sample()


class TMaze(gymnasium.Env):
    """A corridor whose first cell shows on which side of its far end the goal lies: 0 goes on, 1 and 2 turn.

    Turning to the goal at the end gives 1, and turning the other way −1. A turn before the end and action 0 at the end
    give −0.1.
    """

    LENGTH = 6

    observation_space = spaces.Box(-1, 1, (2,), np.float32)  # (goal's side; 0 after the first cell), at the end
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._side = int(self.np_random.integers(2))
        self._cell = 0
        return self._observation(), {}

    def step(self, action: int) -> Any:
        if self._cell == self.LENGTH:
            if action == 0:
                return self._observation(), -0.1, False, False, {}
            return self._observation(), 1.0 if action == 1 + self._side else -1.0, True, False, {}
        self._cell += action == 0
        return self._observation(), 0.0 if action == 0 else -0.1, False, False, {}

    def _observation(self) -> np.ndarray:
        sign = 2 * self._side - 1 if self._cell == 0 else 0
        return np.array([sign, self._cell == self.LENGTH], np.float32)


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
gymnasium.register("EverySpace-v0", entry_point=f"{__name__}:EverySpace", max_episode_steps=50)
gymnasium.register("TMaze-v0", entry_point=f"{__name__}:TMaze", max_episode_steps=50)
