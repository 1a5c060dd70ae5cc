"""A lane: a fixed block of environments stepped together, whose state another actor can rebuild.

Every episode has a seed of its own, from the environment's index and the episode's, and the lane knows nothing else of
its past: resetting with that seed and repeating the actions leads to the same place.
"""

import hashlib
import struct
from collections.abc import Callable

import numpy as np

from actors.environment import make_environment
from actors.simulation import EnvironmentFault, Simulation, global_random_state
from actors.tracebacks import users_lines, users_place
from protocol.experiment import Experiment
from protocol.randomness import Purpose, environment_seed
from protocol.spaces import Spaces
from protocol.trajectory import DIGEST_SIZE, MAX_FAILED_BEGINNINGS, MAX_FAULTS_TOLD, Fault, LaneState


class Notes:
    """Events in a lane since the last rollout was sent."""

    def __init__(self, size: int) -> None:
        self.restarted = np.zeros(size, bool)  # environments that began a fresh episode because replay failed
        self.failed_resets = np.zeros(size, np.int64)  # episodes that did not come about
        self.faults: list[Fault] = []  # the first ones
        self.fault_count = 0  # all of them
        self.moved_global_random = False  # Whether constructors or the first resets did.


class Lane:
    """`lane_size` environments, from environment index `lane · lane_size` on.

    `progress` is called after every single environment step, reset and construction, so that a step that never returns
    can be told from many that take long; it may raise, to end the lane.
    """

    def __init__(self, index: int, experiment: Experiment, spaces: Spaces, progress: Callable[[], None]) -> None:
        """Make the environments. Raises `EnvironmentFault` and `UserError`, as `Simulation` does."""
        size = experiment.lane_size
        self.index = index
        self.observations = np.zeros((size, *spaces.observation.shape), spaces.observation.dtype)
        self.allowed = np.ones((size, spaces.distribution_size), bool) if spaces.has_action_masks else None
        self._floats = self.observations.dtype.kind == "f"
        self.hidden_state = np.zeros((size, experiment.hidden_state_size), np.float32)
        self.episode_indices = np.zeros(size, np.int64)
        self.notes = Notes(size)
        self.progress = 0.0  # The share of training that is over, of which the episodes that begin are told.
        self._told = np.zeros(size)  # What each environment's episode was told of it.
        self.time = -1  # the step of the rollout that is under way
        self._experiment = experiment
        before = global_random_state()
        self._simulations: list[Simulation] = []
        try:
            for n in range(size):
                rows = self.observations[n, ...], None if self.allowed is None else self.allowed[n]
                self._simulations.append(Simulation(experiment, spaces, make_environment, *rows, progress=progress))
        except BaseException:
            self.close()
            raise
        self._note_global_random(before)
        self._to_env = self._simulations[0].to_env

    def begin(self) -> None:
        """Start the first episode of every environment. Raises `EnvironmentFault` as `next_episode` does."""
        before = global_random_state()
        for n in range(len(self._simulations)):
            self._begin_episode(n)
        self._note_global_random(before)

    def rebuild(self, state: LaneState) -> None:
        """Continue from `state`: reset with each episode's seed, replay its actions, compare the digest.

        An environment that does not arrive where it was is not replayable: it begins a fresh episode. Raises
        `EnvironmentFault` as `next_episode` does.
        """
        self.episode_indices[:] = state.episode_indices
        self.hidden_state[:] = state.hidden_state
        self._told[:] = state.progress
        before = global_random_state()
        for n in range(len(self._simulations)):
            if not self._replay(n, state.actions_of(n)) or self.digest(n) != state.digests[n].tobytes():
                self.notes.restarted[n] = True
                self.next_episode(n)
        self._note_global_random(before)

    def step(
        self, actions: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> list[int]:
        """Step every environment once, into `observations` and the three rows [N] given, which are zero before.

        Returns the environments whose episodes ended; they stay ended. A step that raises or returns nonsense truncates
        its episode at the last good observation, with reward 0.
        """
        before = self.observations.copy()
        cap, simulations = self._experiment.replay_cap, self._simulations
        faulty: dict[int, EnvironmentFault] = {}
        ended = []
        for n, action in enumerate(self._to_env(actions)):
            simulation = simulations[n]
            try:
                rewards[n], done, over = simulation.advance(action)
            except EnvironmentFault as fault:
                faulty[n] = fault
                continue
            if done:
                terminated[n] = True
                ended.append(n)
            elif over or simulation.steps >= cap:
                truncated[n] = True
                ended.append(n)
        if self._floats and not np.logical_and.reduce(np.isfinite(self.observations), axis=None):
            for n, simulation in enumerate(simulations):
                if n not in faulty and not simulation.is_finite():
                    faulty[n] = simulation.spoilt()
        for n in sorted(faulty):
            self.observations[n] = before[n]
            rewards[n], terminated[n], truncated[n] = 0, False, True
            self._note(n, faulty[n])
        return sorted({*ended, *faulty}) if faulty else ended

    def next_episode(self, n: int) -> None:
        """Begin environment `n`'s next episode.

        Where its reset fails, the episode after that follows. Raises `EnvironmentFault` where too many have failed in a
        row: this environment cannot be reset.
        """
        self.episode_indices[n] += 1
        self._begin_episode(n)

    def episode(self, n: int) -> tuple[float, int]:
        """(return, length) so far of environment `n`'s episode."""
        return self._simulations[n].episode_return, self._simulations[n].steps

    def episode_metrics(self, n: int) -> dict[str, float]:
        """What the last step of environment `n` tells of its episode, by name."""
        return self._simulations[n].episode_metrics()

    def digest(self, n: int) -> bytes:
        """What must be equal after a replay: the observation, the action mask, and the return and length so far.

        The return is there because a wrapper may remember rewards and leave observations alone.
        """
        progress = struct.pack("<dq", *self.episode(n))
        allowed = b"" if self.allowed is None else self.allowed[n].tobytes()
        return hashlib.blake2b(self.observations[n].tobytes() + allowed + progress, digest_size=DIGEST_SIZE).digest()

    def close(self) -> None:
        """Close every environment, within a bounded time and whatever they do."""
        for simulation in self._simulations:
            simulation.close()

    def _replay(self, n: int, actions: np.ndarray) -> bool:
        """Repeat the episode of environment `n` with `actions`; False if it does not even get that far."""
        try:
            self._reset(n)
            for action in self._to_env(actions):
                _, terminated, truncated = self._simulations[n].advance(action)
                if terminated or truncated:  # When it was recorded, it went on.
                    return False
        except EnvironmentFault:
            return False
        return True

    def _reset(self, n: int) -> None:
        self._simulations[n].reset(self._episode_seed(n), float(self._told[n]))

    def _begin_episode(self, n: int) -> None:
        self.hidden_state[n] = 0
        self._told[n] = self.progress
        fault = None
        for _ in range(MAX_FAILED_BEGINNINGS):
            try:
                self._reset(n)
                return
            except EnvironmentFault as error:
                fault = error
                self._note(n, fault)
                if fault.phase == "reset":  # a constructor has no seed, so that another one would not help
                    self.episode_indices[n] += 1
                    self.notes.failed_resets[n] += 1
        raise EnvironmentFault(
            "reset",
            f"{self._experiment.env} environment {self._environment_index(n)} could not begin an episode"
            f" {MAX_FAILED_BEGINNINGS} times in a row; the last time: {fault}"
            f"{users_place(fault and fault.__cause__)}",
        )

    def _note(self, n: int, fault: EnvironmentFault) -> None:
        self.notes.fault_count += 1
        if len(self.notes.faults) < MAX_FAULTS_TOLD:
            episode, seed = int(self.episode_indices[n]), self._episode_seed(n)
            steps = self._simulations[n].steps if fault.phase == "step" else 0
            where = self._environment_index(n), episode, seed, fault.phase, steps, self.time
            self.notes.faults.append(Fault(*where, str(fault), float(self._told[n]), users_lines(fault.__cause__)))

    def _note_global_random(self, before: tuple) -> None:
        self.notes.moved_global_random |= global_random_state() != before

    def _environment_index(self, n: int) -> int:
        return self.index * len(self._simulations) + n

    def _episode_seed(self, n: int) -> int:
        index, episode = self._environment_index(n), int(self.episode_indices[n])
        return environment_seed(self._experiment.seed, Purpose.EPISODE_SEED, index, episode)
