"""One lane's fixed-length piece of experience, and the state with which another actor can take the lane over."""

from dataclasses import dataclass, field

import numpy as np

from protocol.errors import ProtocolError
from protocol.experiment import Experiment
from protocol.spaces import Spaces
from protocol.text import MAX_TEXT

DIGEST_SIZE = 8
LARGEST_REWARD = float(np.finfo(np.float32).max)  # The largest reward that a trajectory can hold.
MAX_TRACEBACK = 4000  # Most characters of a fault's traceback.
MAX_FAULTS_TOLD = 20  # Most faults that a trajectory describes. The others are only counted.
EPISODE = "episode/"  # The names of episode metrics begin so.
SUCCESS = "is_success"  # By this name environments say whether an episode reached its goal.
MAX_METRICS = 32  # Most episode metrics of a run.
MAX_METRICS_SENT = 2 * MAX_METRICS  # Most of a trajectory. The learner sees by it that there are more than it keeps.
LONGEST_METRIC = 64  # Characters of a metric's name.
MAX_FAILED_BEGINNINGS = 100  # Failed resets and constructions in a row after which an actor gives up.


@dataclass(frozen=True)
class Fault:
    """An environment raised an exception, or returned an invalid value."""

    environment: int  # The environment's index in the run.
    episode: int  # The episode's index.
    seed: int  # The episode's seed.
    phase: str  # `constructor`, `reset` or `step`
    step: int  # Steps of the episode before the fault.
    time: int  # The rollout's step in which the fault happened; -1 before the first step.
    text: str  # What happened, in one line.
    progress: float = 0.0  # The share of training that the episode was told of.
    # The user's lines in which an exception arose. Another machine may have them elsewhere: it is no part of equality.
    traceback: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"environment {self.environment} (episode seed {self.seed}, step {self.step}): {self.text}"


AXES = {  # The axes of each array: T steps, N environments, K truncated episodes, E finished episodes.
    "observations": "TN",
    "last_observations": "N",
    "actions": "TN",
    "behaviour_log_probs": "TN",
    "rewards": "TN",
    "terminated": "TN",
    "truncated": "TN",
    "final_observations": "K",
    "episode_returns": "E",
    "episode_lengths": "E",
    "episode_indices": "N",
    "restarted": "N",
    "failed_resets": "N",
    "digests": "N",
    "initial_hidden_state": "N",
    "last_hidden_state": "N",
    "action_masks": "TN",
}
EXTRAS = ("initial_hidden_state", "last_hidden_state", "action_masks")  # Not every experiment has these.


def axes_of(name: str) -> str:
    """The axes of an array of a trajectory, as `AXES` names them."""
    return "E" if name.startswith(EPISODE) else AXES[name]


