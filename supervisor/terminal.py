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
from supervisor.status import Happening, RunStatus
from supervisor.view import View
from supervisor.words import DASH, duration, number

LINE_SECONDS = 1.0  # A plain line is printed that often.
FRAME_SECONDS = 0.5  # The live view is drawn that often.
HELD = 200  # So many lines that are said while the live view stands are printed after it.
ALARMS = {"warning", "actor_lost", "actor_retired", "learner_lost"}


class _Console(Console):
    """Falls silent when nobody reads any more (`| head`, a terminal that was closed): the run matters more."""

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


class _Held(io.TextIOBase):
    """Keeps what others print while the live view stands, the newest of it, until there is room again."""

    def __init__(self) -> None:
        self.pieces: deque[str] = deque(maxlen=10 * HELD)

    def write(self, text: str, /) -> int:
        self.pieces.append(text)
        return len(text)


class Terminal:
    """Says and shows. A context manager: the live view stands as long as the context lasts."""

    def __init__(self, status: RunStatus, quiet: bool) -> None:
        self._status = status
        self._quiet = quiet
        self._console = _Console(highlight=False, soft_wrap=True, file=output())
        self._live: ExitStack | None = None
        self._held: list[str] = []
        self._printed = _Held()
        self._next_frame = 0.0  # time.monotonic()
        self._last_line = 0.0  # time.monotonic()

    def __enter__(self) -> "Terminal":
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self._quiet:
            self._live = ExitStack()
            self._live.enter_context(self._console.screen())
            self._live.enter_context(held(self._printed))
            self.tick()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the live view away; what was said in the meantime is printed, and stays."""
        if self._live is None:
            return
        self._console.print(Control.clear(), Control.home(), sep="", end="")  # some terminals leave a part behind
        self._live.close()
        self._live = None
        if len(self._held) > HELD:
            self.say(f"({len(self._held) - HELD} earlier lines are in events.jsonl)")
        for line in self._held[-HELD:]:
            self.say(line)
        if self._printed.pieces:
            with suppress(OSError):  # a terminal that was closed
                errors().write("".join(self._printed.pieces))

    def say(self, text: str) -> None:
        """A line that stays. Some of it may be others' words."""
        text = printable(text)
        if self._live is not None:
            self._held.append(text)
        else:
            self._console.print(text, markup=False)

    def tell(self, happening: Happening) -> None:
        """A thing that happened; when quiet, only what is wrong."""
        if happening.event in ALARMS:
            self.say(f"warning: {happening.text}")
        elif not self._quiet:
            self.say(f"note: {happening.text}" if happening.event == "note" else happening.text)

    def show_iteration(self, row: dict[str, Any]) -> None:
        """The row of metrics that an iteration gave."""
        now = time.monotonic()
        total = self._status.total_steps
        if self._live is not None or self._quiet or (now - self._last_line < LINE_SECONDS and row["env_steps"] < total):
            return
        self._last_line = now
        left = self._status.seconds_left
        self.say(
            f"{row['env_steps']:>11,} / {total:,} env-steps"
            f"  {row['time/env_steps_per_second']:>7,.0f}/s"
            f"  return {number(row['rollout/episode_return_mean'], '.1f'):>8}"
            f"  length {number(row['rollout/episode_length_mean'], '.1f'):>6}"
            f"  KL {row['train/approx_kl']:.4f}"
            f"  {DASH if left is None else duration(left)} left"
        )

    def tick(self) -> None:
        """A moment has passed: a new picture may be due."""
        now = time.monotonic()
        if self._live is not None and now >= self._next_frame:
            self._next_frame = now + FRAME_SECONDS
            self._console.print(Control.home(), Screen(View(self._status)), sep="", end="", soft_wrap=False)
