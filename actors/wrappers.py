"""Wrappers for `--wrapper`, for what users ask for most."""

from typing import Any

import gymnasium

from actors.episode_metrics import numbers_in


class EpisodeTotals(gymnasium.Wrapper):
    """Adds sums and means over the episode to the `info` of every step, as `NAME_sum` and `NAME_mean`.

    `--wrapper 'actors.wrappers:EpisodeTotals(sums=["fuel"], means=["speed"])'` makes the episode metrics
    `episode/fuel_sum` and `episode/speed_mean`. A step whose `info` lacks a name does not count for that name.
    """

    def __init__(self, env: gymnasium.Env, sums: list[str] | None = None, means: list[str] | None = None) -> None:
        super().__init__(env)
        self._sums, self._means = sums or [], means or []
        self._totals: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._totals, self._counts = {}, {}
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        for name, value in numbers_in(info, [*self._sums, *self._means]).items():
            self._totals[name] = self._totals.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        sums = {f"{name}_sum": self._totals[name] for name in self._sums if name in self._totals}
        counts = self._counts
        means = {f"{name}_mean": self._totals[name] / counts[name] for name in self._means if name in counts}
        return observation, reward, terminated, truncated, {**info, **sums, **means}
