"""What passes between a learner and its supervisor."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from protocol.text import printable

MAX_WARNING = 2000  # characters
SHORTEST_PATIENCE = 10.0  # seconds without a sign of life after which a learner may be taken to hang
ALIVE_SECONDS = 0.5  # between two signs of life


class StopRequested(Exception):
    """The run was asked to end; the last completed version is its result."""


@dataclass
class Supervision:
    """The learner's ties to whoever started it."""

    report: Callable[[dict[str, Any]], None]  # events, from the learner; the last is the summary
    stop: threading.Event = field(default_factory=threading.Event)
    lost: SimpleQueue[int] = field(default_factory=SimpleQueue)  # lives of actor processes that are no more
    wanted: SimpleQueue[set[str]] = field(default_factory=SimpleQueue)  # names of its actors, whenever these change
    _patience: float = 0.0  # that was told last
    _next_sign: dict[bool, float] = field(default_factory=dict)  # time.monotonic(), by whether it was listening

    def check_stop(self) -> None:
        """Raise `StopRequested` if the run should end."""
        if self.stop.is_set():
            raise StopRequested

    def alive(self, patience: float, listening: bool = False) -> None:
        """Tell, at most a few times a second, that the learner is at work.

        `patience` is for how many seconds it may say nothing from now on. `listening` says that it has read all that
        actors have sent: whoever it does not know then has not said hello.
        """
        now = time.monotonic()
        if now >= self._next_sign.get(listening, 0.0) or patience != self._patience:
            self._next_sign[listening], self._patience = now + ALIVE_SECONDS, patience
            self.report({"event": "alive", "patience": patience, "listening": listening})

    def warn(self, text: str) -> None:
        """Tell the user, whose terminal may not obey what an actor has put into a text."""
        self.report({"event": "warning", "text": printable(text[:MAX_WARNING])})
