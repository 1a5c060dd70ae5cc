"""Says why a process ended, and when a process that keeps crashing is started again."""

import signal

# Seconds until the start after a second crash, and the longest wait after later crashes.
BACKOFF, LAST_BACKOFF = 0.5, 30.0
CRASHES_ALLOWED = 5  # Crashes in a row, without progress, after which a process is given up.


class Crashes:
    """Counts a process's crashes since it last made progress, and says how long to wait before the next start."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def next_backoff(self) -> float | None:
        """Count one more crash. Returns the seconds to wait, 0 after the first crash, or None to give up."""
        self.in_a_row += 1
        if self.in_a_row >= CRASHES_ALLOWED:
            return None
        return 0.0 if self.in_a_row == 1 else min(BACKOFF * 2 ** (self.in_a_row - 2), LAST_BACKOFF)


def when(backoff: float) -> str:
    """The seconds to wait, in words."""
    return f"in {backoff:.1f} s" if backoff else "at once"


def killed_by(code: int) -> str:
    """The name of the signal that ended a process, from its negative exit code."""
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # The signal is a real-time signal.
        return f"killed by signal {-code}"


def end_of(code: int, last_line: str) -> str:
    """How a process ended, in words. `last_line` is the last line that it printed, which is left out after a kill."""
    if code < 0:
        return f"was {killed_by(code)}"
    return f"ended with exit code {code}" + (f": {last_line}" if last_line else "")
