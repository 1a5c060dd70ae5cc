"""The policy in NumPy: one snapshot of the learner's network, acting on one lane's block of observations at a time.

BLAS may give a row other low bits in a block of another size, so a lane's block is always whole, contiguous, and
multiplied on one thread.
"""

import numpy as np

from actors.distributions import make_distribution, masked
from actors.networks import CELLS, Linear
from protocol.experiment import Experiment
from protocol.networks import network_class
from protocol.observations import InputShapes, network_inputs
from protocol.snapshot import PolicySnapshot, part_of
from protocol.spaces import Spaces


class Policy:
    """From observations, and for a recurrent policy its hidden state, to a distribution over actions."""

    def __init__(self, snapshot: PolicySnapshot, spaces: Spaces, experiment: Experiment) -> None:
        self.version = snapshot.policy_version
        self._spaces = spaces  # Of those, the policy has nothing of what only the critic sees.
        normalization = snapshot.observation_mean, snapshot.observation_scale
        self._normalization = normalization if experiment.normalize_observations else None
        weights = snapshot.weights
        shapes = InputShapes.of(spaces.parts)
        network = network_class(experiment, shapes, "actor")
        self._encoder = network(part_of(weights, "encoder."), shapes, experiment)
        kind = experiment.recurrent
        self._cell = CELLS[kind](weights, kind) if experiment.recurrent_size else None
        self._recurrent_size = experiment.recurrent_size
        self._head = Linear(weights, "policy_head")
        self.distribution = make_distribution(spaces, weights.get("log_std"))

    def forward(self, observations: np.ndarray, hidden_state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(distribution parameters float32 [N, size], next hidden state [N, hidden_state_size]) for raw observations
        and the hidden state before them."""
        x = self._encoder(network_inputs(observations, self._spaces, self._normalization))
        if self._cell is not None:
            hidden_state = self._cell(x, hidden_state)
            x = np.ascontiguousarray(hidden_state[:, : self._recurrent_size])
        return self._head(x), hidden_state

    def act(
        self,
        observations: np.ndarray,
        hidden_state: np.ndarray,
        noise: np.ndarray,
        allowed: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(actions [N, *action], distribution parameters [N, size], next hidden state) for raw observations.

        `noise` [N, size] comes from `draw_noise`; `allowed` bool [N, size] are action masks, if there are any. The
        log-probabilities follow from actions and parameters by `log_prob`, for a whole rollout in one call.
        """
        parameters, hidden_state = self.forward(observations, hidden_state)
        if allowed is not None:
            parameters = masked(parameters, allowed)
        return self._shaped(self.distribution.sample(parameters, noise)), parameters, hidden_state

    def mode(
        self, observations: np.ndarray, hidden_state: np.ndarray, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(the most probable actions [N, *action] that are allowed, next hidden state)."""
        parameters, hidden_state = self.forward(observations, hidden_state)
        if allowed is not None:
            parameters = masked(parameters, allowed)
        return self._shaped(self.distribution.mode(parameters)), hidden_state

    def draw_noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Noise for `act`: float32 [*shape, size]."""
        return self.distribution.draw_noise(generator, (*shape, self._spaces.distribution_size))

    def log_prob(self, parameters: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """log π(actions), float32 [...], for parameters [..., size] and actions [..., *action]."""
        return self.distribution.log_prob(parameters, actions.reshape(*parameters.shape[:-1], -1))

    def _shaped(self, actions: np.ndarray) -> np.ndarray:
        return actions.reshape(len(actions), *self._spaces.action.shape)
