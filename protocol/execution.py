"""How a run is executed. These settings do not change the run's result, so they are not part of the experiment."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from protocol.process import as_word
from protocol.remote import RemoteAccess

WITNESS = "witness"  # The name of the witness. The names of the other actors are numbers, from 0 on.

SinkName = Literal["tensorboard", "wandb", "trackio"]


def is_launched(name: str) -> bool:
    """Whether the launcher gives this name to an actor. An actor that the launcher did not start may not have it."""
    return name.isdecimal() or name == WITNESS


def title_of(name: str) -> str:
    """The full name of an actor that the launcher starts: `actor 3`, or `witness`."""
    return name if name == WITNESS else f"actor {name}"


@dataclass(frozen=True)
class Execution:
    """The settings of processes and connections. The launcher passes them on to every process that needs them."""

    run_dir: Path  # An absolute path.
    num_actors: int  # Actors that the launcher starts.
    witness: bool = False  # Whether the launcher starts one more, without lanes, which collects rollouts again.
    step_timeout: float = 60.0  # Seconds without progress after which an actor counts as hung.
    workers: Literal["processes", "threads", "ray"] = "processes"  # Ray places the actors, not the learner.
    transport: Literal["ipc", "tcp"] = "ipc"  # Between processes on this machine.
    address: str = ""  # The address to which the launcher's actors connect. The supervisor sets it.
    remote: RemoteAccess | None = None  # How actors on other machines connect.
    ray_address: str | None = None  # HOST:PORT or `auto`. None starts a cluster on this machine for this run only.
    sinks: tuple[SinkName, ...] = ()
    quiet: bool = False
    let_sleep: bool = False  # Whether a Mac may fall asleep during the run.

    @property
    def actors(self) -> list[str]:
        """The names of the actors that the launcher starts."""
        return [*map(str, range(self.num_actors)), *([WITNESS] if self.witness else [])]

    @property
    def run_id(self) -> str:
        """The name of the run in messages."""
        return self.run_dir.name

    @property
    def flags_to_resume(self) -> list[str]:
        """What a command that resumes this run must say besides the run directory: where others connect, and where Ray
        is. The run directory keeps the rest."""
        flags = []
        if self.remote is not None and not self.remote.supervised:
            keys = ["--insecure"] if self.remote.keys is None else ["--keys", as_word(self.remote.keys)]
            flags += ["--listen", self.remote.address, *keys]
        if self.workers == "ray":
            flags += ["--cluster", "ray", "--actors", str(self.num_actors)]
            flags += ["--address", self.ray_address] if self.ray_address else []
        return flags

    @property
    def can_restart(self) -> bool:
        """Whether a lost learner or actor can be started again. A thread cannot, since it cannot be killed."""
        return self.workers != "threads"
