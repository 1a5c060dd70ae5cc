"""Gymnasium environments: making them, and describing their spaces as plain data."""

import ast
import importlib
import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces as gym_spaces

from actors.interface import ActionForm, ObservationForm
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.process import taken_names
from protocol.spaces import BoxSpace, ObservationPart, Spaces, stored_as

REGISTERED_BY_IMPORT = {"ALE/": "ale_py", "MiniGrid-": "minigrid"}  # the package that an id's beginning asks for
EXTRAS = {"ale_py": "atari", "cv2": "atari", "Box2D": "box2d", "minigrid": "minigrid", "mujoco": "mujoco"}  # by module
SMALLEST_FLAT_IMAGE = 36  # pixels a side from which a uint8 [height, width] is an image, and no table of numbers


def check_registered(env_id: str) -> None:
    """Raise `UserError` unless gymnasium knows the id, `module:EnvId` included; cheap, since nothing is made."""
    module, colon, name = env_id.rpartition(":")
    try:
        if colon:
            importlib.import_module(module)
        for prefix, package in REGISTERED_BY_IMPORT.items():
            if name.startswith(prefix):
                importlib.import_module(package)
        gymnasium.spec(name)
    except (gymnasium.error.Error, ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"--env {env_id}: {_reason(error)}{taken_names()}") from None


def make_environment(experiment: Experiment) -> gymnasium.Env:
    """One environment, without gymnasium's own checks: the lane makes those that matter on every step."""
    check_registered(experiment.env)
    kwargs = parse_env_kwargs(experiment.env_kwargs)
    wrappers = [(text, *load_wrapper(text)) for text in experiment.wrapper]
    try:
        env = gymnasium.make(experiment.env, disable_env_checker=True, **kwargs)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise UserError(f"--env {experiment.env} cannot be made: {_reason(error)}") from error
    for text, wrapper, kwargs in wrappers:
        try:
            env = wrapper(env, **kwargs)
        except Exception as error:
            raise UserError(f"--wrapper {text} cannot be put on: {type(error).__name__}: {error}") from error
    return env


def _reason(error: BaseException) -> str:
    """What an error says, in a line; of a package that an extra of this project brings, how to install that."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name in EXTRAS:
            remedy = f'pip install -e ".[{EXTRAS[cause.name]}]"'
            return f"{cause.name} is not installed; in the folder of this project: {remedy}"
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())


def parse_env_kwargs(items: tuple[str, ...]) -> dict[str, Any]:
    """Keyword arguments from `name=value` each: the value a Python literal, or else the text itself."""
    kwargs = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--env-kwargs {item} is not name=value")
        try:
            kwargs[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            kwargs[name] = value
    return kwargs


def load_wrapper(text: str) -> tuple[Callable, dict[str, Any]]:
    """The wrapper class and its keyword arguments, from `module:Class` or `module:Class(name=value, …)`."""
    module, _, call = text.partition(":")
    try:
        name, kwargs = parse_call(call if "(" in call else f"{call}()")
        return getattr(importlib.import_module(module), name), kwargs
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(
            f"--wrapper {text} is no module:Class or module:Class(name=value, …): {error}{taken_names()}"
        ) from None


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """(name, keyword arguments) of a Python call whose arguments are literals; raises `ValueError` on anything else."""
    try:
        match ast.parse(text, mode="eval").body:
            case ast.Call(func=ast.Name(id=name), args=[], keywords=given) if all(item.arg for item in given):
                return name, {str(item.arg): ast.literal_eval(item.value) for item in given}
    except SyntaxError as error:
        raise ValueError(error.msg) from None
    raise ValueError(f"{text!r} is not a name with keyword arguments")


def reset_environment(env: gymnasium.Env, seed: int) -> Any:
    """The first observation of the episode with this seed; raises whatever the environment does."""
    game = env.unwrapped
    if type(game).__module__ == "ale_py.env" and game.ale.getFloat("repeat_action_probability") == 0:  # pyright: ignore
        # ALE loads the game anew for a seed, which takes 90 ms. Without sticky actions the seed decides nothing but
        # the number of no-ops, drawn from this generator.
        number = int(np.random.SeedSequence(seed).generate_state(2)[0])  # as AtariEnv.reset makes it from the seed
        game.np_random = np.random.Generator(np.random.PCG64(number))
        return env.reset()[0]
    return env.reset(seed=seed)[0]


def describe_spaces(env: gymnasium.Env, experiment: Experiment) -> Spaces:
    """The environment's spaces as plain data, or `UserError` naming the one that is not supported."""
    images = experiment.network != "mlp"
    parts = tuple(_describe_leaf(space, images) for _, space in leaves(env.observation_space))
    observation = stored_as(parts)
    action = env.action_space
    if isinstance(action, gym_spaces.Discrete):
        return Spaces(observation, parts, BoxSpace((), "int64"), "categorical", (int(action.n),))
    if isinstance(action, gym_spaces.MultiDiscrete):
        choices = tuple(action.nvec.reshape(-1).tolist())
        return Spaces(observation, parts, BoxSpace(tuple(action.shape), "int64"), "categorical", choices)
    if isinstance(action, gym_spaces.MultiBinary):
        return Spaces(observation, parts, BoxSpace(tuple(action.shape), "int8"), "bernoulli", ())
    if isinstance(action, gym_spaces.Box) and np.issubdtype(action.dtype, np.floating):
        return Spaces(observation, parts, BoxSpace(tuple(action.shape), "float32"), "gaussian", ())
    raise UserError(
        f"action space {action} is not supported; Discrete, MultiDiscrete, MultiBinary and Box of floats are"
    )


