"""A lane: a fixed block of environments stepped together, whose state another actor can rebuild.

Every episode has a seed of its own, from the environment's index and the episode's, and the lane knows nothing else of
its past: resetting with that seed and repeating the actions leads to the same place.
"""

import hashlib
import struct
from collections.abc import Callable
from contextlib import suppress

import gymnasium
import numpy as np

from actors.environment import action_form, make_environment, observation_form, reset_environment
from actors.interface import ActionConverter, ObservationConverter
from protocol.experiment import Experiment
from protocol.randomness import Purpose, environment_seed
from protocol.spaces import Spaces
from protocol.trajectory import DIGEST_SIZE, LaneState

LARGEST_REWARD = float(np.finfo(np.float32).max)  # that a trajectory can hold
RESET_ATTEMPTS = 3  # each with a fresh environment


class EnvironmentFault(Exception):
    """An environment raised or returned nonsense; the text says which one, its episode seed and its step."""


class Lane:
    """`lane_size` environments, from environment index `lane · lane_size` on.

    `progress` is called after every single environment step, reset and construction, so that a step that never returns
    can be told from many that take long.
    """

    def __init__(self, index: int, experiment: Experiment, spaces: Spaces, progress: Callable[[], None]) -> None:
        size = experiment.lane_size
        self.index = index
        self.observations = np.zeros((size, *spaces.observation.shape), spaces.observation.dtype)
        self._floats = self.observations.dtype.kind == "f"
        self.memory = np.zeros((size, experiment.recurrent_size), np.float32)  # of a recurrent policy
        self.episode_indices = np.zeros(size, np.int64)
        self.episode_returns = [0.0] * size  # so far, of the episodes under way
        self.episode_lengths = [0] * size
        self.restarted = np.zeros(size, bool)  # environments that began a fresh episode because replay failed
        self.faults: list[str] = []  # since they were last collected
        self._experiment = experiment
        self._progress = progress
        self._environments: list[gymnasium.Env] = []
        for _ in range(size):
            self._environments.append(make_environment(experiment))
            progress()
        self._convert = ActionConverter(action_form(self._environments[0].action_space), spaces)
        self._store = ObservationConverter(observation_form(self._environments[0].observation_space), spaces)

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
        self.memory[:] = state.memory
        for n in range(len(self._environments)):
            if not self._replay(n, state.actions_of(n)) or self.digest(n) != state.digests[n].tobytes():
                self.restarted[n] = True
                self.next_episode(n)

    def step(
        self, actions: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> list[int]:
        """Step every environment once, into `observations` and the three rows [N] given, which are zero before.

        Returns the environments whose episodes ended; they stay ended. A step that raises or returns nonsense truncates
        its episode at the last good observation, with reward 0.
        """
        before, returns = self.observations.copy(), self.episode_returns.copy()
        cap, lengths = self._experiment.replay_cap, self.episode_lengths
        faulty: dict[int, str] = {}
        ended = []
        for n, action in enumerate(self._convert(actions)):
            try:
                rewards[n], done, over = self._step(n, action)
            except EnvironmentFault as fault:
                faulty[n] = str(fault)
                continue
            if done:
                terminated[n] = True
                ended.append(n)
            elif over or lengths[n] >= cap:
                truncated[n] = True
                ended.append(n)
        if not self._is_finite(self.observations):
            for n, observation in enumerate(self.observations):
                if n not in faulty and not self._is_finite(observation):
                    self.episode_returns[n] = returns[n]
                    lengths[n] -= 1
                    faulty[n] = f"{self._where(n)} returned an observation that is not finite"
        for n, fault in faulty.items():
            self.observations[n] = before[n]
            rewards[n], terminated[n], truncated[n] = 0, False, True
            self.faults.append(fault)
            self._renew(n)
        return sorted({*ended, *faulty}) if faulty else ended

    def next_episode(self, n: int) -> None:
        """Begin environment `n`'s next episode."""
        self.episode_indices[n] += 1
        if self._experiment.rebuild_env:
            self._renew(n)
        self._reset(n)

    def digest(self, n: int) -> bytes:
        """What must be equal after a replay: the observation, and the return and length so far.

        The return is there because a wrapper may remember rewards and leave observations alone.
        """
        progress = struct.pack("<dq", self.episode_returns[n], self.episode_lengths[n])
        return hashlib.blake2b(self.observations[n].tobytes() + progress, digest_size=DIGEST_SIZE).digest()

    def close(self) -> None:
        for env in self._environments:
            with suppress(Exception):  # an environment that has failed may fail at this, too
                env.close()

    def _replay(self, n: int, actions: np.ndarray) -> bool:
        """Repeat `actions` in environment `n`; False if it does not even get that far."""
        try:
            for action in self._convert(actions):
                _, terminated, truncated = self._step(n, action)
                if terminated or truncated:  # which it did not when recorded
                    return False
        except EnvironmentFault:
            return False
        return True

    def _reset(self, n: int) -> None:
        for attempt in range(1, RESET_ATTEMPTS + 1):
            try:
                observation = reset_environment(self._environments[n], self._episode_seed(n))
                self.observations[n] = self._store(observation)
                if not self._is_finite(self.observations[n]):
                    raise ValueError("the observation is not finite")
                break
            except Exception as error:
                self.episode_lengths[n] = 0
                fault = f"{self._where(n)} raised {type(error).__name__} in reset: {error}"
                if attempt == RESET_ATTEMPTS:
                    raise EnvironmentFault(fault) from error
                self.faults.append(fault)
                self._renew(n)
        self.episode_returns[n] = 0.0
        self.episode_lengths[n] = 0
        self.memory[n] = 0
        self._progress()

    def _step(self, n: int, action: object) -> tuple[float, bool, bool]:
        try:
            observation, reward, terminated, truncated, _ = self._environments[n].step(action)
            if type(reward) is not float:
                reward = float(reward.item() if isinstance(reward, np.ndarray) else reward)
            if not abs(reward) <= LARGEST_REWARD:
                raise ValueError(f"the reward is {reward}")
            self.observations[n] = self._store(observation)
        except Exception as error:
            raise EnvironmentFault(f"{self._where(n)}: {type(error).__name__}: {error}") from error
        self.episode_returns[n] += reward
        self.episode_lengths[n] += 1
        self._progress()
        return reward, terminated, truncated

    def _is_finite(self, observations: np.ndarray) -> bool:
        """Whether every number of these observations is finite."""
        return not self._floats or bool(np.logical_and.reduce(np.isfinite(observations), axis=None))

    def _renew(self, n: int) -> None:
        """Replace environment `n` by a fresh one."""
        with suppress(Exception):  # it has just failed, and may fail at this, too
            self._environments[n].close()
        self._environments[n] = make_environment(self._experiment)
        self._progress()

    def _environment_index(self, n: int) -> int:
        return self.index * len(self._environments) + n

    def _episode_seed(self, n: int) -> int:
        index, episode = self._environment_index(n), int(self.episode_indices[n])
        return environment_seed(self._experiment.seed, Purpose.EPISODE_SEED, index, episode)

    def _where(self, n: int) -> str:
        return (
            f"{self._experiment.env} environment {self._environment_index(n)} (episode seed {self._episode_seed(n)},"
            f" step {self.episode_lengths[n]})"
        )
