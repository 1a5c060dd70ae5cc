"""Gymnasium's spaces as plain data, which travels and needs no gymnasium."""

import math

import gymnasium
import numpy as np
from gymnasium import spaces as gym_spaces

from actors.interface import ActionForm, ObservationForm
from protocol.errors import ProtocolError, UserError
from protocol.experiment import Experiment
from protocol.spaces import BoxSpace, Distribution, ObservationPart, Spaces, stored_as
from protocol.text import one_line

SMALLEST_FLAT_IMAGE = 36  # A uint8 [height, width] with so many pixels a side is an image. A smaller one is a table.
CNNS = ("nature_cnn", "impala_cnn")
Leaf = tuple[tuple, gymnasium.Space]  # A part of an observation space, and the keys and places that lead to it.
SHOWN_PARTS = 16  # So many parts of an observation are named.


def describe_spaces(env: gymnasium.Env, experiment: Experiment) -> Spaces:
    """The environment's spaces as plain data, or `UserError` naming the one that is not supported."""
    seen, of_critic = _divided(env.observation_space, experiment)
    parts, critic_parts = (
        tuple(_describe_leaf(space, experiment.network) for _, space in found) for found in (seen, of_critic)
    )
    if experiment.network in CNNS and not any(part.kind == "image" for part in parts + critic_parts):
        described = describe_observations(env, experiment)
        raise UserError(
            f"--network {experiment.network} finds no image among the observations, which are {described}; an image"
            " is uint8 [height, width, channels] of 0 to 255, which a wrapper (--wrapper) can make of others. Or use"
            " --network mlp"
        )
    action = _describe_action(env.action_space)
    spaces = Spaces(stored_as(parts + critic_parts), parts, *action, critic_parts=critic_parts)
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


def describe_observations(env: gymnasium.Env, experiment: Experiment) -> str:
    """Each observation by its name, with what it is taken for, in a line: `camera uint8 [64, 64, 3] as an image`."""
    ways = {"numbers": "as numbers", "binary": "as bits", "choices": "as choices, one-hot", "image": "as an image"}
    seen, of_critic = _divided(env.observation_space, experiment)
    texts = [
        f"{_name(path)} {part.box.dtype} {list(part.box.shape)} {ways[part.kind]}{whose}".lstrip()
        for leaves, whose in ((seen, ""), (of_critic, ", for the critic only"))
        for path, part in ((path, _describe_leaf(space, experiment.network)) for path, space in leaves)
    ]
    if len(texts) > SHOWN_PARTS:
        texts[SHOWN_PARTS:] = [f"and {len(texts) - SHOWN_PARTS} more"]
    return one_line(", ".join(texts), 1000)


def _leaves(space: gymnasium.Space, path: tuple = ()) -> list[Leaf]:
    """Everything in a space that is no Dict or Tuple, in the space's own order."""
    if isinstance(space, gym_spaces.Dict):
        return [leaf for key, part in space.spaces.items() for leaf in _leaves(part, (*path, key))]
    if isinstance(space, gym_spaces.Tuple):
        return [leaf for i, part in enumerate(space.spaces) for leaf in _leaves(part, (*path, i))]
    return [(path, space)]


def _divided(space: gymnasium.Space, experiment: Experiment) -> tuple[list[Leaf], list[Leaf]]:
    """(what the policy sees, what only the critic sees); raises `UserError` where that cannot be."""
    found, keys = _leaves(space), experiment.critic_only
    names = [_name(path) for path, _ in found]
    unknown = [key for key in keys if not any(_is_below(name, key) for name in names)]
    if unknown:
        there = f"its parts are {', '.join(names)}" if names != [""] else "it is no Dict"
        raise UserError(
            f"--critic-only {one_line(' '.join(unknown))}: {experiment.env} shows no such part of its observation;"
            f" {one_line(there, 400)}"
        )
    hidden = [any(_is_below(name, key) for key in keys) for name in names]
    if all(hidden):
        raise UserError(f"--critic-only {one_line(' '.join(keys))}: that leaves the policy nothing to see")
    seen = [leaf for leaf, is_hidden in zip(found, hidden, strict=True) if not is_hidden]
    return seen, [leaf for leaf, is_hidden in zip(found, hidden, strict=True) if is_hidden]


def _name(path: tuple) -> str:
    return ".".join(map(str, path))


def _is_below(name: str, key: str) -> bool:
    """Whether a leaf's name is this key, or one of what this key holds."""
    return name == key or name.startswith(f"{key}.")


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


def observation_form(space: gymnasium.Space, experiment: Experiment) -> ObservationForm:
    """How an environment with this observation space, one that `describe_spaces` takes, shows its observations."""
    seen, of_critic = _divided(space, experiment)
    paths, parts = zip(*seen, *of_critic, strict=True)
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
