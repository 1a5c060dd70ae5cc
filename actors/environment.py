"""Gymnasium environments: making them, and describing their spaces as plain data."""

import ast
import difflib
import importlib
import math
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces as gym_spaces

from actors.interface import ActionForm, ObservationForm
from actors.interrupts import let_users_interrupt
from protocol import offspring
from protocol.errors import ProtocolError, UserError
from protocol.experiment import Experiment
from protocol.process import taken_names
from protocol.spaces import BoxSpace, Distribution, ObservationPart, Spaces, stored_as
from protocol.text import error_line, one_line

REGISTERED_BY_IMPORT = {  # the package that an id's beginning asks for
    "ALE/": "ale_py",
    "MiniGrid-": "minigrid",
    "BabyAI-": "minigrid",
}
EXTRAS = {"ale_py": "atari", "cv2": "atari", "Box2D": "box2d", "minigrid": "minigrid", "mujoco": "mujoco"}  # by module
SMALLEST_FLAT_IMAGE = 36  # pixels a side from which a uint8 [height, width] is an image, and no table of numbers
CNNS = ("nature_cnn", "impala_cnn")
WORDS = {  # besides Python's own, those of JSON and TOML, and of floats
    "true": True,
    "false": False,
    "null": None,
    "none": None,
    "nan": math.nan,
    "inf": math.inf,
}
NAMES_TOO = {"none", "nan", "inf"}  # alone, a text: people call modes that. None, null and -inf are values
BRACKETS = {")": "(", "]": "[", "}": "{"}
SHOWN_PARTS = 16  # of an observation


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
        gymnasium.spec(name)
    except (gymnasium.error.Error, ImportError, AttributeError, TypeError, ValueError) as error:
        reason, _, _ = _reason(error).partition(" Did you mean: ")  # gymnasium's guess is no id
        raise UserError(f"--env {env_id}: {reason.rstrip('.')}{_nearest(name, error)}{taken_names()}") from None
    except BaseException as error:  # whatever the user's module raises
        let_users_interrupt(error)
        reason = f"{module} raised {error_line(error)}"
        raise UserError(f"--env {env_id}: {reason}{taken_names()}") from None


def _nearest(name: str, error: BaseException) -> str:
    """Which ids there are instead of one that is not registered, after a semicolon; nothing where none is near."""
    if not isinstance(error, gymnasium.error.Error):
        return ""
    for package in set(REGISTERED_BY_IMPORT.values()):
        with suppress(ImportError):
            importlib.import_module(package)
    game = re.sub(r"(-ram)?(Deterministic|NoFrameskip)?(-v\d+)?$", "", name)  # as gym named Atari's games
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
            remedy = f'pip install -e ".[{EXTRAS[cause.name]}]"'
            return f"{cause.name} is not installed; in the folder of this project: {remedy}"
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())


def parse_env_kwargs(items: tuple[str, ...]) -> dict[str, Any]:
    """Keyword arguments from `name=value` each, as `parse_value` reads the values. Raises `UserError`."""
    kwargs: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--env-kwargs {one_line(item)} is not name=value")
        if name in kwargs:
            raise UserError(f"--env-kwargs gives {name} twice: the second time {one_line(item)}")
        try:
            kwargs[name] = parse_value(value)
        except ValueError as error:
            raise UserError(f"--env-kwargs {one_line(item)}: {error}") from None
    return kwargs


def parse_value(text: str) -> Any:
    """A Python or JSON literal, in which `true`, `null` and `-inf` are what they say, or else the text itself. Alone,
    `none`, `nan` and `inf` are texts.

    Raises `ValueError` on a text that looks like a literal which is damaged.
    """
    if text.strip() in NAMES_TOO:
        return text
    try:
        return _literal(_parse(text))
    except ValueError as error:
        if _looks_damaged(text):
            what = f"it is neither a literal ({error}) nor a plain text; quotes make a text, as in \"['a', 'b']\""
            raise ValueError(what) from None
        return text


