"""An environment whose every step takes a fixed time: `--env benchmarks.environments:Sleep-v0`."""

import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

EPISODE_LENGTH = 200


class Sleep(gymnasium.Env):
    """Sleeps in every step, as an environment does that waits for a simulator; rewards the action 1."""

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
        time.sleep(self._seconds)
        self._steps += 1
        return self._observe(), float(action == 1), False, self._steps >= EPISODE_LENGTH, {}

    def _observe(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 4).astype(np.float32)


gymnasium.register(id="Sleep-v0", entry_point="benchmarks.environments:Sleep")
