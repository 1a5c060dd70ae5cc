"""How a run is executed. Nothing of this changes its result, so nothing of it is part of the experiment."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from protocol.remote import RemoteAccess

WITNESS = "witness"  # That actor's name. Those of the others are numbers, from 0 on.

SinkName = Literal["tensorboard", "wandb", "trackio"]


def is_launched(name: str) -> bool:
    """Whether an actor's name is one that the launcher gives. Nobody else may have such a name."""
    return name.isdecimal() or name == WITNESS


def title_of(name: str) -> str:
    """The full name of an actor that the launcher starts: `actor 3`, or `witness`."""
    return name if name == WITNESS else f"actor {name}"


@dataclass(frozen=True)
class Execution:
    """The settings of processes and connections. The launcher passes them on to every process that needs them."""

    run_dir: Path  # absolute
    num_actors: int  # Actors that the launcher starts.
    witness: bool = False  # whether it starts one more, which hosts no lanes and collects rollouts a second time
    step_timeout: float = 60.0  # seconds without progress after which an actor is taken to hang
    workers: Literal["processes", "threads", "ray"] = "processes"  # Ray places actors alone.
    transport: Literal["ipc", "tcp"] = "ipc"  # between processes of this machine
    address: str = ""  # Where the launcher's actors connect. The supervisor fills it in.
    remote: RemoteAccess | None = None  # Where actors of other machines connect.
    ray_address: str | None = None  # HOST:PORT or `auto`; None starts a cluster on this machine, for this run alone
    sinks: tuple[SinkName, ...] = ()
    quiet: bool = False
    let_sleep: bool = False  # whether a Mac may fall asleep

    @property
    def actors(self) -> list[str]:
        """The names of the actors that the launcher starts."""
        return [*map(str, range(self.num_actors)), *([WITNESS] if self.witness else [])]

    @property
    def run_id(self) -> str:
        """How messages name the run."""
        return self.run_dir.name

    @property
    def can_restart(self) -> bool:
        """Whether what is lost can be started again. Threads cannot be killed."""
        return self.workers != "threads"
