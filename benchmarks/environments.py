"""Environments whose steps take a chosen time, and one of many actions: `--env benchmarks.environments:NAME-v0`."""

import itertools
import time
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv

EPISODE_LENGTH = 200


class Sleep(gymnasium.Env):
    """Sleeps in every step, like an environment that waits for a simulator. Action 1 gives the reward 1."""

    def __init__(self, seconds: float = 0.005) -> None:
        self.observation_space = spaces.Box(-1, 1, (4,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._seconds = seconds
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._pass_time()
        self._steps += 1
        return self._observe(), float(action == 1), False, self._steps >= EPISODE_LENGTH, {}

    def _pass_time(self) -> None:
        time.sleep(self._seconds)

    def _observe(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 4).astype(np.float32)


class Busy(Sleep):
    """Computes in every step for so much time of its process, like a simulator that needs a core."""

    def _pass_time(self) -> None:
        end = time.process_time() + self._seconds
        while time.process_time() < end:
            pass


class Uneven(CartPoleEnv):
    """CartPole that also sleeps in every step, from `slowest` seconds to a tenth of that, equally long in one process.

    The time depends on the process's place. Each process takes the next place in `folder`, which is empty at first.
    """

    def __init__(self, folder: str, slowest: float, places: int) -> None:
        super().__init__()
        place = take_place(folder) % places
        self._seconds = slowest / 10 ** (place / max(1, places - 1))

    def step(self, action: Any) -> Any:
        time.sleep(self._seconds)
        return super().step(action)


class Corridors(gymnasium.Env):
    """A network of 40 rooms, each with 4 doors of 100, to be walked from a random room to the exit.

    A step costs 0.02 and the exit gives 1; a door that is not in the room costs 0.02 and leads nowhere. The doors that
    are there are told by `action_masks`.
    """

    ROOMS, DOORS, OPEN, LENGTH = 40, 100, 4, 50

    observation_space = spaces.Box(0, 1, (ROOMS,), np.float32)
    action_space = spaces.Discrete(DOORS)

    def __init__(self) -> None:
        plan = np.random.default_rng(0)  # The rooms are the same in every environment.
        self._doors = np.array([plan.permutation(self.DOORS)[: self.OPEN] for _ in range(self.ROOMS)])
        self._behind = plan.integers(self.ROOMS, size=(self.ROOMS, self.OPEN))
        self._behind[:, 0] = np.arange(self.ROOMS) // 2  # Door 0 of each room leads towards the exit, room 0.
        self._room = self._steps = 0

    def action_masks(self) -> np.ndarray:
        return np.isin(np.arange(self.DOORS), self._doors[self._room])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._room, self._steps = int(self.np_random.integers(1, self.ROOMS)), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        (found,) = np.nonzero(self._doors[self._room] == action)
        if len(found):
            self._room = int(self._behind[self._room, found[0]])
        self._steps += 1
        out = self._room == 0
        return self._observe(), (1.0 if out else 0.0) - 0.02, out, self._steps >= self.LENGTH, {"is_success": out}

    def _observe(self) -> np.ndarray:
        return (np.arange(self.ROOMS) == self._room).astype(np.float32)


class Positions(CartPoleEnv):
    """CartPole whose observation is a Dict of two parts: `position` (cart, pole) and `velocity` (of both)."""

    def __init__(self) -> None:
        super().__init__()
        parts = {"position": [0, 2], "velocity": [1, 3]}
        box = self.observation_space
        assert isinstance(box, spaces.Box)
        divided: dict[str, spaces.Space] = {name: spaces.Box(box.low[at], box.high[at]) for name, at in parts.items()}
        self.observation_space = spaces.Dict(divided)  # pyright: ignore[reportAttributeAccessIssue]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        observation, info = super().reset(seed=seed, options=options)
        return self._divided(observation), info

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return self._divided(observation), *rest

    def _divided(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {"position": observation[[0, 2]], "velocity": observation[[1, 3]]}


@cache
def take_place(folder: str) -> int:
    """The number of this process among the processes that called this function with this folder."""
    for place in itertools.count():
        try:
            (Path(folder) / str(place)).touch(exist_ok=False)
        except FileExistsError:
            continue
        return place
    raise AssertionError


gymnasium.register(id="Corridors-v0", entry_point="benchmarks.environments:Corridors")
gymnasium.register(id="Positions-v0", entry_point="benchmarks.environments:Positions", max_episode_steps=500)
gymnasium.register(id="Sleep-v0", entry_point="benchmarks.environments:Sleep")
gymnasium.register(id="Sleep2ms-v0", entry_point="benchmarks.environments:Sleep", kwargs={"seconds": 0.002})
gymnasium.register(id="Busy2ms-v0", entry_point="benchmarks.environments:Busy", kwargs={"seconds": 0.002})
gymnasium.register(id="Uneven-v0", entry_point="benchmarks.environments:Uneven", max_episode_steps=500)
