"""How many runs this machine carries at a time, and with how many actors each. None of this changes a result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from rundir.metrics import GPU_PEAK, GPU_SIZE

SPARE = 0.1  # This share of the memory of a machine, or of a GPU, is left to others.


@dataclass(frozen=True)
class Share:
    """What runs get of a machine."""

    parallel: int  # runs at a time
    actors: int  # of each run
    note: str = ""  # what the user asked for and does not get


def share(cores: int, runs: int, lanes: int, learner_threads: int, actors: int | None, parallel: int | None) -> Share:
    """Divide `cores` among `runs`, each with `lanes`, and `actors` or `parallel` where the user has said.

    All actors together are no more than the cores, as long as that leaves each run one.
    """
    at_once = min(runs, parallel or max(1, cores // max(1, learner_threads, actors or 1)))
    if actors is None:
        return Share(at_once, max(1, min(lanes, cores // at_once - learner_threads)))
    most = max(1, cores // at_once)
    if at_once == 1 or actors <= most:
        return Share(at_once, actors)
    note = f"{at_once} runs with {actors} actors each are more than {cores} cores: each run has {most}"
    return Share(at_once, most, note)


def memory_for_another(need: int, present: Sequence[int]) -> bool:
    """Whether another run fits into this machine's memory. Each needs `need` bytes in the end; those under way have
    `present` bytes so far."""
    memory = psutil.virtual_memory()
    promised = sum(max(0, need - bytes_) for bytes_ in present)
    return memory.available - promised - need >= SPARE * memory.total


def gpu_for_another(learners: int, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether another learner fits on the GPU beside so many; `rows` are the newest rows of their metrics."""
    needs, sizes = ([row[key] for row in rows if key in row] for key in (GPU_PEAK, GPU_SIZE))
    return not needs or not sizes or (learners + 1) * max(needs) <= (1 - SPARE) * min(sizes)
