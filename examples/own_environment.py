"""An environment of one's own: a heat pump that warms a house while the price of electricity changes.

In the folder of this project:

    python launch.py --env examples.own_environment:House-v0 --learning-rate 1e-3 --total-steps 300_000

A thermostat, which heats with full power below 20.2 °C, has a mean return of about −20.
"""

from typing import Any

import gymnasium
import numpy as np

HOURS = 0.5  # of a step
STEPS = 96  # of an episode
FORECAST = 12  # prices that are known in advance, one for each step
LOSS = 0.2  # kW of heat that leave the house for each degree that it is warmer than the air outside
CAPACITY = 8.0  # kWh of heat that warm the house by a degree
POWER = 4.0  # kW of electricity that the heat pump takes at most
COMFORT = 20.0, 23.0  # °C


class House(gymnasium.Env):
    """Two winter days. Electricity is cheap at hours that differ each time, and the walls keep heat for many hours.

    The action is the share of its power that the heat pump takes, from 0 to 1. The reward is what a step costs, in
    euros below 0: its electricity, and `discomfort` for each hour and each degree below 20 or above 23 °C.
    """

    action_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2 + FORECAST,), np.float32)

    def __init__(self, discomfort: float = 1.0, outside: float = 0.0) -> None:
        """`outside` is the mean temperature outside, in °C."""
        self._discomfort, self._outside = discomfort, outside

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)  # Whatever is random comes from self.np_random, so that an episode can be repeated.
        self._prices = 0.30 + 0.12 * (self._wave(24) + self._wave(12))  # € for a kWh
        self._air = self._outside + 3 * self.np_random.standard_normal() + 4 * self._wave(24)
        self._inside = self.np_random.uniform(*COMFORT)
        self._time = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        air, energy = self._air[self._time], POWER * HOURS * float(action[0])
        heat = energy * np.clip(3 + 0.1 * air, 1.5, 5)  # A heat pump gives more for its electricity in mild weather.
        self._inside += (heat - LOSS * HOURS * (self._inside - air)) / CAPACITY
        degrees = max(COMFORT[0] - self._inside, self._inside - COMFORT[1], 0)  # outside of the comfort
        cost = self._prices[self._time] * energy + self._discomfort * HOURS * degrees
        self._time += 1
        return self._observe(), -float(cost), False, False, {}

    def _wave(self, hours: float) -> np.ndarray:
        """A cosine of this period that begins anywhere, for all steps of an episode and the forecast in its last."""
        time = HOURS * np.arange(STEPS + FORECAST)
        return np.cos(2 * np.pi * (time / hours + self.np_random.random()))

    def _observe(self) -> np.ndarray:
        """The temperatures inside and outside, and the prices from now on."""
        prices = self._prices[self._time : self._time + FORECAST]
        return np.array([self._inside, self._air[self._time], *prices], np.float32)


# The limit truncates an episode: the heat that is left in the walls then counts by the value that the critic gives it.
gymnasium.register("House-v0", entry_point=f"{__name__}:House", max_episode_steps=STEPS)
