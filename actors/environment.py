"""Gymnasium environments: finding, making and resetting them."""

import difflib
import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from actors.arguments import load_wrapper, parse_env_kwargs
from actors.interrupts import let_users_interrupt
from protocol import offspring
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.extras import how_to_install
from protocol.process import taken_names
from protocol.text import error_line, one_line

REGISTERED_BY_IMPORT = {  # An id that begins so needs this package to be imported.
    "ALE/": "ale_py",
    "MiniGrid-": "minigrid",
    "BabyAI-": "minigrid",
}
# The extra that brings each module.
EXTRAS = {"ale_py": "atari", "cv2": "atari", "Box2D": "box2d", "minigrid": "minigrid", "mujoco": "mujoco"}
NEEDED_BY = {"gymnasium.envs.box2d": "Box2D", "gymnasium.envs.mujoco": "mujoco"}  # which gymnasium registers without


class Nonsense(ValueError):
    """An environment returned what it should not; the text says what."""


def check_registered(env_id: str) -> None:
    """Raise `UserError` unless gymnasium knows the id, `module:EnvId` included; cheap, since nothing is made."""
    module, colon, name = env_id.rpartition(":")
    try:
        if colon:
            importlib.import_module(module)
        for prefix, package in REGISTERED_BY_IMPORT.items():
            if name.startswith(prefix):
                importlib.import_module(package)
        maker = gymnasium.spec(name).entry_point
        for start, package in NEEDED_BY.items():
            if isinstance(maker, str) and maker.startswith(start) and importlib.util.find_spec(package) is None:
                raise ModuleNotFoundError(name=package)
    except (gymnasium.error.Error, ImportError, AttributeError, TypeError, ValueError) as error:
        reason, _, _ = _reason(error).partition(" Did you mean: ")  # gymnasium's guess is no id
        raise UserError(f"--env {env_id}: {reason.rstrip('.')}{_nearest(name, error)}{taken_names()}") from None
    except BaseException as error:  # whatever the user's module raises
        let_users_interrupt(error)
        reason = f"{module} raised {error_line(error)}"
        raise UserError(f"--env {env_id}: {reason}{taken_names()}") from None


def _nearest(name: str, error: BaseException) -> str:
    """Similar ids that are registered, after a semicolon; empty if there are none."""
    if not isinstance(error, gymnasium.error.Error):
        return ""
    for package in set(REGISTERED_BY_IMPORT.values()):
        with suppress(ImportError):
            importlib.import_module(package)
    game = re.sub(r"(-ram)?(Deterministic|NoFrameskip)?(-v\d+)?$", "", name)  # gym gave Atari's games these endings.
    if f"ALE/{game}-v5" in gymnasium.registry:
        return f"; there is ALE/{game}-v5"

    def plain(env_id: str) -> str:
        return re.sub(r"-v\d+$", "", env_id.rpartition("/")[2]).lower()

    versions = [known for known in gymnasium.registry if plain(known) == plain(name)]
    versions.sort(key=lambda known: ("/" not in known, known), reverse=True)  # the newest of gymnasium's own first
    ids = {known.lower(): known for known in gymnasium.registry if not known.startswith("GymV")}
    near = versions or [ids[known] for known in difflib.get_close_matches(name.lower(), ids, n=3, cutoff=0.7)]
    return f"; there is {', '.join(near[:3])}" if near else ""


def make_environment(experiment: Experiment) -> gymnasium.Env:
    """One environment, without gymnasium's own checks: the lane makes those that matter on every step."""
    offspring.watch()
    check_registered(experiment.env)
    kwargs = parse_env_kwargs(experiment.env_kwargs)
    wrappers = [(text, *load_wrapper(text)) for text in experiment.wrapper]
    try:
        env = gymnasium.make(experiment.env, disable_env_checker=True, **kwargs)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise UserError(f"--env {experiment.env} cannot be made: {_reason(error)}") from error
    for text, wrapper, kwargs in wrappers:
        try:
            wrapped = wrapper(env, **kwargs)
        except Exception as error:
            raise UserError(f"--wrapper {text} cannot be put on: {error_line(error)}") from error
        if not isinstance(wrapped, gymnasium.Env):
            raise UserError(f"--wrapper {text} cannot be put on: it made {kind_of(wrapped)}, no gymnasium.Env")
        env = wrapped
    offspring.look()
    return env


def _reason(error: BaseException) -> str:
    """What an error says, in a line; of a package that an extra of this project brings, how to install that."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name in EXTRAS:
            return f"{cause.name} is not installed; {how_to_install(EXTRAS[cause.name])}"
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())


def reset_environment(env: gymnasium.Env, seed: int) -> tuple[Any, Any]:
    """(the first observation, info) of the episode with this seed.

    Raises whatever the environment does, and `Nonsense` where it returns something else than (observation, info).
    """
    game: Any = env.unwrapped
    if type(game).__module__ == "ale_py.env" and "load_game" not in vars(game):
        _load_from_memory(game)
    match env.reset(seed=seed):
        case [observation, (Mapping() | None) as info]:
            return observation, info
        case result:
            raise Nonsense(f"it returned {kind_of(result)} instead of observation, info")


def method_of(env: gymnasium.Env, name: str) -> Callable[..., Any] | None:
    """The method of that name of the environment, or of its outermost wrapper that has one; None where none has."""
    method = env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else None
    return method if callable(method) else None


def _load_from_memory(game: Any) -> None:
    """Let an `AtariEnv` restore the loaded game for a seed, which takes 1 ms, instead of loading it anew, 100 ms.

    What loading leaves depends on the seed only with sticky actions. tests/test_atari.py compares all games.
    """
    if game.ale.getFloat("repeat_action_probability") == 0:
        game.load_game()
        game.load_game = partial(game.ale.restoreState, game.ale.cloneState(include_rng=True))


def kind_of(value: object) -> str:
    """Describe a value of the wrong type in a few words."""
    match value:
        case np.ndarray():
            return f"an array of shape {value.shape}"
        case tuple():
            return f"{len(value)} values"
        case None:
            return "None"
    return one_line(f"{type(value).__name__} {one_line(repr(value), 60)}", 100)
