"""Resets of Atari games lead to the same state as gymnasium's resets.

`EVERY_ATARI_GAME=1 pytest tests/test_atari.py` checks every game of ale-py, which takes a quarter of an hour. Without
the variable, only the games that an earlier shortcut changed are checked.
"""

import os
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from actors.environment import make_environment, reset_environment
from benchmarks.workers import acting
from commands.helpers.presets import preset_for
from protocol.experiment import Experiment

ale_py = pytest.importorskip("ale_py", reason="Atari is an extra")

HARD = ("Seaquest", "BeamRider", "Assault", "TimePilot", "Tennis", "Krull", "KungFuMaster")
EVERY = [name[4:-3] for name in sorted(gymnasium.registry) if name.startswith("ALE/") and name.endswith("-v5")]
PASTS = [(5, 71), (6, 3000), (7, 71), (5, 250), (6, 250)]  # (seed, steps) of abandoned and complete episodes.


def play(env: gymnasium.Env, observation: Any, seed: int, steps: int) -> list[Any]:
    """The machine's memory, observations and rewards of an episode whose actions follow from the seed."""
    game: Any = env.unwrapped
    actions = np.random.default_rng(seed).integers(env.action_space.n, size=steps)  # pyright: ignore
    trail: list[Any] = [(observation.tobytes(), game.ale.getRAM().tobytes())]
    for action in actions.tolist():
        observation, reward, terminated, truncated, info = env.step(action)
        trail.append((hash(observation.tobytes()), game.ale.getRAM().tobytes(), reward, info["lives"]))
        if terminated or truncated:
            break
    return trail


def gymnasiums(env: gymnasium.Env, seed: int) -> Any:
    return env.reset(seed=seed)[0]


def start(game: str, reset: Callable[[gymnasium.Env, int], Any], seed: int, steps: int) -> list[Any]:
    env = make_environment(preset_for(f"ALE/{game}-v5").experiment)
    return play(env, reset(env, seed), seed, steps)


@pytest.mark.parametrize("game", EVERY if os.environ.get("EVERY_ATARI_GAME") else HARD)
def test_a_game_is_reset_as_gymnasium_resets_it_whatever_was_played_before(game: str) -> None:
    expected = {seed: start(game, gymnasiums, seed, 250) for seed in (5, 6)}
    env = make_environment(preset_for(f"ALE/{game}-v5").experiment)
    for seed, steps in PASTS:
        trail = play(env, reset_environment(env, seed)[0], seed, steps)
        if seed in expected:
            shared = min(len(trail), len(expected[seed]))
            assert trail[:shared] == expected[seed][:shared], f"{game}, seed {seed}"
    assert "load_game" in vars(env.unwrapped)  # The quick reset was used.


class Seeded(gymnasium.Wrapper):
    """A wrapper that draws from its own generator, which each reset seeds."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self.number = np.random.default_rng(seed).random()
        return self.env.reset(seed=seed, options=options)


def test_wrappers_see_the_seed_of_a_quick_reset() -> None:
    env = Seeded(make_environment(preset_for("ALE/Pong-v5").experiment))
    for seed in (5, 6, 5):
        reset_environment(env, seed)[0]
        assert env.number == np.random.default_rng(seed).random()


def test_a_game_with_sticky_actions_is_loaded_anew_for_each_seed() -> None:
    kwargs = ("repeat_action_probability=0.25", "frameskip=4")
    env = make_environment(Experiment("ALE/Pong-v5", env_kwargs=kwargs))
    reset_environment(env, 1)[0]
    assert "load_game" not in vars(env.unwrapped)


def test_the_actor_benchmark_steps_a_game_with_its_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["acting", "--env", "ALE/Pong-v5", "--lane-size", "1"])
    assert acting.prepare()(contender="lane", seconds=0.0)["rate"] > 0
