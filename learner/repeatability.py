"""Whether the environments of a run repeat themselves, as far as anything has shown that they do not."""

from collections.abc import Callable
from typing import Any

from protocol.experiment import Experiment
from protocol.trajectory import Trajectory


class Repeatability:
    """Signs that another run of the same experiment would go another way. Each kind is told once."""

    def __init__(self, experiment: Experiment, warn: Callable[[str], None]) -> None:
        self.lanes_not_replayable = 0  # Counted once for each rollout that was trained on.
        self.moved_global_random = False
        self._env, self._warn = experiment.env, warn
        self._told = False

    @property
    def is_broken(self) -> bool:
        return bool(self.lanes_not_replayable) or self.moved_global_random

    def look_at(self, trajectory: Trajectory) -> None:
        """Look for signs in what an actor has delivered."""
        if trajectory.restarted.any():
            self.tell(f"an environment of lane {trajectory.lane} began a fresh episode")
        self.note_global_random(trajectory)

    def note_global_random(self, trajectory: Trajectory) -> None:
        """Look for draws from generators that no seed of the run has set."""
        if trajectory.moved_global_random and not self.moved_global_random:
            self.moved_global_random = True
            self._warn(
                f"{self._env} draws from the global `random` or `np.random`, so this run is not reproducible; let it"
                " draw from self.np_random, which reset(seed=…) seeds"
            )

    def train(self, trajectory: Trajectory) -> None:
        """Count what was trained on, and so once, whoever delivered it and however often."""
        self.lanes_not_replayable += bool(trajectory.restarted.any())

    def tell(self, sign: str) -> None:
        """Warn that the environment does not repeat itself, as `sign` shows."""
        if not self._told:
            self._told = True
            self._warn(
                f"{self._env} does not repeat itself after reset(seed=…) and the same actions ({sign}), so this run is"
                " not reproducible. If its reset leaks state, --rebuild-env helps; a wrapper with a memory across"
                " episodes must forget it in reset; environments of a process must not share what changes"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"lanes_not_replayable": self.lanes_not_replayable, "moved_global_random": self.moved_global_random}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lanes_not_replayable = state["lanes_not_replayable"]
        self.moved_global_random = state["moved_global_random"]