def _parse(text: str) -> ast.expr:
    """The expression that `text` is. Raises `ValueError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Python finds odd about a path
            return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(error.msg) from None
    except (MemoryError, RecursionError):
        raise ValueError("too deep") from None


def _literal(tree: ast.expr) -> Any:
    """The value of a literal. Raises `ValueError` on any other expression."""
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            parts = value if isinstance(value, list) else [value]
            known = [_constant(part) for part in parts]
            setattr(node, field, known if isinstance(value, list) else known[0])
    try:
        return ast.literal_eval(_constant(tree))
    except (TypeError, RecursionError, MemoryError) as error:  # such as a dict whose key is a list
        raise ValueError(str(error)) from None
    except ValueError:
        raise ValueError("a word or a formula is in it that is no value") from None


def _constant(node: Any) -> Any:
    """A name that is one of `WORDS` as its value; anything else as it is."""
    if isinstance(node, ast.Name) and node.id.lower() in WORDS:
        return ast.copy_location(ast.Constant(WORDS[node.id.lower()]), node)
    return node


def _looks_damaged(text: str) -> bool:
    """Whether a text that is no literal seems meant as one: its brackets or quotes do not match, or it begins so."""
    opened: list[str] = []
    for character in text:
        if character in BRACKETS.values():
            opened.append(character)
        elif character in BRACKETS and (not opened or opened.pop() != BRACKETS[character]):
            return True
    quotes = re.sub(r"(?<=\w)'(?=\w)", "", text)  # without apostrophes
    odd = any(quotes.count(quote) % 2 for quote in "'\"")
    return bool(opened) or odd or text.strip()[:1] in ("[", "(", "{", "'", '"')


def load_wrapper(text: str) -> tuple[Callable, dict[str, Any]]:
    """The wrapper class and its keyword arguments, from `module:Class` or `module:Class(name=value, …)`."""
    module, _, call = text.partition(":")
    try:
        name, kwargs = parse_call(call if "(" in call else f"{call}()")
        return getattr(importlib.import_module(module), name), kwargs
    except (ValueError, ImportError, AttributeError) as error:
        reason = one_line(error)
    except BaseException as error:  # whatever the user's module raises
        reason = f"{module} raised {error_line(error)}"
    form = "module:Class or module:Class(name=value, …)"
    raise UserError(f"--wrapper {one_line(text)} is no {form}: {reason}{taken_names()}") from None


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """(name, keyword arguments) of a Python call whose arguments are literals; raises `ValueError` on anything else."""
    match _parse(text):
        case ast.Call(func=ast.Name(id=name), args=[], keywords=given) if all(item.arg for item in given):
            kwargs: dict[str, Any] = {}
            for item in given:
                argument = str(item.arg)
                if argument in kwargs:
                    raise ValueError(f"{argument} is given twice")
                try:
                    kwargs[argument] = _literal(item.value)
                except ValueError as error:
                    raise ValueError(f"{argument}: {error}; quotes make a text") from None
            return name, kwargs
    raise ValueError(f"{text!r} is not a name with keyword arguments")


def reset_environment(env: gymnasium.Env, seed: int) -> Any:
    """The first observation of the episode with this seed.

    Raises whatever the environment does, and `Nonsense` where it returns something else than (observation, info).
    """
    game: Any = env.unwrapped
    if type(game).__module__ == "ale_py.env" and "load_game" not in vars(game):
        _load_from_memory(game)
    return _first_observation(env.reset(seed=seed))


def _load_from_memory(game: Any) -> None:
    """Let an `AtariEnv` restore the loaded game for a seed, which takes 1 ms, instead of loading it anew, 100 ms.

    What loading leaves depends on the seed only with sticky actions. tests/test_atari.py compares all games.
    """
    if game.ale.getFloat("repeat_action_probability") == 0:
        game.load_game()
        game.load_game = partial(game.ale.restoreState, game.ale.cloneState(include_rng=True))


def _first_observation(result: Any) -> Any:
    match result:
        case [observation, Mapping() | None]:
            return observation
    raise Nonsense(f"it returned {kind_of(result)} instead of observation, info")


def kind_of(value: object) -> str:
    """What something is that should be something else, in a few words."""
    match value:
        case np.ndarray():
            return f"an array of shape {value.shape}"
        case tuple():
            return f"{len(value)} values"
        case None:
            return "None"
    return one_line(f"{type(value).__name__} {one_line(repr(value), 60)}", 100)


def describe_spaces(env: gymnasium.Env, experiment: Experiment) -> Spaces:
    """The environment's spaces as plain data, or `UserError` naming the one that is not supported."""
    parts = tuple(_describe_leaf(space, experiment.network) for _, space in leaves(env.observation_space))
    if experiment.network in CNNS and not any(part.kind == "image" for part in parts):
        raise UserError(
            f"--network {experiment.network} finds no image among the observations, which are"
            f" {describe_observations(env, parts)}; an image is uint8 [height, width, channels] of 0 to 255, which a"
            " wrapper (--wrapper) can make of others. Or use --network mlp"
        )
    spaces = Spaces(stored_as(parts), parts, *_describe_action(env.action_space))
    try:
        spaces.check()
    except ProtocolError as error:
        raise UserError(f"{experiment.env} cannot be trained on: {error}") from None
    return spaces


