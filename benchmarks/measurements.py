"""Numbers from repeated runs: median and spread, the ratio of two medians, and targets."""

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Samples:
    """The results of the counted runs of one contender; at least one result."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Samples":
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def times(self, factor: float) -> "Samples":
        return Samples.of(factor * value for value in self.values)


@dataclass(frozen=True)
class Target:
    """A bound that a number should reach, or not exceed."""

    bound: float
    at_least: bool

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


def at_least(bound: float) -> Target:
    return Target(bound, at_least=True)


def at_most(bound: float) -> Target:
    return Target(bound, at_least=False)


@dataclass(frozen=True)
class Comparison:
    """A contender's median divided by a rival's median of the same unit."""

    rival: str
    ratio: float
    target: Target | None


@dataclass(frozen=True)
class Row:
    """The results of one contender in one case."""

    panel: str  # Part of the table and the plot; rows with the same panel share an axis.
    unit: str  # Unit of the panel's axis.
    case: str  # Place in the panel.
    contender: str
    samples: Samples
    target: Target | None = None  # Target of the median itself.
    comparisons: tuple[Comparison, ...] = ()

    def against(self, rival: "Row", target: Target | None = None) -> Comparison:
        """The comparison of this row with `rival`."""
        return Comparison(rival.contender, self.samples.median / rival.samples.median, target)


def interleave(contenders: Mapping[str, Callable[[int], T]], repeats: int, title: str) -> dict[str, list[T]]:
    """The results of each contender in `repeats` rounds of A B A B …, after a warm-up round that is not counted.

    Contenders take turns so that a machine that becomes slow or busy slows all of them. Each contender is called with
    the number of the round, which is 0 for the warm-up.
    """
    results: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(repeats + 1):
        told = f"round {number} of {repeats}" if number else "warm-up"
        print(f"{title}: {told} ({', '.join(contenders)})", file=sys.stderr)
        for name, run in contenders.items():
            result = run(number)
            if number:
                results[name].append(result)
    return results
