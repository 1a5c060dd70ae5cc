"""A policy on its own: one file, loaded and run with NumPy and safetensors alone.

    policy = load_policy("policy.safetensors")
    action = policy(observation)  # An observation as the environment shows it, and an action as it takes it.
    action = policy(observation, action_mask)  # Where the environment has action masks.

The file is safetensors: the weights and the observation statistics, and as metadata what `Description` says, as JSON.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from actors.interface import ActionConverter, ActionForm, ObservationConverter, ObservationForm, mask_of
from actors.policy import Policy
from protocol.errors import ProtocolError, UserError
from protocol.experiment import Experiment
from protocol.files import replace_file
from protocol.observations import InputShapes, normalized_size
from protocol.records import plain, typed
from protocol.snapshot import PolicySnapshot, part_of
from protocol.spaces import ADDED_SPACES, MAX_SIZE, Spaces

FORMAT = 2  # Format 1, which knew no action masks and no episode metrics, is read, too.
ADDED_SETTINGS = {"episode_metrics": [], "recurrent": "gru", "critic_only": []}  # Older files may lack them.
FORMAT_KEY, POLICY_KEY = "mlx-distributed-ppo", "policy"  # Keys of the file's metadata.
WEIGHTS, MEAN, SCALE = "weights.", "observation_mean", "observation_scale"


@dataclass(frozen=True)
class Description:
    """The environment and settings of an exported policy, without its arrays."""

    policy_version: int
    experiment: Experiment
    spaces: Spaces
    observation: ObservationForm
    action: ActionForm

    def check(self) -> None:
        """Raise `UserError` or `ProtocolError` unless all of this can be."""
        self.experiment.check()
        self.spaces.check()
        self.observation.check(self.spaces)
        self.action.check(self.spaces)
        if InputShapes.of(self.spaces.parts).vector > MAX_SIZE:
            raise ProtocolError(f"the policy would have more than {MAX_SIZE} inputs")


class ExportedPolicy:
    """A policy that acts in one environment, from observations as the environment shows them to actions as it takes
    them. A recurrent one remembers the episode until `reset`."""

    def __init__(self, description: Description, snapshot: PolicySnapshot) -> None:
        self.description, self.snapshot = description, snapshot
        self._policy = Policy(snapshot, description.spaces, description.experiment)
        self._store = ObservationConverter(description.observation, description.spaces)
        self._to_env = ActionConverter(description.action, description.spaces)
        self.reset()

    def reset(self) -> None:
        """Forget the episode: to be called where one begins."""
        self._hidden_state = np.zeros((1, self.description.experiment.hidden_state_size), np.float32)

    def forward(self, observation: Any) -> tuple[np.ndarray, np.ndarray]:
        """(distribution parameters [1, size], next hidden state), remembering nothing."""
        return self._policy.forward(self._block(observation), self._hidden_state)

    def __call__(self, observation: Any, action_mask: Any = None) -> Any:
        """The most probable action that the mask allows. Raises `ValueError` on an observation that is not of the space
        or not finite, and on a mask that is missing or none."""
        allowed = self._allowed(action_mask)
        action, self._hidden_state = self._policy.mode(self._block(observation), self._hidden_state, allowed)
        return self._to_env(action)[0]

    def sample(self, observation: Any, generator: np.random.Generator, action_mask: Any = None) -> Any:
        """An action drawn from the policy's distribution, as in training."""
        noise, allowed = self._policy.draw_noise(generator, (1,)), self._allowed(action_mask)
        action, _, self._hidden_state = self._policy.act(self._block(observation), self._hidden_state, noise, allowed)
        return self._to_env(action)[0]

    def _allowed(self, action_mask: Any) -> np.ndarray | None:
        """The mask [1, size]; None for a policy without masks."""
        if not self.description.spaces.has_action_masks:
            return None
        if action_mask is None:
            raise ValueError("this policy was trained with action masks: give it the mask as well")
        return mask_of(action_mask, self.description.spaces)[None]

    def _block(self, observation: Any) -> np.ndarray:
        stored = self._store(observation)
        if stored.dtype.kind == "f" and not np.isfinite(stored).all():
            raise ValueError("the observation is not finite")
        return stored[None]


def check_target(path: Path) -> None:
    """Raise `UserError` where a policy would be written over a file that is none, such as one of a run's."""
    if not path.exists():
        return
    try:
        with safetensors.safe_open(path, framework="np") as file:
            ours = FORMAT_KEY in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        ours = path.suffix == ".onnx" and path.is_file()
    if not ours:
        raise UserError(f"{path} is there already, and is no exported policy: choose another name")


