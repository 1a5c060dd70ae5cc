"""Whole episodes played with one fixed policy, which acts with the mode of its distribution: for eval and play."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from actors.environment import make_environment
from actors.episode_metrics import first_names
from actors.policy import Policy
from actors.simulation import EnvironmentFault, Simulation
from actors.tracebacks import users_place
from protocol.arithmetic import own_context
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.randomness import Purpose, environment_seed
from protocol.snapshot import PolicySnapshot
from protocol.spaces import Spaces
from protocol.trajectory import EPISODE, MAX_METRICS


class Score(NamedTuple):
    """The result of an episode."""

    episode_return: float
    length: int  # steps
    seed: int  # The seed of its reset.
    metrics: dict[str, float]  # What its last step told of it, by name.
    fault: EnvironmentFault | None = None  # What ended it, if the environment failed.


@contextmanager
def playing(
    experiment: Experiment,
    snapshot: PolicySnapshot,
    episodes: int,
    make: Callable[[Experiment], gymnasium.Env] = make_environment,
    progress: Callable[[], None] = lambda: None,
) -> Iterator[Iterator[Score]]:
    """Play `episodes`, each with a seed that training never uses, in what `make` makes; gives the scores as they come.

    The environment is closed at the end of the context, so that what was found can be kept before. `progress` is called
    after every construction, reset and step. Raises `EnvironmentFault` where the environment cannot even be made, and
    `UserError` where the policy is not one for it.
    """
    simulation = Simulation(experiment, make=make, progress=progress)
    try:
        policy = _policy(snapshot, simulation.spaces, experiment)
        yield (_play(simulation, policy, experiment, episode) for episode in range(episodes))
    finally:
        simulation.close()


def _play(simulation: Simulation, policy: Policy, experiment: Experiment, episode: int) -> Score:
    seed = environment_seed(experiment.seed, Purpose.EVALUATION_SEED, 0, episode)
    hidden_state = np.zeros((1, experiment.hidden_state_size), np.float32)
    own = own_context()
    over, fault = False, None
    try:
        observation = simulation.reset(seed)
        while not over and simulation.steps < experiment.replay_cap:
            allowed = simulation.allowed[None] if simulation.spaces.has_action_masks else None
            actions, hidden_state = own.run(policy.mode, observation[None], hidden_state, allowed)
            (action,) = simulation.to_env(actions)
            observation, _, terminated, truncated = simulation.step(action)
            over = terminated or truncated
    except EnvironmentFault as error:
        fault = error
    return Score(simulation.episode_return, simulation.steps, seed, simulation.episode_metrics(), fault)


def _policy(snapshot: PolicySnapshot, spaces: Spaces, experiment: Experiment) -> Policy:
    """The policy, tried once; raises `UserError` where its weights are not for these spaces and this network."""
    try:
        policy = Policy(snapshot, spaces, experiment)
        observations = np.zeros((1, *spaces.observation.shape), spaces.observation.dtype)
        policy.mode(observations, np.zeros((1, experiment.hidden_state_size), np.float32))
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"policy version {snapshot.policy_version} is not one for {experiment.env}: {error!r}"
        ) from None
    return policy


class Results(NamedTuple):
    """The results of a policy's episodes. Episodes that an environment's fault ended are counted apart."""

    returns: list[float]
    lengths: list[int]
    episode_metrics: dict[str, list[float | None]]  # By name, a value for each return; None where there is none.
    faults: list[dict[str, int | str]]  # which episode, its seed, the step, and what happened

    @classmethod
    def of(cls, scores: Iterator[Score]) -> "Results":
        returns, lengths, told, faults = [], [], [], []
        for episode, score in enumerate(scores):
            if score.fault is None:
                returns.append(score.episode_return)
                lengths.append(score.length)
                told.append(score.metrics)
            else:
                text = f"{score.fault}{users_place(score.fault.__cause__)}"
                faults.append({"episode": episode, "seed": score.seed, "step": score.length, "text": text})
        names = first_names(told, MAX_METRICS)
        return cls(returns, lengths, {name: [metrics.get(name) for metrics in told] for name in names}, faults)

    def statistics(self) -> dict[str, Any]:
        """Mean and standard deviation of the returns, None where there are none; and the mean of each episode metric,
        as `episode/NAME`, over the episodes that told it."""
        known = {name: [v for v in values if v is not None] for name, values in self.episode_metrics.items()}
        return {
            "return_mean": float(np.mean(self.returns)) if self.returns else None,
            "return_std": float(np.std(self.returns)) if self.returns else None,
            **{EPISODE + name: float(np.mean(values)) for name, values in known.items()},
        }
