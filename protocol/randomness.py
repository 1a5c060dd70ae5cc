"""Random numbers keyed by their purpose, so that no number depends on a process's history."""

from enum import IntEnum
from functools import lru_cache

import numpy as np

MAX_SEED = 2**63 - 1
SEEDS_AT_A_TIME = 64  # Episodes that share one generator for seeds: one each would cost as much as steps.


class Purpose(IntEnum):
    """The purpose of a stream of random numbers. The comments name its two counters `a` and `b`."""

    ACTION_NOISE = 1  # lane, rollout index
    EPISODE_SEED = 2  # environment index, episode index in blocks
    MINIBATCHES = 3  # iteration, epoch
    INITIAL_WEIGHTS = 4  # parameter index, 0
    EVALUATION_SEED = 5  # 0, episode index in blocks


def generator(seed: int, purpose: Purpose, a: int = 0, b: int = 0) -> np.random.Generator:
    """The generator of the stream (seed, purpose, a, b).

    Philox counts its blocks in the low half of the counter, so streams with different (a, b) never meet.
    """
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, 0, a, b], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def environment_seed(seed: int, purpose: Purpose, a: int, b: int = 0) -> int:
    """A seed for `env.reset`, within the 31 bits that every environment takes."""
    block, index = divmod(b, SEEDS_AT_A_TIME)
    return _seeds(seed, purpose, a, block)[index]


@lru_cache(maxsize=1024)
def _seeds(seed: int, purpose: Purpose, a: int, block: int) -> list[int]:
    return generator(seed, purpose, a, block).integers(2**31, size=SEEDS_AT_A_TIME).tolist()
