"""Action masks: which actions an environment allows next, where its actions are choices.

It tells by a method `action_masks()`, of its own or of a wrapper, or else by `info["action_mask"]`.
"""

from typing import Any

import gymnasium
import numpy as np

from actors.environment import method_of
from actors.interface import mask_of
from protocol.spaces import Spaces

METHOD, KEY = "action_masks", "action_mask"


def read_mask(env: gymnasium.Env, info: Any, spaces: Spaces) -> np.ndarray:
    """Which choices are allowed next: bool [distribution_size], those of each number of an action side by side.

    Raises `ValueError` where that is not told, or nothing is allowed, and whatever the environment's method does.
    """
    if (method := method_of(env, METHOD)) is not None:
        return mask_of(method(), spaces, f"{METHOD}()")
    if not (isinstance(info, dict) and KEY in info):
        raise ValueError(f"the info has no {KEY}")
    return mask_of(info[KEY], spaces, f"info[{KEY!r}]")
