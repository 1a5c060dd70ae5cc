"""Counts what became of every environment step that reached the learner."""

from collections import Counter
from typing import Any


class SampleLedger:
    """In env-steps: produced (reached the learner) = trained + dropped (by reason) + in flight."""

    def __init__(self) -> None:
        self.produced = 0
        self.trained = 0
        self.in_flight = 0  # accepted and not trained on yet
        self.dropped: Counter[str] = Counter()

    def accept(self, steps: int) -> None:
        self.produced += steps
        self.in_flight += steps

    def drop(self, steps: int, reason: str) -> None:
        """Environment steps that arrived and were not accepted."""
        self.produced += steps
        self.dropped[reason] += steps

    def expire(self, steps: int, reason: str) -> None:
        """Environment steps that were accepted and will not be trained on."""
        self.in_flight -= steps
        self.dropped[reason] += steps

    def train(self, steps: int) -> None:
        self.in_flight -= steps
        self.trained += steps

    def end_run(self) -> None:
        """Nothing that is in flight will be trained on."""
        if self.in_flight:
            self.expire(self.in_flight, "end_of_run")

    def check(self, in_flight: int) -> None:
        """Raise `RuntimeError` unless the books balance, and `in_flight`, counted anew, is what they say."""
        if self.produced != self.trained + self.dropped.total() + self.in_flight or in_flight != self.in_flight:
            raise RuntimeError(f"the sample ledger does not balance: {self.as_dict()}, {in_flight} counted in flight")

    def as_dict(self) -> dict[str, Any]:
        return {
            "produced": self.produced,
            "trained": self.trained,
            "dropped": dict(sorted(self.dropped.items())),
            "in_flight": self.in_flight,
        }

    def settled(self) -> dict[str, Any]:
        """The ledger as a checkpoint keeps it: what is in flight will be produced again after a restart."""
        return self.as_dict() | {"produced": self.produced - self.in_flight, "in_flight": 0}

    def restore(self, saved: dict[str, Any]) -> None:
        self.produced, self.trained, self.in_flight = saved["produced"], saved["trained"], saved["in_flight"]
        self.dropped = Counter(saved["dropped"])
