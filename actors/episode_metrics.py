"""Episode metrics: what an environment tells of an episode in the `info` of its last step."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from protocol.trajectory import EPISODE, LONGEST_METRIC, MAX_METRICS_SENT, SUCCESS

NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating)


def numbers_in(info: Any, wanted: Sequence[str] = ()) -> dict[str, float]:
    """The numbers and truth values of an `info` by name, or those of them that are `wanted`.

    What is not a finite number, and what is nested, is left out; so is a name that cannot be shown in one line.
    """
    found = {}
    for name, value in info.items() if isinstance(info, dict) else ():
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value[()]
        if not isinstance(value, NUMBERS) or not isinstance(name, str) or (wanted and name not in wanted):
            continue
        if not 0 < len(name) <= LONGEST_METRIC or not name.isprintable():
            continue
        try:
            number = float(value)
        except OverflowError:  # an integer that no float can hold
            continue
        if np.isfinite(number):
            found[name] = number
    return found


def columns(episodes: Sequence[dict[str, float]]) -> dict[str, np.ndarray]:
    """The metrics of finished episodes as a trajectory has them: float64 [E] by name, NaN where an episode has none.

    Of more than `MAX_METRICS_SENT` names, the first ones are kept, and whether the episode was a success before all.
    """
    names = first_names(episodes, MAX_METRICS_SENT)
    return {EPISODE + name: np.array([episode.get(name, np.nan) for episode in episodes], np.float64) for name in names}


def first_names(episodes: Iterable[Iterable[str]], count: int) -> list[str]:
    """The first names of the metrics of some episodes; that of success is the first of all."""
    names = dict.fromkeys(name for episode in episodes for name in episode)
    return sorted(names, key=lambda name: name != SUCCESS)[:count]
