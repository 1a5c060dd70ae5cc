"""Numbers and lists in few words, for people."""

from collections import Counter
from collections.abc import Sequence

from supervisor.status import ActorStatus

DASH = "–"  # Stands for an unknown value.


def states_of(actors: Sequence[ActorStatus]) -> str:
    states = Counter(actor.state for actor in actors)
    return ", ".join(f"{count} {state}" for state, count in states.most_common())


def ranges(numbers: list[int]) -> str:
    """Sorted numbers in few words: 0-3,7."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1] = spans[-1][0], number
        else:
            spans.append((number, number))
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def compact(number: int) -> str:
    for limit, size, form in ((1e9, 1e9, ".1fG"), (1e6, 1e6, ".1fM"), (1e4, 1e3, ".0fk")):
        if number >= limit:
            return format(number / size, form[:-1]) + form[-1]
    return str(number)


def short(number: float) -> str:
    """A round number with all its digits: 0.25, -1500, 12.5k, 2M."""
    for limit, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(number) >= limit:
            return f"{number / size:.12g}{unit}"
    return f"{number:.12g}"


def size_in_words(size: int, unit: str = "B") -> str:
    space = " " if unit else ""
    return f"{size / 2**30:.2f}{space}G{unit}" if size >= 2**30 else f"{size / 2**20:.0f}{space}M{unit}"


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def number(value: float | None, form: str) -> str:
    """`value` as text, or a dash while it is unknown."""
    return DASH if value is None else format(value, form)
