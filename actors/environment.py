"""Gymnasium environments: making them, and describing their spaces as plain data."""

import importlib

import gymnasium
import numpy as np
from gymnasium import spaces as gym_spaces

from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.spaces import BoxSpace, Spaces


def check_registered(env_id: str) -> None:
    """Raise `UserError` unless gymnasium knows the id, `module:EnvId` included; cheap, since nothing is made."""
    module, colon, name = env_id.rpartition(":")
    try:
        if colon:
            importlib.import_module(module)
        gymnasium.spec(name)
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise UserError(f"--env {env_id}: {' '.join(str(error).split())}") from None


def make_environment(experiment: Experiment) -> gymnasium.Env:
    """One environment, without gymnasium's own checks: the lane makes those that matter on every step."""
    check_registered(experiment.env)
    try:
        return gymnasium.make(experiment.env, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(f"--env {experiment.env} cannot be made: {' '.join(str(error).split())}") from error


def describe_spaces(env: gymnasium.Env) -> Spaces:
    """The environment's spaces as plain data, or `UserError` naming the one that is not supported."""
    observation, action = env.observation_space, env.action_space
    if not isinstance(observation, gym_spaces.Box):
        raise UserError(f"observation space {observation} is not supported; Box is")
    # Trajectories hold float64 observations as float32: the networks would round them anyway.
    dtype = np.dtype(np.float32) if observation.dtype == np.float64 else np.dtype(observation.dtype)
    observation_box = BoxSpace(shape=tuple(observation.shape), dtype=dtype.name)
    if isinstance(action, gym_spaces.Discrete):
        return Spaces(observation_box, BoxSpace(shape=(), dtype="int64"), "categorical", int(action.n))
    if isinstance(action, gym_spaces.Box) and np.issubdtype(action.dtype, np.floating):
        action_box = BoxSpace(shape=tuple(action.shape), dtype="float32")
        return Spaces(observation_box, action_box, "gaussian", action_box.size)
    raise UserError(f"action space {action} is not supported; Discrete and Box of floats are")


class ActionConverter:
    """From a policy's action to what `env.step` takes: Discrete counted from its start, Box clipped to its bounds."""

    def __init__(self, space: gymnasium.Space) -> None:
        self._space = space

    def __call__(self, actions: np.ndarray) -> list:
        """One entry for each environment, from actions [N, *action]."""
        if isinstance(self._space, gym_spaces.Discrete):
            return (actions + int(self._space.start)).tolist()
        assert isinstance(self._space, gym_spaces.Box)
        return list(np.clip(actions, self._space.low, self._space.high).astype(self._space.dtype))
