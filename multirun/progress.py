"""How far a run is, from the files that it writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocol.files import read_object
from rundir.growing import GrowingFile
from rundir.metrics import GPU_PEAK, GPU_SIZE, RETURN, STEPS
from rundir.names import METRICS, STATUS

SPEED = "time/env_steps_per_second"
KEPT = (STEPS, RETURN, SPEED, GPU_PEAK, GPU_SIZE)


class Progress:
    """One run, watched."""

    def __init__(self, run_dir: Path, name: str, total_steps: int, metrics: Sequence[str] = ()) -> None:
        """The run, called `name`, is to take `total_steps` env-steps. Of its metrics, few are kept, and `metrics`."""
        self.run_dir, self.name, self.total_steps = run_dir, name, total_steps
        self.rows: list[dict[str, Any]] = []  # its metrics so far, those of KEPT and `metrics`
        self._kept = {*KEPT, *metrics}
        self.state = "waiting"  # starting, training, …; as status.json says, and `waiting` before it is started
        self.speed: float | None = None  # env-steps per second
        self._file = GrowingFile(run_dir / METRICS)

    @property
    def env_steps(self) -> int:
        return self.rows[-1][STEPS] if self.rows else 0

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1."""
        return min(1.0, self.env_steps / self.total_steps)

    @property
    def episode_return(self) -> float | None:
        """The mean of the last 100 episodes."""
        return self.rows[-1].get(RETURN) if self.rows else None

    def look(self) -> None:
        """Take in what the run has written since the last look."""
        for row in self._file.read(self.rows.clear):
            if isinstance(row.get(STEPS), int):
                self.rows.append({name: row[name] for name in self._kept if name in row})
        status = read_object(self.run_dir / STATUS) or {}
        self.state = str(status.get("state", self.state))
        if self.rows:
            self.speed = self.rows[-1].get(SPEED)

    def forget(self) -> None:
        """Keep no more of its curve than the end."""
        del self.rows[:-1]
