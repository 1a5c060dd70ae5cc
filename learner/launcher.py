"""The learner's side of the talk with its supervisor."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from protocol.events import Alive, Caution, Event
from protocol.text import printable, printable_lines

MAX_WARNING = 2000  # A warning has at most so many characters.
SHORTEST_PATIENCE = 10.0  # A learner may always be silent for so many seconds before it is taken to hang.
ALIVE_SECONDS = 0.5  # A sign of life is given at most that often.

LONG_PATIENCE = 600.0  # MLX may compile, or a disk may take, that many seconds.
STEPS_OF_PATIENCE = 10  # A step of an update may take that many times as long as the longest of the last update.


class StopRequested(Exception):
    """The run was asked to end; the last completed version is its result."""


@dataclass
class Launcher:
    """The learner's ties to whoever started it."""

    report: Callable[[Event], None]  # Called with what the learner reports; the summary is last.
    stop: threading.Event = field(default_factory=threading.Event)
    lost: SimpleQueue[int] = field(default_factory=SimpleQueue)  # lives of actor processes that are no more
    wanted: SimpleQueue[set[str]] = field(default_factory=SimpleQueue)  # names of its actors, whenever these change
    _patience: float = 0.0  # The patience that was reported last.
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
            self.report(Alive(patience, listening))

    def warn(self, text: str, traceback: str = "") -> None:
        """Tell the user, whose terminal may not obey what an actor has put into a text."""
        self.report(Caution(printable(text[:MAX_WARNING]), printable_lines(traceback)))


class Patience:
    """For how many seconds a learner that is in an update may give no sign of life."""

    def __init__(self, step_timeout: float) -> None:
        self.seconds = LONG_PATIENCE
        self._least = max(step_timeout, SHORTEST_PATIENCE)
        self._has_compiled = False  # whether this process has done an update, and so has its kernels
        self._longest_step = 0.0  # Seconds, in the last update.
        self._stepped = 0.0  # time.monotonic()

    def begin_update(self) -> None:
        if self._has_compiled:
            self.seconds = max(self._least, STEPS_OF_PATIENCE * self._longest_step)
        self._stepped, self._longest_step = time.monotonic(), 0.0

    def note_step(self) -> None:
        now = time.monotonic()
        # Of the first update only the last step counts: earlier ones may have waited for a compiler.
        self._longest_step = max(self._longest_step if self._has_compiled else 0.0, now - self._stepped)
        self._stepped = now

    def end_update(self) -> None:
        self._has_compiled = True
