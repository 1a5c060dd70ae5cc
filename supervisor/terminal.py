"""Shows a run: a live view in a terminal, plain lines anywhere else, and little with `--quiet`."""

import io
import os
import time
from collections import deque
from contextlib import ExitStack, suppress
from typing import Any

from rich.console import Console
from rich.control import Control
from rich.screen import Screen

from protocol.output import STANDARD_OUTPUT, errors, held, output
from protocol.text import printable
from rundir.episode_metrics import SUCCESS
from supervisor.status import Happening, RunStatus
from supervisor.view import View
from supervisor.words import DASH, duration, number

LINE_SECONDS = 1.0  # Least seconds between two plain lines.
FRAME_SECONDS = 0.5  # Seconds between two frames of the live view.
HELD = 200  # Most lines of the time of the live view that are printed after it.
ALARMS = {"warning", "actor_lost", "actor_retired", "learner_lost"}


class SafeConsole(Console):
    """Stops printing when nobody reads any more (`| head`, a terminal that was closed), so that the run goes on."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True, file=output(), force_jupyter=False)

    @property
    def can_show_views(self) -> bool:
        """Whether it is a terminal that can be drawn over. FORCE_COLOR, which notebooks set, makes rich take any file
        for a terminal."""
        return self.is_terminal and self.file.isatty() and not self.is_dumb_terminal and not in_notebook()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (self.file.fileno(), STANDARD_OUTPUT):  # Environments in this process may print to both.
            os.dup2(nowhere, descriptor)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:
            self.on_broken_pipe()


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, or was started by one, which gives it what looks like a terminal."""
    return "JPY_PARENT_PID" in os.environ or "inline" in os.environ.get("MPLBACKEND", "")


class _Held(io.TextIOBase):
    """Keeps the newest of what other code prints during the live view, to print it afterwards."""

    def __init__(self) -> None:
        self.pieces: deque[str] = deque(maxlen=10 * HELD)

    def write(self, text: str, /) -> int:
        self.pieces.append(text)
        return len(text)


class Terminal:
    """Prints lines and shows the live view. A context manager: the live view is shown as long as the context lasts."""

    def __init__(self, status: RunStatus, quiet: bool) -> None:
        self._status = status
        self._quiet = quiet
        self._console = SafeConsole()
        self._live: ExitStack | None = None
        self._held: list[str] = []
        self._printed = _Held()
        self._next_frame = 0.0  # time.monotonic()
        self._last_line = 0.0  # time.monotonic()

    @property
    def shows_view(self) -> bool:
        """Whether there will be a live view."""
        return self._console.can_show_views and not self._quiet

    def __enter__(self) -> "Terminal":
        if self.shows_view:
            self._live = ExitStack()
            self._live.enter_context(self._console.screen())
            self._live.enter_context(held(self._printed))
            self.tick()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the live view, and print the lines that were said meanwhile."""
        if self._live is None:
            return
        self._console.print(Control.clear(), Control.home(), sep="", end="")  # Some terminals leave a part of the view.
        self._live.close()
        self._live = None
        if len(self._held) > HELD:
            self.say(f"({len(self._held) - HELD} earlier lines are in events.jsonl)")
        for line in self._held[-HELD:]:
            self.say(line)
        if self._printed.pieces:
            with suppress(OSError):  # The terminal was closed.
                errors().write("".join(self._printed.pieces))

    def say(self, text: str) -> None:
        """Print a line that stays. It may hold text from outside this project."""
        text = printable(text)
        if self._live is not None:
            self._held.append(text)
        else:
            self._console.print(text, markup=False)

    def tell(self, happening: Happening) -> None:
        """Print an event; when quiet, only an event that is wrong."""
        if happening.event in ALARMS:
            self.say(f"warning: {happening.text}")
        elif not self._quiet:
            self.say(f"note: {happening.text}" if happening.event == "note" else happening.text)

    def show_iteration(self, row: dict[str, Any]) -> None:
        """Print an iteration's row of metrics."""
        now = time.monotonic()
        total = self._status.total_steps
        if self._live is not None or self._quiet or (now - self._last_line < LINE_SECONDS and row["env_steps"] < total):
            return
        self._last_line = now
        left = self._status.seconds_left
        success = f"  success {row[SUCCESS]:>4.0%}" if SUCCESS in row else ""
        self.say(
            f"{row['env_steps']:>11,} / {total:,} env-steps"
            f"  {row['time/env_steps_per_second']:>7,.0f}/s"
            f"  return {number(row['rollout/episode_return_mean'], '.2f'):>9}"
            f"  length {number(row['rollout/episode_length_mean'], '.1f'):>6}"
            f"{success}"
            f"  KL {row['train/approx_kl']:.4f}"
            f"  {DASH if left is None else duration(left)} left"
        )

    def tick(self) -> None:
        """Draw the live view again if that is due."""
        now = time.monotonic()
        if self._live is not None and now >= self._next_frame:
            self._next_frame = now + FRAME_SECONDS
            self._console.print(Control.home(), Screen(View(self._status)), sep="", end="", soft_wrap=False)
