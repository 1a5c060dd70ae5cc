"""What a run begins from, where that is another policy (`--init-from`): weights, and statistics of observations."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from protocol.errors import UserError
from protocol.files import replace_file
from protocol.records import plain, typed
from rundir.names import INITIAL

WEIGHTS, STATISTICS, CRITIC_STATISTICS, ABOUT = "weights.", "statistics.", "critic_statistics.", "about"


@dataclass(frozen=True)
class About:
    """Where it comes from, and what it was trained with."""

    source: str  # In a few words, to be shown to people.
    activation: str
    network: str


@dataclass(frozen=True)
class Initial:
    """A policy to begin from."""

    about: About
    weights: dict[str, np.ndarray]  # By the names of `ActorCritic`; those of the critic may be missing.
    statistics: dict[str, np.ndarray]  # Count, mean and squares; nothing where observations were not normalised.
    critic_statistics: dict[str, np.ndarray]  # The same of what only the critic saw; nothing where that was nothing.

    def save(self, run_dir: Path) -> None:
        """Keep it in a run directory. Raises `OSError`."""
        arrays = {WEIGHTS + name: array for name, array in self.weights.items()}
        arrays |= {STATISTICS + name: array for name, array in self.statistics.items()}
        arrays |= {CRITIC_STATISTICS + name: array for name, array in self.critic_statistics.items()}
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        replace_file(run_dir / INITIAL, safetensors.numpy.save(contiguous, {ABOUT: json.dumps(plain(self.about))}))

    @classmethod
    def load(cls, run_dir: Path) -> "Initial":
        """What was kept in a run directory; raises `UserError` if there is nothing, or it is damaged."""
        path = run_dir / INITIAL
        try:
            with safetensors.safe_open(path, framework="np") as file:
                metadata, arrays = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = typed(json.loads(metadata[ABOUT]), About, ABOUT)
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} cannot be read, and the run begins from it: {error}") from None
        parts = [
            {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            for prefix in (WEIGHTS, STATISTICS, CRITIC_STATISTICS)
        ]
        return cls(about, *parts)
