"""Repeated runs as numbers: median and spread, the ratio of two medians, and the target for it."""

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Samples:
    """What the counted runs of one contender gave; at least one."""

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
    """What a number should reach, or stay below."""

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
    """A contender's median divided by a rival's, both of the same unit."""

    rival: str
    ratio: float
    target: Target | None


@dataclass(frozen=True)
class Row:
    """One contender in one case."""

    panel: str  # of the table and the plot: rows that share an axis
    unit: str  # of that axis
    case: str  # the place on it
    contender: str
    samples: Samples
    target: Target | None = None  # for the median itself
    comparisons: tuple[Comparison, ...] = ()

    def against(self, rival: "Row", target: Target | None = None) -> Comparison:
        """This row compared with another."""
        return Comparison(rival.contender, self.samples.median / rival.samples.median, target)


def interleave(contenders: Mapping[str, Callable[[int], T]], repeats: int, title: str) -> dict[str, list[T]]:
    """What each contender gives in `repeats` rounds of A B A B …, after a round that is not counted.

    Contenders take turns so that a machine that grows slow or busy does so for all of them. Each is called with the
    number of the round, which is 0 for the warm-up.
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
