"""The witness: now and then a rollout or an update is done a second time, and compared with the first.

A second rollout begins with fresh environments, in another process where there is one. It is never trained on, so that
it changes nothing. It shows whether the environments repeat themselves. A second update begins with the same weights
and the same batch. It shows whether the device adds in the same order.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from learner.borders import LaneBorder
from learner.lanes import LaneRecord
from protocol.experiment import Experiment
from protocol.randomness import Purpose, environment_seed
from protocol.trajectory import AXES, Trajectory

EARLY = (1, 4, 8, 16)  # One lane's rollout of each of these is collected twice, since faults should be seen early…
EARLY_SHARE = 1 / 100  # …unless that takes more than this share of the whole run's steps…
EARLY_ROLLOUTS = 8  # …and more than the steps of so many rollouts of one lane.
FAULTY_SHARE = 2  # For rollouts with faults, twice that may be taken.
LATER_SHARE = 1 / 256  # Other rollouts may take this share of the steps so far.
UPDATES = 256  # An update is repeated every so many iterations. The first is the run's second.
MAX_FAILURES = 3  # After so many failures in a row there is no witness: some simulators allow one per process.

COUNTS = ("rollouts", "in_other_processes", "differences", "steps", "updates", "update_differences")
BY_STEP = {  # Arrays [T, N, ...], in the order in which one value causes the next.
    "observations": "the observation",
    "action_masks": "the action mask",
    "actions": "the action",
    "behaviour_log_probs": "the action's probability",
    "rewards": "the reward",
    "terminated": "the episode's end",
    "truncated": "the episode's end",
}


class Asked(NamedTuple):
    """A rollout that an actor was asked to collect a second time."""

    number: int
    witness: bytes  # the actor's identity
    elsewhere: bool  # whether that is another process than the first collection's
    border: LaneBorder  # The lane's border before the rollout.
    trajectory: Trajectory  # What the first collection gave.


class Witness:
    """Chooses rollouts to be collected twice, and compares the two collections."""

    def __init__(self, experiment: Experiment, total_iterations: int) -> None:
        self.rollouts = 0  # Rollouts that were collected twice.
        self.in_other_processes = 0  # Those of them collected in another process.
        self.differences = 0  # Those of them that were not equal.
        self.steps = 0  # Environment steps of second collections, with replays.
        self.updates = 0  # Updates that were done twice.
        self.update_differences = 0  # Those of them that were not equal.
        self.asked: Asked | None = None
        self._experiment = experiment
        self._lane_steps = experiment.lane_size * experiment.rollout_length
        self._last = total_iterations - 1  # An environment that changes late should be seen, too.
        total_steps = total_iterations * experiment.env_steps_per_iteration
        self._early_steps = max(EARLY_SHARE * total_steps, EARLY_ROLLOUTS * self._lane_steps)
        self._number = 0
        self._failures = 0  # Requests that failed one after the other.

    def choose(self, rollout_index: int, lanes: list[LaneRecord], produced: int) -> int | None:
        """The lane whose rollout of this index should be collected a second time; None for none. `produced` counts the
        environment steps of the whole run so far."""
        if self.asked is not None or self._failures >= MAX_FAILURES:
            return None
        # A fault that a seed brings about comes again, and one that a timeout or a network does will not.
        faulty = [index for index, lane in enumerate(lanes) if lane.accepted[rollout_index].fault_count]
        index = faulty[0] if faulty else (self._experiment.seed + self._number) % len(lanes)
        lane = lanes[index]
        if lane.accepted[rollout_index].restarted.any():
            return None  # it is known already that this environment does not repeat itself
        allowed = LATER_SHARE * produced
        if faulty:
            allowed += FAULTY_SHARE * self._early_steps
        elif rollout_index in EARLY:
            allowed = self._early_steps
        elif rollout_index == self._last:
            allowed = self.steps + self._early_steps
        return index if self.steps + self._cost(lane.borders[rollout_index]) <= allowed else None

    def ask(self, witness: bytes, elsewhere: bool, border: LaneBorder, trajectory: Trajectory) -> int:
        """Note whom the rollout is asked of. Returns the number that the answer must have."""
        self._number += 1
        self.steps += self._cost(border)
        self.asked = Asked(self._number, witness, elsewhere, border, trajectory)
        return self._number

    def forget(self, witness: bytes) -> None:
        """An actor is gone, or cannot collect what it was asked for."""
        if self.asked is not None and self.asked.witness == witness:
            self.asked = None
            self._failures += 1

    def trust_anew(self) -> None:
        """Somebody has come who hosts no lanes: a simulator that a process can have once works there."""
        self._failures = 0

    def compare(self, trajectory: Trajectory) -> str | None:
        """Compare the second collection with the first. Returns where they differ first, None where they are equal."""
        assert self.asked is not None
        asked, self.asked = self.asked, None
        self._failures = 0
        self.rollouts += 1
        self.in_other_processes += asked.elsewhere
        difference = first_difference(self._experiment, asked.border, asked.trajectory, trajectory)
        self.differences += difference is not None
        return difference

    @staticmethod
    def wants_update(iteration: int) -> bool:
        """Whether the update of this iteration should be done twice. Not the first: a compiler may still be at work."""
        return iteration == 1 or (iteration > 0 and iteration % UPDATES == 0)

    def compare_updates(self, first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float | None:
        """Compare what an update led to with what its repetition led to, by the names of arrays. Returns the largest
        difference of two numbers, None where every bit is equal."""
        self.updates += 1
        differing = [name for name in first if first[name].tobytes() != second[name].tobytes()]
        if not differing:
            return None
        self.update_differences += 1
        return max(float(np.abs(first[name] - second[name]).max()) for name in differing)

    def state_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in COUNTS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in COUNTS:
            setattr(self, name, int(state.get(name, 0)))

    def _cost(self, border: LaneBorder) -> int:
        """Environment steps of a second collection from `border` on."""
        return int(border.episode_steps.sum()) + self._lane_steps


def first_difference(experiment: Experiment, border: LaneBorder, first: Trajectory, second: Trajectory) -> str | None:
    """Where two collections of one rollout from `border` differ first, in words; None where they are equal."""

    def place(n: int, time: int) -> str:
        index = first.lane * experiment.lane_size + n
        ends = np.flatnonzero(first.done[:time, n])
        episode = int(border.episode_indices[n]) + len(ends)
        steps = time - int(ends[-1]) - 1 if len(ends) else int(border.episode_steps[n]) + time
        seed = environment_seed(experiment.seed, Purpose.EPISODE_SEED, index, episode)
        return f"environment {index}, episode seed {seed}, after {steps} steps"

    if second.restarted.any():
        return f"{place(int(second.restarted.argmax()), 0)}: a replay does not lead there"
    found = []
    for order, (name, words) in enumerate(BY_STEP.items()):
        if not first.has(name):
            continue
        differs = _differ(first.array(name), second.array(name), axes=2)
        if differs.any():
            time, n = np.argwhere(differs)[0].tolist()
            found.append((time, order, f"{place(n, time)}: {words} differs"))
    if found:
        return min(found)[2]
    for name in (name for name in AXES if name not in BY_STEP and first.has(name)):
        one, other = first.array(name), second.array(name)
        if one.shape != other.shape or _differ(one, other, axes=1).any():
            return f"lane {first.lane}, rollout {first.rollout_index}: {name.replace('_', ' ')} differ at its end"
    return None


def _differ(one: np.ndarray, other: np.ndarray, axes: int) -> np.ndarray:
    """Where two arrays of one shape and type are not the same bits, by the first `axes` axes."""
    shape = *one.shape[:axes], math.prod(one.shape[axes:])
    bits = [np.ascontiguousarray(array).reshape(shape).view(np.uint8) for array in (one, other)]
    return (bits[0] != bits[1]).any(axis=-1)
