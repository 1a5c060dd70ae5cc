"""Whether actors and learner compute the same: each has a network of its own, in NumPy and in MLX."""

import math
from collections.abc import Callable

import numpy as np

from learner.model import ActorCritic
from protocol.errors import UserError

LOOKS = (0, 2, 8, 32)  # In these iterations the two are compared, and in every later one that…
EVERY = 256  # …this divides.
TOLERANCE = 1e-4  # Log-probabilities may differ by this, and by what sums may differ.
ROUNDING = float(np.finfo(np.float32).eps) / 2  # The relative error of one float32 operation.
TF32_ROUNDING = 2.0**-11  # The relative error of a factor that a GPU has rounded to 10 bits.


class Agreement:
    """Looks now and then how far the log-probabilities of actors and learner are apart.

    Two orders of adding n numbers differ by about √n roundings of the sum (Higham, Accuracy and Stability
    of Numerical Algorithms, 2.8). Another network differs by far more.
    """

    def __init__(self, terms: int, rounds: bool, warn: Callable[[str], None]) -> None:
        """`terms` is the largest n, and `rounds` says whether the device rounds the factors of products."""
        self._rounding = (TF32_ROUNDING if rounds else ROUNDING) * math.sqrt(terms)
        self._warn = warn
        self._told = False

    @staticmethod
    def is_due(iteration: int) -> bool:
        return iteration in LOOKS or iteration % EVERY == 0

    def look_at(self, iteration: int, difference: float, log_probs: np.ndarray) -> None:
        """Judge the mean `difference` from the actors' `log_probs`. Raises `UserError` in the first iteration, when
        nothing is lost yet."""
        if difference <= TOLERANCE + self._rounding * float(np.abs(log_probs).mean()):
            return
        if iteration == 0:
            raise UserError(
                "the network's two classes do not compute the same: with the same weights and observations, the"
                f" log-probabilities of the actors' differ by {difference:.2g} from the learner's"
            )
        if not self._told:
            self._told = True
            self._warn(
                f"in iteration {iteration}, log-probabilities of actors and learner differ by {difference:.2g} on"
                " average, with the same weights and observations: the learner takes actions for more or less likely"
                " than they were"
            )


def most_summed(model: ActorCritic) -> int:
    """The largest count of numbers that are added up on the way to a log-probability: a layer's inputs, or what the
    dimensions of an action contribute."""
    fan_ins = [array[0].size for array in model.parameters() if array.ndim > 1]
    return max(*fan_ins, model.spaces.distribution_size)
