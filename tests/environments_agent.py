"""An environment that tells of its episodes, allows only some actions, and grows harder as training goes on."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ACTIONS = {"one": spaces.Discrete(6, start=2), "several": spaces.MultiDiscrete([3, 4])}


class Garden(gymnasium.Env):
    """Random observations, whose size grows with the progress of training. An action that is not allowed raises.

    The reward is 1 for the lowest allowed action. Episodes have 5 to 60 steps, fewer early in training.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def __init__(self, action: str = "one", masks: str = "info") -> None:
        self.action_space = ACTIONS[action]
        self._shape = [6] if action == "one" else [3, 4]
        self._masks = masks  # Where they are told: `info`, `method`, or `none`.
        self._progress: float | None = None
        if masks == "method":
            self.action_masks = self._told

    def set_progress(self, progress: float) -> None:
        assert type(progress) is float and 0 <= progress <= 1
        self._progress = progress

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        assert self._progress is not None, "nobody has told the progress"
        self._difficulty, self._progress = self._progress, None  # Each episode must be told anew.
        self._steps, self._lowest = 0, 0
        self._length = 5 + int(self.np_random.integers(10 + int(45 * self._difficulty)))
        return self._show(), self._info()

    def step(self, action: Any) -> Any:
        chosen = np.reshape(action - self.action_space.start, -1)  # pyright: ignore[reportAttributeAccessIssue]
        for allowed, one in zip(self._allowed, chosen, strict=True):
            assert allowed[one], f"action {one} is not allowed"
        lowest = all(allowed.argmax() == one for allowed, one in zip(self._allowed, chosen, strict=True))
        self._lowest += lowest
        self._steps += 1
        over = self._steps == self._length
        shown = self._show()
        info = self._info() | {"speed": self._steps / 2} | (self._last() if over else {})
        return shown, float(lowest), over, False, info

    def _last(self) -> dict[str, Any]:
        """What only the last step tells: some of it is no metric."""
        told = {
            "is_success": self._lowest > self._length / 2,
            "length": np.int64(self._length),
            "difficulty": np.float32(self._difficulty),
            "zero-dimensional": np.array(2.5),
            "nested": {"x": 1.0},
            "text": "hello",
            "array": np.ones(2),
            "nothing": None,
            "nan": np.nan,
            "huge": 10**400,
            "two\nlines": 1.0,
            3: 4.0,
        }
        return told | ({"rare": 1.0} if self._length % 4 == 0 else {})

    def _show(self) -> np.ndarray:
        self._allowed = [self.np_random.random(n) < 0.4 for n in self._shape]
        for allowed in self._allowed:
            allowed[self.np_random.integers(len(allowed))] = True
        if self._masks == "none":
            self._allowed = [np.ones(n, bool) for n in self._shape]
        return ((1 + self._difficulty) * self.np_random.standard_normal(4)).astype(np.float32)

    def _told(self) -> Any:
        return np.concatenate(self._allowed).astype(np.int8)

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self._told()} if self._masks == "info" else {}


class Blocked(Garden):
    """A garden that tells a mask which is none, `how`, at the fifth step of every third episode."""

    def __init__(self, how: str = "empty") -> None:
        super().__init__()
        self._how, self._episodes = how, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self._blocks = seed is not None and seed % 3 == 0
        return super().reset(seed=seed, options=options)

    def _told(self) -> Any:
        if not self._blocks or self._steps != 4:
            return super()._told()
        return {"empty": np.zeros(6, np.int8), "short": np.ones(5), "two": np.full(6, 2), "text": "all"}[self._how]

    def _info(self) -> dict[str, Any]:
        return {} if self._blocks and self._steps == 4 and self._how == "missing" else super()._info()


class Fog(gymnasium.Env):
    """Shows two numbers, and an image if asked; the scene is for the critic. An episode's luck decides its rewards.

    The scene holds that luck, as a number and as a choice. The reward is the luck, and 0.1 more where the action is the
    sign of the first number.
    """

    action_space = spaces.Discrete(2)

    def __init__(self, camera: bool = False, scene: bool = True) -> None:
        # Gymnasium sorts these: the scene stands before the sensor, and is stored behind it.
        parts: dict[str, spaces.Space] = {
            "scene": spaces.Dict({"luck": spaces.Box(-np.inf, np.inf, (1,)), "sign": spaces.Discrete(2, start=1)}),
            "contacts": spaces.MultiBinary(2),
            "sensor": spaces.Box(-np.inf, np.inf, (2,), np.float64),
        }
        if camera:
            parts["camera"] = spaces.Box(0, 255, (12, 12, 3), np.uint8)
        if not scene:
            del parts["scene"]
        self.observation_space = spaces.Dict(parts)
        self._names = list(parts)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self._steps, self._luck = 0, float(self.np_random.standard_normal())
        self._length = 4 + int(self.np_random.integers(20))
        return self._show(), {}

    def step(self, action: Any) -> Any:
        reward = self._luck + 0.1 * float(action == (self._sensor[0] > 0))
        self._steps += 1
        return self._show(), reward, False, self._steps == self._length, {"luck": self._luck}

    def _show(self) -> dict[str, Any]:
        self._sensor = self.np_random.standard_normal(2)
        luck = np.array([100 * self._luck + 7], np.float32)
        shown: dict[str, Any] = {
            "contacts": self.np_random.integers(2, size=2).astype(np.int8),
            "sensor": self._sensor,
            "scene": {"luck": luck, "sign": 1 + int(self._luck > 0)},
            "camera": self.np_random.integers(256, size=(12, 12, 3), dtype=np.uint8),
        }
        return {name: shown[name] for name in self._names}


gymnasium.register("Garden-v0", entry_point=f"{__name__}:Garden", max_episode_steps=50)
gymnasium.register("Fog-v0", entry_point=f"{__name__}:Fog")
gymnasium.register("Blocked-v0", entry_point=f"{__name__}:Blocked", max_episode_steps=50)