def _describe_action(space: gymnasium.Space) -> tuple[BoxSpace, Distribution, tuple[int, ...]]:
    """How its actions are stored, and the distribution that they come from, with its choices."""
    if isinstance(space, gym_spaces.Discrete):
        return BoxSpace((), "int64"), "categorical", (int(space.n),)
    if isinstance(space, gym_spaces.MultiDiscrete):
        return BoxSpace(tuple(space.shape), "int64"), "categorical", tuple(space.nvec.reshape(-1).tolist())
    if isinstance(space, gym_spaces.MultiBinary):
        return BoxSpace(tuple(space.shape), "int8"), "bernoulli", ()
    if isinstance(space, gym_spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return BoxSpace(tuple(space.shape), "float32"), "gaussian", ()
    raise UserError(
        f"action space {space} is not supported; Discrete, MultiDiscrete, MultiBinary and Box of floats are"
    )


def describe_observations(env: gymnasium.Env, parts: tuple[ObservationPart, ...]) -> str:
    """Each observation by its name, with what it is taken for, in a line: `camera uint8 [64, 64, 3] as an image`."""
    ways = {"numbers": "as numbers", "binary": "as bits", "choices": "as choices, one-hot", "image": "as an image"}
    paths = [path for path, _ in leaves(env.observation_space)]
    texts = [
        f"{'.'.join(map(str, path))} {part.box.dtype} {list(part.box.shape)} {ways[part.kind]}".lstrip()
        for path, part in zip(paths, parts, strict=True)
    ]
    if len(texts) > SHOWN_PARTS:
        texts[SHOWN_PARTS:] = [f"and {len(texts) - SHOWN_PARTS} more"]
    return one_line(", ".join(texts), 1000)


def leaves(space: gymnasium.Space, path: tuple = ()) -> list[tuple[tuple, gymnasium.Space]]:
    """(path, space) of everything in a space that is no Dict or Tuple, in the space's own order."""
    if isinstance(space, gym_spaces.Dict):
        return [leaf for key, part in space.spaces.items() for leaf in leaves(part, (*path, key))]
    if isinstance(space, gym_spaces.Tuple):
        return [leaf for i, part in enumerate(space.spaces) for leaf in leaves(part, (*path, i))]
    return [(path, space)]


def _describe_leaf(space: gymnasium.Space, network: str) -> ObservationPart:
    if isinstance(space, gym_spaces.Box):
        # Trajectories hold float64 observations as float32: the networks would round them anyway.
        dtype = np.dtype(np.float32) if space.dtype == np.float64 else np.dtype(space.dtype)
        # A smaller bound is that of codes, boards and masks: pixels only where the user names a CNN.
        asked = network in CNNS or (network != "mlp" and bool((space.high == 255).all()))
        image = asked and dtype == np.uint8 and _has_shape_of_image(space.shape)
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
