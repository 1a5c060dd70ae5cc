"""The learner and the actors as the supervisor sees them: processes, here or all over a Ray cluster, or threads.

All kinds put what happens into one queue: the learner's events as it reports them, and each end of an actor or of the
learner.
"""

from collections.abc import Iterable
from queue import SimpleQueue
from typing import Protocol

from protocol.events import Event

Events = SimpleQueue[Event]
END_SECONDS = 3.0  # A process has so long to end by itself: an actor closes its environments.


class Workers(Protocol):
    """One learner and its actors."""

    def start_learner(self) -> int:
        """Start a learner; returns its pid, 0 for a thread."""
        ...

    def start_actor(self, name: str, life: int) -> int:
        """Start an actor in its `life`, a number that no actor before it had; returns its pid, 0 where it has none on
        this machine."""
        ...

    def stop_learner(self) -> None:
        """Ask the learner to save and end; its summary follows."""
        ...

    def learner_is_stopped(self) -> bool:
        """Whether the system runs the learner no more, since someone sent it SIGSTOP."""
        ...

    def kill_learner(self) -> bool:
        """Kill a learner that hangs; False where that cannot be done."""
        ...

    def tell_lost(self, life: int) -> None:
        """Tell the learner that an actor's life is over."""
        ...

    def tell_wanted(self, names: Iterable[str]) -> None:
        """Tell the learner, and each that is started after it, which actors there are from now on, or will be again."""
        ...

    def kill_actor(self, name: str, life: int) -> bool:
        """Kill an actor that hangs, unless another has its place already; False where that cannot be done."""
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
