"""Whole episodes played with one fixed policy, which acts with the mode of its distribution: for eval and play."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import gymnasium
import numpy as np

from actors.environment import (
    action_form,
    describe_spaces,
    make_environment,
    observation_form,
    reset_environment,
)
from actors.interface import ActionConverter, ObservationConverter
from actors.policy import Policy
from protocol.arithmetic import own_context
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.randomness import Purpose, environment_seed
from protocol.snapshot import PolicySnapshot
from protocol.spaces import Spaces


class Score(NamedTuple):
    """What an episode came to."""

    episode_return: float
    length: int  # steps


def play_episodes(
    experiment: Experiment,
    snapshot: PolicySnapshot,
    episodes: int,
    make: Callable[[Experiment], gymnasium.Env] = make_environment,
) -> list[Score]:
    """Play `episodes`, each with a seed that training never uses, in what `make` makes."""
    return list(each_episode(experiment, snapshot, episodes, make))


def each_episode(
    experiment: Experiment, snapshot: PolicySnapshot, episodes: int, make: Callable[[Experiment], gymnasium.Env]
) -> Iterator[Score]:
    """The same, with each score as soon as it is known."""
    env = make(experiment)
    try:
        spaces = describe_spaces(env, experiment)
        policy = _policy(snapshot, spaces, experiment)
        to_env = ActionConverter(action_form(env.action_space), spaces)
        to_policy = ObservationConverter(observation_form(env.observation_space), spaces)
        own = own_context()
        for episode in range(episodes):
            if experiment.rebuild_env and episode:
                env.close()
                env = make(experiment)
            observation = reset_environment(env, environment_seed(experiment.seed, Purpose.EVALUATION_SEED, 0, episode))
            memory = np.zeros((1, experiment.recurrent_size), np.float32)
            total, length, over = 0.0, 0, False
            while not over and length < experiment.replay_cap:
                actions, memory = own.run(policy.mode, to_policy(observation)[None], memory)
                (action,) = to_env(actions)
                observation, reward, terminated, truncated, _ = env.step(action)
                total, length, over = total + float(reward), length + 1, terminated or truncated
            yield Score(total, length)
    finally:
        env.close()


def _policy(snapshot: PolicySnapshot, spaces: Spaces, experiment: Experiment) -> Policy:
    """The policy, tried once; raises `UserError` where its weights are not for these spaces and this network."""
    try:
        policy = Policy(snapshot, spaces, experiment)
        observations = np.zeros((1, *spaces.observation.shape), spaces.observation.dtype)
        policy.mode(observations, np.zeros((1, experiment.recurrent_size), np.float32))
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"policy version {snapshot.policy_version} is not one for {experiment.env}: {error!r}"
        ) from None
    return policy
