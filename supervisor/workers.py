"""The learner and the actors as the supervisor sees them: processes, on this machine or on a Ray cluster, or threads.

All kinds put their events into one queue: the events that the learner reports, and each exit of an actor or of the
learner.
"""

from collections.abc import Iterable
from queue import SimpleQueue
from typing import Protocol

from protocol.events import Event

Events = SimpleQueue[Event]
END_SECONDS = 3.0  # Seconds that a process has to end by itself: an actor closes its environments.


class Workers(Protocol):
    """One learner and its actors."""

    def start_learner(self) -> int:
        """Start a learner. Returns its pid, or 0 for a thread."""
        ...

    def start_actor(self, name: str, life: int) -> int:
        """Start an actor in its `life`, a number that no earlier actor had. Returns its pid, or 0 if it has none on
        this machine."""
        ...

    def stop_learner(self) -> None:
        """Ask the learner to save and end; its summary follows."""
        ...

    def learner_is_stopped(self) -> bool:
        """Whether a SIGSTOP has suspended the learner."""
        ...

    def kill_learner(self) -> bool:
        """Kill a learner that hangs. Returns False if that is impossible."""
        ...

    def tell_lost(self, life: int) -> None:
        """Tell the learner that the actor process of this life has ended."""
        ...

    def tell_wanted(self, names: Iterable[str]) -> None:
        """Tell the learner, and each later learner, which actors run from now on or will be started again."""
        ...

    def kill_actor(self, name: str, life: int) -> bool:
        """Kill an actor that hangs, unless it was already replaced. Returns False if that is impossible."""
        ...

    def restart_actor(self, name: str) -> None:
        """Kill an actor that does not join; its exit counts as a crash, so it is started again."""
        ...

    def end_actor(self, name: str) -> None:
        """End an actor that is no longer wanted."""
        ...

    def end(self, seconds: float) -> None:
        """End everything that is left, within `seconds`."""
        ...
