"""Why processes end, and when one that keeps ending is started again."""

import signal

# A process that has crashed twice is started again after so many seconds, later after more.
BACKOFF, LAST_BACKOFF = 0.5, 30.0
CRASHES_ALLOWED = 5  # A process that has crashed so often in a row, without progress, is given up.


class Crashes:
    """Counts a process's crashes since it last made progress, and says how long to wait before the next start."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def next_backoff(self) -> float | None:
        """Seconds to wait after one more crash, none after the first; None where it is one too many."""
        self.in_a_row += 1
        if self.in_a_row >= CRASHES_ALLOWED:
            return None
        return 0.0 if self.in_a_row == 1 else min(BACKOFF * 2 ** (self.in_a_row - 2), LAST_BACKOFF)


def when(backoff: float) -> str:
    """A word for people."""
    return f"in {backoff:.1f} s" if backoff else "at once"


def killed_by(code: int) -> str:
    """The name of the signal that ended a process, from its negative exit code."""
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-code}"


def end_of(code: int, last_line: str) -> str:
    """What ended a process, for people: `last_line` is the last that it said, and no news of one that was killed."""
    if code < 0:
        return f"was {killed_by(code)}"
    return f"ended with exit code {code}" + (f": {last_line}" if last_line else "")
