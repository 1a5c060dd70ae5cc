"""The policy in NumPy: one snapshot of the learner's network, acting on one lane's block of observations at a time.

BLAS may give a row other low bits in a block of another size, so a lane's block is always whole, contiguous, and
multiplied on one thread.
"""

import numpy as np

from actors.distributions import Categorical, Distribution, Gaussian
from protocol.snapshot import PolicySnapshot, normalize
from protocol.spaces import Spaces


class Policy:
    """A multilayer perceptron with tanh, from observations to the parameters of a distribution over actions."""

    def __init__(self, snapshot: PolicySnapshot, spaces: Spaces, normalize_observations: bool) -> None:
        self.version = snapshot.policy_version
        self._spaces = spaces
        self._normalize = normalize_observations
        self._mean = snapshot.observation_mean.reshape(-1)
        self._scale = snapshot.observation_scale.reshape(-1)
        weights = snapshot.weights
        layers = range(sum(name.endswith(".weight") for name in weights))
        # MLX keeps [out, in]; a contiguous [in, out] multiplies from the right.
        self._weights = [np.ascontiguousarray(weights[f"policy.layers.{i}.weight"].T) for i in layers]
        self._biases = [weights[f"policy.layers.{i}.bias"] for i in layers]
        self.distribution: Distribution
        if spaces.distribution == "categorical":
            self.distribution = Categorical()
        else:
            self.distribution = Gaussian(weights["log_std"])

    def forward(self, observations: np.ndarray) -> np.ndarray:
        """The distribution's parameters, float32 [N, size], for raw observations [N, *observation]."""
        hidden = observations.reshape(len(observations), -1)
        hidden = normalize(hidden, self._mean, self._scale) if self._normalize else hidden.astype(np.float32)
        last = len(self._weights) - 1
        for i, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            hidden = hidden @ weight
            hidden += bias
            if i < last:
                np.tanh(hidden, out=hidden)
        return hidden

    def act(self, observations: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(actions [N, *action], distribution parameters [N, size]) for raw observations [N, *observation].

        `noise` [N, size] comes from `draw_noise`. The log-probabilities follow from both results by `log_prob`, for a
        whole rollout in one call.
        """
        parameters = self.forward(observations)
        return self._shaped(self.distribution.sample(parameters, noise)), parameters

    def mode(self, observations: np.ndarray) -> np.ndarray:
        """The most probable actions [N, *action]."""
        return self._shaped(self.distribution.mode(self.forward(observations)))

    def draw_noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Noise for `act`: float32 [*shape, size]."""
        return self.distribution.draw_noise(generator, shape, self._spaces.distribution_size)

    def log_prob(self, parameters: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """log π(actions), float32 [...], for parameters [..., size] and actions [..., *action]."""
        if self._spaces.distribution == "gaussian":
            actions = actions.reshape(parameters.shape)
        return self.distribution.log_prob(parameters, actions)

    def _shaped(self, actions: np.ndarray) -> np.ndarray:
        return actions.reshape(len(actions), *self._spaces.action.shape)
