"""A lane: a fixed block of environments stepped together, whose state another actor can rebuild.

Every episode has a seed of its own, from the environment's index and the episode's, and the lane knows nothing else of
its past: resetting with that seed and repeating the actions leads to the same place.
"""

import hashlib
import struct

import gymnasium
import numpy as np

from actors.environment import ActionConverter, make_environment
from protocol.experiment import Experiment
from protocol.randomness import Purpose, environment_seed
from protocol.spaces import Spaces
from protocol.trajectory import DIGEST_SIZE, LaneState


class EnvironmentFault(Exception):
    """An environment raised or returned nonsense; the text says which one, its episode seed and its step."""


class Lane:
    """`lane_size` environments, from environment index `lane · lane_size` on."""

    def __init__(self, index: int, experiment: Experiment, spaces: Spaces) -> None:
        size = experiment.lane_size
        self.index = index
        self.observations = np.zeros((size, *spaces.observation.shape), spaces.observation.dtype)
        self.episode_indices = np.zeros(size, np.int64)
        self.episode_returns = [0.0] * size  # so far, of the episodes under way
        self.episode_lengths = [0] * size
        self.restarted = np.zeros(size, bool)  # environments that began a fresh episode because replay failed
        self._experiment = experiment
        self._environments: list[gymnasium.Env] = [make_environment(experiment) for _ in range(size)]
        self._convert = ActionConverter(self._environments[0].action_space)

    def begin(self) -> None:
        """Start the first episode of every environment."""
        for n in range(len(self._environments)):
            self._reset(n)

    def rebuild(self, state: LaneState) -> None:
        """Continue from `state`: reset with each episode's seed, replay its actions, compare the digest.

        An environment that does not arrive where it was is not replayable: it begins a fresh episode.
        """
        self.episode_indices[:] = state.episode_indices
        self.begin()
        for n in range(len(self._environments)):
            for action in self._convert(state.actions_of(n)):
                self._step(n, action)
            if self.digest(n) != state.digests[n].tobytes():
                self.restarted[n] = True
                self.next_episode(n)

    def step(self, actions: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None:
        """Step every environment once, into `observations` and the three rows [N] given; ended episodes stay ended."""
        cap = self._experiment.replay_cap
        for n, action in enumerate(self._convert(actions)):
            rewards[n], terminated[n], over = self._step(n, action)
            truncated[n] = (over or self.episode_lengths[n] >= cap) and not terminated[n]
        if self.observations.dtype.kind == "f" and not np.isfinite(self.observations).all():
            bad = ~np.isfinite(self.observations.reshape(len(self.observations), -1)).all(axis=1)
            raise EnvironmentFault(f"{self._where(int(bad.argmax()))} returned an observation that is not finite")

    def next_episode(self, n: int) -> None:
        """Begin environment `n`'s next episode."""
        self.episode_indices[n] += 1
        self._reset(n)

    def digest(self, n: int) -> bytes:
        """What must be equal after a replay: the observation, and the return and length so far.

        The return is there because a wrapper may remember rewards and leave observations alone.
        """
        progress = struct.pack("<dq", self.episode_returns[n], self.episode_lengths[n])
        return hashlib.blake2b(self.observations[n].tobytes() + progress, digest_size=DIGEST_SIZE).digest()

    def close(self) -> None:
        for env in self._environments:
            env.close()

    def _reset(self, n: int) -> None:
        observation, _ = self._environments[n].reset(seed=self._episode_seed(n))
        self.observations[n] = observation
        self.episode_returns[n] = 0.0
        self.episode_lengths[n] = 0

    def _step(self, n: int, action: object) -> tuple[float, bool, bool]:
        try:
            observation, reward, terminated, truncated, _ = self._environments[n].step(action)
            reward = float(reward)  # some environments give an array
        except Exception as error:
            raise EnvironmentFault(f"{self._where(n)} raised {type(error).__name__}: {error}") from error
        if not np.shape(observation) == self.observations.shape[1:]:
            raise EnvironmentFault(f"{self._where(n)} returned an observation of shape {np.shape(observation)}")
        if not np.isfinite(reward):
            raise EnvironmentFault(f"{self._where(n)} returned the reward {reward}")
        self.observations[n] = observation
        self.episode_returns[n] += reward
        self.episode_lengths[n] += 1
        return reward, bool(terminated), bool(truncated)

    def _environment_index(self, n: int) -> int:
        return self.index * len(self._environments) + n

    def _episode_seed(self, n: int) -> int:
        index, episode = self._environment_index(n), int(self.episode_indices[n])
        return environment_seed(self._experiment.seed, Purpose.EPISODE_SEED, index, episode)

    def _where(self, n: int) -> str:
        return (
            f"environment {self._environment_index(n)} (episode seed {self._episode_seed(n)},"
            f" step {self.episode_lengths[n]})"
        )
