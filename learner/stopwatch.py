"""Where the learner's time goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Sums seconds up by what they were spent on."""

    def __init__(self) -> None:
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._began = time.monotonic()

    @contextmanager
    def on(self, purpose: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent[purpose] += time.monotonic() - began

    def take_shares(self, *purposes: str) -> list[float]:
        """The share of each purpose in the time since this was called last."""
        now = time.monotonic()
        seconds = now - self._began
        shares = [self._spent[purpose] / seconds if seconds > 0 else 0.0 for purpose in purposes]
        self._spent.clear()
        self._began = now
        return shares
