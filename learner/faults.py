"""Faults of environments. Each is reported once, counted, and kept as a file that `replay` reads.

A file is JSON: the fields of `Fault`, and `actions` [step + 1, *action]: its episode's, the one that failed included.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from learner.borders import LaneBorder
from learner.refusals import Refusals
from protocol.experiment import Experiment
from protocol.files import replace_file
from protocol.text import counted, one_line
from protocol.trajectory import Fault, Trajectory
from rundir.faults import list_faults
from rundir.names import FAULTS

MAX_FILES = 20
MAX_KINDS = 20  # So many kinds are told. Faults of one kind differ in nothing but numbers.
MAX_FAULTS = 100  # After more faults than this, something is wrong with the environment, and the run ends…
MAX_FAULT_SHARE = 0.1  # …if they are more than this share of its episodes.


class EnvironmentsFailed(Exception):
    """Too many environments raised or returned nonsense, or one did and that was to end the run."""


class Faults:
    """The faults of one run's environments."""

    def __init__(
        self,
        experiment: Experiment,
        warn: Callable[..., None],  # with a text, and the traceback where there is one
        run_dir: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.count = 0  # Faults in rollouts that were trained on, each once.
        self.episodes = 0  # finished or failed in their reset, and trained on
        self._env, self._stops, self._warn = experiment.env, experiment.on_env_error == "stop", warn
        self._folder = run_dir / FAULTS
        self._kinds: set[tuple[str, str]] = set()  # (text without its numbers, traceback)
        self._kept: list[Fault] | None = None  # Faults with a file; None until it was read.
        self._delivered = 0
        self._last = "see above"
        self._not_kept = Refusals(clock)

    def state_dict(self) -> dict[str, int]:
        return {"env_faults": self.count, "episodes": self.episodes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.episodes = state["env_faults"], state["episodes"]

    def tell(self, trajectory: Trajectory, border: LaneBorder) -> None:
        """Tell the user of the faults in a trajectory that was delivered; `border` is the one that it began at.
        Raises `EnvironmentsFailed` where any is to end the run."""
        for fault in trajectory.faults:
            kind = re.sub(r"\d+", "0", fault.text), fault.traceback
            if kind not in self._kinds and len(self._kinds) < MAX_KINDS:
                self._kinds.add(kind)
                outcome = "its episode was truncated there" if fault.phase == "step" else "the next episode follows"
                self._warn(f"{self._env} {fault}; {outcome}", fault.traceback)
        before, self._delivered = self._delivered, self._delivered + trajectory.fault_count
        if self._delivered >= 10 and len(str(before)) < len(str(self._delivered)):
            at_least = "at least " if len(self._kinds) == MAX_KINDS else ""
            kinds = counted(len(self._kinds), "kind")
            self._warn(f"{self._delivered:,} faults of environments so far, of {at_least}{kinds}")
        if trajectory.fault_count and self._stops:
            self._write(trajectory, border)
            raise EnvironmentsFailed(f"{self._env} {trajectory.faults[0]}")

    def train(self, trajectory: Trajectory, border: LaneBorder) -> None:
        """Count and keep the faults in a trajectory that was trained on; `border` is the one that it began at.
        Raises `EnvironmentsFailed` where there are too many."""
        self.count += trajectory.fault_count
        self.episodes += len(trajectory.episode_returns) + int(trajectory.failed_resets.sum())
        if trajectory.faults:
            self._last = f"{self._env} {trajectory.faults[-1]}"
            self._write(trajectory, border)
        if self.count > MAX_FAULTS and self.count > MAX_FAULT_SHARE * self.episodes:
            raise EnvironmentsFailed(
                f"{self.count} of {self.episodes} episodes ended in a fault; the last: {self._last}"
            )

    def _write(self, trajectory: Trajectory, border: LaneBorder) -> None:
        """Leave a file of each fault, unless it was left before a restart, or there are enough."""
        try:
            self._folder.mkdir(exist_ok=True)
            if self._kept is None:
                self._kept = [fault for _, fault, _ in list_faults(self._folder)]
            for fault in trajectory.faults:
                if fault not in self._kept and len(self._kept) < MAX_FILES:
                    data = asdict(fault) | {"actions": _actions(fault, trajectory, border).tolist()}
                    path = self._folder / f"{len(self._kept) + 1}.json"
                    replace_file(path, json.dumps(data, allow_nan=False) + "\n", durable=False)
                    self._kept.append(fault)
        except OSError as error:
            more = self._not_kept.note("disk", trajectory.fault_count)
            if more is not None:
                self._warn(f"a fault of {self._env} could not be kept in {self._folder}: {one_line(error)}{more}")


def _actions(fault: Fault, trajectory: Trajectory, border: LaneBorder) -> np.ndarray:
    """The actions of the fault's episode, the one that failed included: [step + 1, *action], none of a reset."""
    n = fault.environment % trajectory.actions.shape[1]
    taken = np.concatenate([*border.logs[n], trajectory.actions[: fault.time + 1, n]])
    return taken[len(taken) - fault.step - 1 :] if fault.phase == "step" else taken[:0]
