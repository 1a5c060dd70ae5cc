"""Action masks: which actions an environment allows next, where its actions are choices.

It tells by a method `action_masks()`, of its own or of a wrapper, or else by `info["action_mask"]`.
"""

from typing import Any

import gymnasium
import numpy as np

from actors.environment import method_of
from actors.interface import mask_of
from protocol.spaces import Spaces
from protocol.text import error_line

METHOD, KEY = "action_masks", "action_mask"


class MaskFailed(Exception):
    """The environment's method raised; the text says what."""


def read_mask(env: gymnasium.Env, info: Any, spaces: Spaces) -> np.ndarray:
    """Which choices are allowed next: bool [distribution_size], those of each number of an action side by side.

    Raises `ValueError` where that is not told, or nothing is allowed, and `MaskFailed`.
    """
    if (method := method_of(env, METHOD)) is not None:
        try:
            shown = method()
        except Exception as error:
            raise MaskFailed(f"{METHOD}() raised {error_line(error)}") from error
        return mask_of(shown, spaces, f"{METHOD}()")
    if not (isinstance(info, dict) and KEY in info):
        raise ValueError(f"the info has no {KEY}")
    return mask_of(info[KEY], spaces, f"info[{KEY!r}]")
