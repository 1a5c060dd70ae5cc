"""Faulty environments for tests of the code that steps environments: `--env tests.environments_faulty:NAME-v0`."""

import ctypes
import os
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any

import gymnasium
import numpy as np

from tests.environments import EverySpace


class Scribbler(EverySpace):
    """Overwrites, in every later call, the arrays that it received and returned before."""

    def __init__(self, observation: str = "matrix", action: str = "discrete", scribbles: bool = True) -> None:
        super().__init__(observation, action)
        self._scribbles = scribbles
        self._lent: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self._scribble()
        observation, info = super().reset(seed=seed)
        return self._lend(observation), info

    def step(self, action: Any) -> Any:
        self._scribble()
        observation, reward, *rest = super().step(action)
        self._lend(action)
        if isinstance(action, np.ndarray) and self._scribbles:
            action[...] = 0
        return self._lend(observation), self._lend(np.array([reward])), *map(self._lend, map(np.array, rest[:2])), {}

    def _lend(self, given: Any) -> Any:
        match given:
            case np.ndarray():
                self._lent.append(given)
            case dict():
                for part in given.values():
                    self._lend(part)
            case tuple():
                for part in given:
                    self._lend(part)
        return given

    def _scribble(self) -> None:
        for array in self._lent[-20:]:
            whole = array if array.base is None or not isinstance(array.base, np.ndarray) else array.base
            for memory in (array, whole) if self._scribbles else ():
                if memory.flags.writeable:
                    memory[...] = 1


class Ill(gymnasium.Env):
    """Episodes of ten steps; if the seed is a multiple of `every`, the reset or the fifth step fails as `how` says."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, how: str = "raise", where: str = "step", every: int = 4, close: str = "", move: bool = False):
        self._how, self._where, self._every, self._close = how, where, every, close
        if move:
            os.chdir(tempfile.gettempdir())

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self._steps, self._ill = 0, seed is not None and seed % self._every == 0
        if self._ill and self._where == "reset":
            return self._fail()
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self._steps += 1
        if self._ill and self._steps == 5 and self._where == "step":
            return self._fail()
        return self._observe(), float(action), self._steps >= 10, False, {}

    def close(self) -> None:
        match self._close:
            case "raise":
                raise ConnectionResetError("the simulator has gone")
            case "exit":
                sys.exit(3)
            case "hang":
                while True:
                    with suppress(Exception):
                        time.sleep(1e6)
            case "hang in C":
                ctypes.CDLL(None).pause()

    def _observe(self) -> np.ndarray:
        return self.np_random.random(3).astype(np.float32)

    def _fail(self) -> Any:
        match self._how:
            case "raise":
                raise RuntimeError("the simulation diverged")
            case "exit":
                sys.exit(0)
            case "generator exit":
                raise GeneratorExit
            case "interrupt":
                raise KeyboardInterrupt
            case "leave":
                os._exit(0)
            case "silence":
                for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
                    stream.close()
                sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None
                return self._returned(1.0)
            case "hang in evaluation":
                if "supervisor.evaluator" in sys.orig_argv:
                    time.sleep(1e6)
                return self._returned(1.0)
            case "fork":
                child = os.fork()
                if not child:
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
                return self._returned(1.0)
            case "nan":
                return (self._observe() * np.nan, {}) if self._where == "reset" else self._returned(np.nan)
            case "none":
                return None
            case "long":
                raise ValueError("\udc80" * 70_000)
            case "untold":
                raise Untold

    def _returned(self, factor: float) -> Any:
        return self._observe() * np.float32(factor), 0.0, False, False, {}


class Untold(Exception):
    """An exception whose `str` raises."""

    def __str__(self) -> str:
        raise RuntimeError("not even this")


gymnasium.register("Scribbler-v0", entry_point=f"{__name__}:Scribbler", max_episode_steps=50)
gymnasium.register("Ill-v0", entry_point=f"{__name__}:Ill", order_enforce=False)