def leaves(space: gymnasium.Space, path: tuple = ()) -> list[tuple[tuple, gymnasium.Space]]:
    """(path, space) of everything in a space that is no Dict or Tuple, in the space's own order."""
    if isinstance(space, gym_spaces.Dict):
        return [leaf for key, part in space.spaces.items() for leaf in leaves(part, (*path, key))]
    if isinstance(space, gym_spaces.Tuple):
        return [leaf for i, part in enumerate(space.spaces) for leaf in leaves(part, (*path, i))]
    return [(path, space)]


def _describe_leaf(space: gymnasium.Space, images: bool) -> ObservationPart:
    if isinstance(space, gym_spaces.Box):
        # Trajectories hold float64 observations as float32: the networks would round them anyway.
        dtype = np.dtype(np.float32) if space.dtype == np.float64 else np.dtype(space.dtype)
        image = images and dtype == np.uint8 and _has_shape_of_image(space.shape)
        return ObservationPart("image" if image else "numbers", BoxSpace(tuple(space.shape), dtype.name), ())
    if isinstance(space, gym_spaces.Discrete):
        return ObservationPart("choices", BoxSpace((), "int64"), (int(space.n),))
    if isinstance(space, gym_spaces.MultiDiscrete):
        choices = tuple(space.nvec.reshape(-1).tolist())
        return ObservationPart("choices", BoxSpace(tuple(space.shape), "int64"), choices)
    if isinstance(space, gym_spaces.MultiBinary):
        return ObservationPart("binary", BoxSpace(tuple(space.shape), "int8"), ())
    raise UserError(
        f"observation space {space} is not supported; Box, Discrete, MultiDiscrete, MultiBinary and Dict and Tuple of"
        " these are. A wrapper (--wrapper) can leave it out or turn it into one of them"
    )


def _has_shape_of_image(shape: tuple[int, ...]) -> bool:
    return len(shape) in (3, 4) or (len(shape) == 2 and min(shape) >= SMALLEST_FLAT_IMAGE)


def observation_form(space: gymnasium.Space) -> ObservationForm:
    """How an environment with this observation space, one that `describe_spaces` takes, shows its observations."""
    paths, parts = zip(*leaves(space), strict=True)
    return ObservationForm(paths, tuple(_starts(part) for part in parts))


def action_form(space: gymnasium.Space) -> ActionForm:
    """How an environment with this action space, one that `describe_spaces` takes, takes its actions."""
    low, high = (), ()
    if isinstance(space, gym_spaces.Box):
        low, high = (
            tuple(bound if math.isfinite(bound) else None for bound in bounds.reshape(-1).tolist())
            for bounds in (space.low, space.high)
        )
    return ActionForm(np.dtype(space.dtype).name, _starts(space), low, high)


def _starts(space: gymnasium.Space) -> tuple[int, ...]:
    """The smallest value of each number of a space of choices; nothing for any other space."""
    if isinstance(space, gym_spaces.Discrete | gym_spaces.MultiDiscrete):
        return tuple(np.reshape(space.start, -1).tolist())
    return ()