def save_policy(path: Path, description: Description, snapshot: PolicySnapshot) -> None:
    """Write a policy to `path`, all or nothing. Raises `OSError`."""
    arrays = {f"{WEIGHTS}{name}": array for name, array in snapshot.weights.items()}
    arrays |= {MEAN: snapshot.observation_mean, SCALE: snapshot.observation_scale}
    metadata = {FORMAT_KEY: str(FORMAT), POLICY_KEY: json.dumps(plain(description), allow_nan=False)}
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    replace_file(path, safetensors.numpy.save(contiguous, metadata))


def load_policy(path: str | Path, trust: bool = False) -> ExportedPolicy:
    """The policy in the file `path`; raises `UserError` if it is not one, or damaged.

    No file makes code run, unless it is trusted: then one whose `--network` was `package:Class` imports that package.
    """
    description, arrays = read_policy(Path(path))
    name = description.experiment.network
    if ":" in name and not trust:
        raise UserError(f"{path} has a network of its own, {name}: trust=True (--trust) lets its code run")
    weights = part_of(arrays, WEIGHTS)
    snapshot = PolicySnapshot(description.policy_version, weights, arrays[MEAN], arrays[SCALE])
    try:
        _check_sizes(description, weights)
        policy = ExportedPolicy(description, snapshot)
        _try(policy)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, ValueError, IndexError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{path}: its weights do not fit its spaces and its network: {reason}") from None
    return policy


def read_policy(path: Path) -> tuple[Description, dict[str, np.ndarray]]:
    """What a file holds, each part by itself as it must be. Raises `UserError`."""
    if path.suffix == ".onnx":
        raise UserError(f"{path} is a graph for ONNX runtimes, which is not read here: export the run as numpy, too")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata, arrays = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not an exported policy, or damaged: {' '.join(str(error).split())}") from None
    if FORMAT_KEY not in metadata or POLICY_KEY not in metadata:
        raise UserError(f"{path} is not a policy that `launch.py export` wrote")
    if metadata[FORMAT_KEY] not in ("1", str(FORMAT)):
        raise UserError(f"{path} has policy format {metadata[FORMAT_KEY]:.20}; this release reads {FORMAT}")
    try:
        described = json.loads(metadata[POLICY_KEY])
        described["experiment"] = ADDED_SETTINGS | described["experiment"]
        described["spaces"] = ADDED_SPACES | described["spaces"]
        description = typed(described, Description, "the policy")
        description.check()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ProtocolError, UserError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    size = normalized_size(description.spaces.parts)
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise UserError(f"{path} is damaged: {name} is not of finite float32 numbers")
    for name in (MEAN, SCALE):
        if name not in arrays or arrays[name].shape != (size,):
            raise UserError(f"{path} is damaged: it needs {size} numbers as {name}")
    return description, arrays


def _check_sizes(description: Description, weights: dict[str, np.ndarray]) -> None:
    """Raise `ValueError` or `KeyError` unless these arrays are of the sizes that the description gives them."""
    size, outputs = description.experiment.recurrent_size, description.spaces.distribution_size
    wanted: dict[str, tuple[int, ...]] = {"policy_head.bias": (outputs,)}
    if description.spaces.distribution == "gaussian":
        wanted["log_std"] = (outputs,)
    if size:
        kind = description.experiment.recurrent
        wanted[f"{kind}.recurrent.weight"] = ({"gru": 3, "lstm": 4}[kind] * size, size)
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            raise ValueError(f"{name} has shape {weights[name].shape} instead of {shape}")


def _try(policy: ExportedPolicy) -> None:
    """Raise `ValueError`, `KeyError` or `IndexError` unless the weights compute something of the right shape."""
    spaces, size = policy.description.spaces, policy.description.experiment.hidden_state_size
    zeros = np.zeros((1, *spaces.observation.shape), spaces.observation.dtype)
    parameters, hidden_state = Policy(policy.snapshot, spaces, policy.description.experiment).forward(
        zeros, np.zeros((1, size), np.float32)
    )
    if (parameters.shape, hidden_state.shape) != ((1, spaces.distribution_size), (1, size)):
        raise ValueError(f"{parameters.shape[1]} outputs and a hidden state of {hidden_state.shape[1]} come out")
