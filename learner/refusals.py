"""Messages that the learner refused. All are counted, and a few are reported."""

import time
from collections import Counter
from collections.abc import Callable

AT_ONCE = 10  # So many refusals are told, however close together they come…
PER_SECOND = 2.0  # …and then so many each second.


class Quota:
    """A token bucket for what strangers can make the learner say."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = float(AT_ONCE)
        self._filled = clock()

    def take(self) -> bool:
        """Whether one more thing may be said now."""
        now = self._clock()
        self._tokens = min(AT_ONCE, self._tokens + PER_SECOND * (now - self._filled))
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Refusals:
    """Counts by reason, and one quota for the warnings and the answers to whoever was refused."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()  # By reason. A sender must not choose the keys.
        self._quota = Quota(clock)
        self._silent = 0  # Refusals since the last one reported.

    def note(self, reason: str, count: int = 1) -> str | None:
        """Count refusals; returns what to add to the warning about them, or None if nothing is to be said."""
        self.counts[reason] += count
        if not self._quota.take():
            self._silent += count
            return None
        silent, self._silent = self._silent, 0
        return f" (and {silent:,} more before it)" if silent else ""
