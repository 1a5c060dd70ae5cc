"""Where the learner's time goes."""

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

RECENT = 20  # The speed is taken over so many iterations.


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


class Pace:
    """How long the learning has taken, from the first grant to the last update, summed over restarts."""

    def __init__(self) -> None:
        self._before = 0.0  # seconds of learning before this process
        self._began: float | None = None
        self._updates: deque[float] = deque(maxlen=RECENT)

    def begin(self, now: float) -> None:
        """The first rollout was granted; only the first call counts."""
        if self._began is None:
            self._began = now

    def update(self, now: float) -> None:
        """An iteration is complete."""
        self._updates.append(now)

    @property
    def seconds(self) -> float:
        """Of learning so far."""
        done = self._began is not None and self._updates
        return self._before + (self._updates[-1] - self._began if done and self._began is not None else 0.0)

    @property
    def seconds_per_iteration(self) -> float:
        """Over the last iterations, of which there must have been one."""
        iterations, began = len(self._updates) - 1, self._updates[0]
        if iterations == 0 and self._began is not None:
            iterations, began = 1, self._began
        return max(self._updates[-1] - began, 1e-9) / iterations  # an environment may hold the clock of its process

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = state["seconds"]
