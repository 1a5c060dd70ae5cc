"""What passes between a learner and its supervisor."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

MAX_WARNING = 2000  # characters


class StopRequested(Exception):
    """The run was asked to end; the last completed version is its result."""


@dataclass(frozen=True)
class Supervision:
    """The learner's ties to whoever started it."""

    report: Callable[[dict[str, Any]], None]  # events, from the learner; the last is the summary
    stop: threading.Event = field(default_factory=threading.Event)
    lost: SimpleQueue[int] = field(default_factory=SimpleQueue)  # pids of actor processes that are no more

    def check_stop(self) -> None:
        """Raise `StopRequested` if the run should end."""
        if self.stop.is_set():
            raise StopRequested

    def warn(self, text: str) -> None:
        """Tell the user, whose terminal may not obey what an actor has put into a text."""
        shown = "".join(c if c.isprintable() else "?" for c in text[:MAX_WARNING])
        self.report({"event": "warning", "text": shown})