def element_types(experiment: Experiment, spaces: Spaces) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape after the axes of `AXES`, dtype) of each array that a trajectory of this experiment has."""
    observation, action = spaces.observation, spaces.action
    elements = {
        "observations": (observation.shape, observation.dtype),
        "last_observations": (observation.shape, observation.dtype),
        "actions": (action.shape, action.dtype),
        "behaviour_log_probs": ((), "float32"),
        "rewards": ((), "float32"),
        "terminated": ((), "bool"),
        "truncated": ((), "bool"),
        "final_observations": (observation.shape, observation.dtype),
        "episode_returns": ((), "float64"),
        "episode_lengths": ((), "int64"),
        "episode_indices": ((), "int64"),
        "restarted": ((), "bool"),
        "failed_resets": ((), "int64"),
        "digests": ((DIGEST_SIZE,), "uint8"),
    }
    if experiment.hidden_state_size:
        elements["initial_hidden_state"] = ((experiment.hidden_state_size,), "float32")
        elements["last_hidden_state"] = ((experiment.hidden_state_size,), "float32")
    if spaces.has_action_masks:
        elements["action_masks"] = ((spaces.mask_bytes,), "uint8")
    return elements


@dataclass(frozen=True)
class Trajectory:
    """The experience of one lane in one rollout. T is the rollout length, N the lane size. Arrays are time-major.

    An array that only some experiments have is an extra: name it in `AXES`, `EXTRAS` and `element_types`, and fill it
    in actors/rollout.py. The extra is then checked, sent, compared by the witness, and stacked in the batch's extras.
    Episode metrics are extras as well, whose names environments choose: float64 [E], NaN where an episode has none. The
    witness leaves them out, since nothing is trained on them, and an environment may tell the time in them.
    """

    run_id: str
    lane: int
    rollout_index: int
    policy_version: int
    fencing_token: int
    observations: np.ndarray  # [T, N, *observation], raw: normalisation is part of the policy
    last_observations: np.ndarray  # [N, *observation], from which the next rollout starts
    actions: np.ndarray  # [T, N, *action], as sampled; only the environment gets them clipped
    behaviour_log_probs: np.ndarray  # float32 [T, N]
    rewards: np.ndarray  # float32 [T, N]
    terminated: np.ndarray  # bool [T, N]
    truncated: np.ndarray  # bool [T, N], False where terminated
    final_observations: np.ndarray  # [K, *observation], of the K truncated episodes, in the order (t, n)
    episode_returns: np.ndarray  # float64 [E], of the E finished episodes, in the order (t, n)
    episode_lengths: np.ndarray  # int64 [E], steps
    episode_indices: np.ndarray  # int64 [N], each environment's episode at the rollout's end
    restarted: np.ndarray  # bool [N], environments that could not be rebuilt and began a fresh episode
    digests: np.ndarray  # uint8 [N, DIGEST_SIZE], of (observation, return, length) at the rollout's end
    failed_resets: np.ndarray  # int64 [N], episodes that never began, since their resets failed
    faults: tuple[Fault, ...]  # The first faults, at most MAX_FAULTS_TOLD.
    fault_count: int  # The number of all faults.
    moved_global_random: bool  # Whether environments used `random` or `np.random`, which their seeds do not control.
    extras: dict[str, np.ndarray]  # The arrays of `EXTRAS` that this experiment has, and episode metrics.

    def has(self, name: str) -> bool:
        """Whether this trajectory has the array `name`."""
        return name in self.extras or (name in AXES and name not in EXTRAS)

    def array(self, name: str) -> np.ndarray:
        """One of the arrays that `AXES` names, or an episode metric."""
        return self.extras[name] if name in self.extras else getattr(self, name)

    @property
    def done(self) -> np.ndarray:
        """bool [T, N]: the steps that ended an episode."""
        return self.terminated | self.truncated

    def check(self, experiment: Experiment, spaces: Spaces) -> None:
        """Raise `ProtocolError` unless shapes, dtypes and values are those the handshake agreed on."""
        t, n = experiment.rollout_length, experiment.lane_size
        episodes = self.episode_returns.size
        lengths = {"T": t, "N": n, "K": int(np.count_nonzero(self.truncated)), "E": episodes}
        elements = element_types(experiment, spaces)
        extras = [name for name in elements if name in EXTRAS]
        metrics = [name for name in self.extras if name.startswith(EPISODE)]
        if set(self.extras) != {*extras, *metrics}:
            raise ProtocolError(f"the extras are {sorted(self.extras)} instead of {extras}")
        for name, (element, dtype) in elements.items():
            array, shape = self.array(name), (*(lengths[axis] for axis in AXES[name]), *element)
            if array.shape != shape or array.dtype != np.dtype(dtype):
                raise ProtocolError(f"{name} is {array.dtype} {list(array.shape)} instead of {dtype} {list(shape)}")
            if name.endswith("observations"):
                spaces.check_observations(array.reshape(-1, *spaces.observation.shape), name)
            elif array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ProtocolError(f"{name} holds a value that is not finite")
        if np.count_nonzero(self.done) != episodes:
            raise ProtocolError("episode_returns does not match the number of finished episodes")
        self._check_metrics(metrics, episodes)
        if np.any((self.episode_lengths < 0) | (self.episode_lengths > experiment.replay_cap)):
            raise ProtocolError("episode_lengths holds an impossible number")
        # No return of `replay_cap` rewards comes near to this limit, and no sum of such returns comes near to infinity.
        if np.any(np.abs(self.episode_returns) > 2 * experiment.replay_cap * LARGEST_REWARD):
            raise ProtocolError("episode_returns holds an impossible number")
        if np.any(self.terminated & self.truncated):
            raise ProtocolError("a step is both terminated and truncated")
        if self.failed_resets.min() < 0 or self.failed_resets.max() > (t + 2) * MAX_FAILED_BEGINNINGS:
            raise ProtocolError("failed_resets holds an impossible number")
        self._check_faults(t, n)
        spaces.check_actions(self.actions)
        if spaces.has_action_masks:
            masks = self.extras["action_masks"].reshape(-1, spaces.mask_bytes)
            spaces.check_masks(masks, self.actions.reshape(-1, *spaces.action.shape))

    def _check_metrics(self, names: list[str], episodes: int) -> None:
        if len(names) > MAX_METRICS_SENT:
            raise ProtocolError(f"there are {len(names)} episode metrics; {MAX_METRICS_SENT} are possible")
        for name in names:
            array = self.extras[name]
            if not name.isprintable() or not len(EPISODE) < len(name) <= len(EPISODE) + LONGEST_METRIC:
                raise ProtocolError("an episode metric has an impossible name")
            if array.shape != (episodes,) or array.dtype != np.float64 or np.isinf(array).any():
                raise ProtocolError(f"{name} is no float64 [{episodes}] of finite numbers")

    def _check_faults(self, t: int, n: int) -> None:
        if len(self.faults) != min(self.fault_count, MAX_FAULTS_TOLD):
            raise ProtocolError(f"{len(self.faults)} faults are described, of {self.fault_count}")
        if not 0 <= self.fault_count <= n * (t + 2) * MAX_FAILED_BEGINNINGS:
            raise ProtocolError(f"{self.fault_count} faults are impossible")
        first = self.lane * n
        for fault in self.faults:
            possible = first <= fault.environment < first + n and -1 <= fault.time < t and fault.step >= 0
            possible = possible and 0 <= fault.progress <= 1
            if not possible or fault.phase not in ("constructor", "reset", "step") or len(fault.text) > MAX_TEXT:
                raise ProtocolError("a fault with an impossible field")
            if len(fault.traceback) > MAX_TRACEBACK:
                raise ProtocolError("a fault with an impossible field")


@dataclass(frozen=True)
class LaneState:
    """Everything that another actor needs to continue a lane between two rollouts. That actor resets the environments,
    replays the actions, and compares the digests."""

    rollout_index: int  # The lane's next rollout.
    episode_indices: np.ndarray  # int64 [N]
    episode_steps: np.ndarray  # int64 [N], actions since each episode's reset
    actions: np.ndarray  # [sum of episode_steps, *action], environment by environment
    digests: np.ndarray  # uint8 [N, DIGEST_SIZE]
    hidden_state: np.ndarray  # float32 [N, hidden_state_size]
    progress: np.ndarray  # float64 [N], the share of training that each episode was told of when it began

    def actions_of(self, n: int) -> np.ndarray:
        """The actions to replay in the lane's environment `n`: [episode_steps[n], *action]."""
        start = int(self.episode_steps[:n].sum())
        return self.actions[start : start + int(self.episode_steps[n])]

    def check(self, experiment: Experiment, spaces: Spaces) -> None:
        """Raise `ProtocolError` unless this can be the state of a lane of this experiment."""
        n = experiment.lane_size
        total = int(self.episode_steps.sum()) if self.episode_steps.dtype == np.int64 else -1
        expected = {
            "episode_indices": ((n,), "int64"),
            "episode_steps": ((n,), "int64"),
            "actions": ((total, *spaces.action.shape), spaces.action.dtype),
            "digests": ((n, DIGEST_SIZE), "uint8"),
            "hidden_state": ((n, experiment.hidden_state_size), "float32"),
            "progress": ((n,), "float64"),
        }
        for name, (shape, dtype) in expected.items():
            array: np.ndarray = getattr(self, name)
            if array.shape != shape or array.dtype != np.dtype(dtype):
                raise ProtocolError(f"lane state: {name} is {array.dtype} {list(array.shape)}")
            if name.startswith("episode_") and array.min() < 0:
                raise ProtocolError(f"lane state: {name} holds a negative number")
