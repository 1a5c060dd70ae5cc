"""Settings that change over a run, as functions of the progress that remains: 1 at first, 0 at the end."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from protocol.errors import UserError

ADAPTIVE = "adaptive"
ADAPTIVE_FACTOR = 1.5  # One change multiplies or divides by this. It is rsl_rl's, as are the limits.
ADAPTIVE_LIMITS = (1e-5, 1e-2)


@dataclass(frozen=True)
class Horizon:
    """How many iterations a run trains, and how far along it is in each.

    A run that was given more steps keeps the totals it had before: an iteration belongs to the first total that holds
    it. So it makes no difference when the run was stopped to be given more.
    """

    totals: tuple[int, ...]  # Iterations, rising. The last is the run's.

    @property
    def total(self) -> int:
        return self.totals[-1]

    def progress(self, iteration: int) -> float:
        """The share of training that is over before `iteration`: 0 at first, 1 at the end."""
        total = next((total for total in self.totals if iteration < total), self.total)
        return min(1.0, iteration / total)


NAMED: dict[str, Callable[[float], float]] = {
    "constant": lambda remaining: 1.0,
    "linear": lambda remaining: remaining,
    "cosine": lambda remaining: 0.5 * (1 - math.cos(math.pi * remaining)),
}


def parse_schedule(text: str, flag: str) -> Callable[[float], float]:
    """The factor on a setting, as a function of the remaining progress; `flag` is named in the `UserError`.

    `constant`, `linear`, `cosine`, or points `remaining:factor` joined by straight lines, such as `1:1,0.5:0.1,0:0.1`.
    """
    if text in NAMED:
        return NAMED[text]
    try:
        points = sorted(tuple(float(number) for number in point.split(":")) for point in text.split(","))
        remaining, factors = zip(*points, strict=True)
        if not all(0 <= r <= 1 for r in remaining) or not all(0 <= f < math.inf for f in factors):
            raise ValueError
    except ValueError:
        raise UserError(
            f"{flag} {text} is no schedule; it is one of {', '.join(NAMED)}, or points remaining:factor such as"
            " 1:1,0.5:0.1,0:0.1"
        ) from None
    return lambda r: float(np.interp(r, remaining, factors))


def adapt_learning_rate(learning_rate: float, approx_kl: float, desired_kl: float) -> float:
    """The next iteration's learning rate: lower after twice the desired KL divergence, higher after half of it.

    Schulman et al. (arXiv 1707.06347, section 4) adapt a penalty like this; the step size follows Rudin et al.
    (arXiv 2109.11978).
    """
    if approx_kl > 2 * desired_kl:
        learning_rate /= ADAPTIVE_FACTOR
    elif approx_kl < desired_kl / 2:
        learning_rate *= ADAPTIVE_FACTOR
    low, high = ADAPTIVE_LIMITS
    return min(max(learning_rate, low), high)
