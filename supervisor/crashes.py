"""When a process that keeps ending is started again, and when no more."""

FIRST_BACKOFF, LAST_BACKOFF = 0.5, 30.0  # seconds before a process is started again
CRASHES_ALLOWED = 5  # in a row, without any progress


class Crashes:
    """Counts a process's crashes since it last made progress, and says how long to wait before the next start."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def next_backoff(self) -> float | None:
        """Seconds to wait after one more crash; None where it is one too many."""
        self.in_a_row += 1
        if self.in_a_row >= CRASHES_ALLOWED:
            return None
        return min(FIRST_BACKOFF * 2 ** (self.in_a_row - 1), LAST_BACKOFF)
