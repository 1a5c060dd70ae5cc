"""The state of a run between two iterations."""

from dataclasses import dataclass, replace

from learner.borders import LaneBorder
from rundir.checkpoint import Checkpoint


@dataclass(frozen=True)
class RunState:
    """The whole state after a completed version, on the host: what any thread can save at any time."""

    checkpoint: Checkpoint  # Holds no lanes yet.
    lanes: list[LaneBorder]  # A save writes these out.

    def whole(self) -> Checkpoint:
        arrays = dict(self.checkpoint.arrays)
        for index, lane in enumerate(self.lanes):
            arrays |= {f"lanes.{index}.{name}": array for name, array in lane.arrays().items()}
        return replace(self.checkpoint, arrays=arrays)
