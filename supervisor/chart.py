"""A curve drawn with characters: numbers at both axes, and its whole range between them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.text import Text

from supervisor.status import Point
from supervisor.words import DASH, compact, short

LEAST_ROWS, LEAST_COLUMNS = 4, 12  # A smaller chart would show nothing.
LARGEST = 1e30  # A larger value is not drawn.
LABEL_COLUMNS = 10  # Least columns between two numbers of the horizontal axis.


@dataclass(frozen=True)
class Glyphs:
    """The characters of the view."""

    dots: str  # A cell of a curve, by the sum of the weights of its dots.
    weights: tuple[tuple[int, ...], ...]  # The weights of each column of dots in a cell, from the top.
    bar: str  # Full and empty.
    corners: str  # Corners of a box: top left, top right, low left, low right.
    edges: str  # Horizontal and vertical.
    tees: str  # Edges with a branch to the right and to the left.
    dash: str  # Stands for an unknown number.
    cut: str  # Ends a text that does not fit.


BRAILLE = " " + "".join(chr(0x2800 + dots) for dots in range(1, 256))
UNICODE = Glyphs(BRAILLE, ((1, 2, 4, 64), (8, 16, 32, 128)), "━─", "╭╮╰╯", "─│", "├┤", DASH, "…")
ASCII = Glyphs(" '.:", ((1, 2),), "#.", "++++", "-|", "++", "-", "~")


def chart(points: Sequence[Point], end: float, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    """The curve of `points` between 0 and `end` in `rows` lines; none where there is nothing to draw or no room."""
    if not points or rows < LEAST_ROWS:
        return []
    values = [value for _, value in points]
    heights = round_numbers(min(values), max(values), most=min(rows - 1, rows // 2 + 2))
    labels = [short(height) for height in heights]
    margin = max(map(len, labels), default=0)
    columns = width - margin - 2  # Those of the curve.
    if not heights or columns < LEAST_COLUMNS:
        return []
    across, down = len(glyphs.weights), len(glyphs.weights[0])  # Dots of a cell.
    wide, high = columns * across - 1, (rows - 1) * down - 1  # The last dot of each direction.

    def depth(value: float) -> float:
        return (heights[-1] - value) / (heights[-1] - heights[0]) * high

    cells = [[0] * columns for _ in range(rows - 1)]
    for x, (top, low) in _spans(
        [(steps / end * wide if end else 0.0, depth(value)) for steps, value in points]
    ).items():
        for y in range(round(top), round(low) + 1):
            cells[y // down][x // across] |= glyphs.weights[x % across][y % down]
    named = {round(depth(height)) // down: label for height, label in zip(heights, labels, strict=True)}
    lines = []
    for row, line in enumerate(cells):
        edge = glyphs.tees[1] if row in named else glyphs.edges[1]
        curve = Text("".join(glyphs.dots[dots] for dots in line))
        curve.highlight_regex(r"\S+", "cyan")  # Not the blanks: in a picture each run of dots then has its own place.
        lines.append(Text.assemble((f"{named.get(row, ''):>{margin}} {edge}", "dim"), curve))
    return [*lines, Text(f"{'':{margin}} {glyphs.corners[2]}{_lower_axis(end, columns, glyphs)}", style="dim")]


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers at equal distances, the first not above `low` and the last not below `high`.

    `most` is at least 3. There are none for values that are too large.
    """
    size = max(abs(low), abs(high))
    if not size < LARGEST:
        return []
    if high - low <= 1e-6 * size:
        margin = size / 10 or 1.0
        low, high = low - margin, high + margin
    exponent = math.floor(math.log10(high - low)) - 2
    while True:
        for factor in (1, 2, 5):
            step = factor * 10.0**exponent
            first, last = math.floor(low / step), math.ceil(high / step)
            if last - first < most:
                return [index * step for index in range(first, last + 1)]
        exponent += 1


def _spans(points: Sequence[Point]) -> dict[int, Point]:
    """The least and the greatest y of the line through `points`, for each column that the line crosses."""
    spans: dict[int, Point] = {}
    for (x0, y0), (x1, y1) in pairwise([points[0], *points]):
        slope = (y1 - y0) / (x1 - x0) if x1 > x0 else 0.0
        for x in range(round(x0), round(x1) + 1):
            left, right = max(x0, x - 0.5), min(x1, x + 0.5)
            ends = (y0 + slope * (left - x0), y0 + slope * (right - x0)) if x1 > x0 else (y0, y1)
            spans[x] = min(*ends, *spans.get(x, ends)), max(*ends, *spans.get(x, ends))
    return spans


def _lower_axis(end: float, columns: int, glyphs: Glyphs) -> str:
    """An axis from 0 to `end`, with both numbers and the round ones between them for which there is room."""
    axis = f"0 {glyphs.edges[0] * columns}"[:columns]
    now = f" {compact(round(end))}" if end else ""
    axis = axis[: columns - len(now)] + now
    for tick in round_numbers(0.0, end, most=max(4, columns // LABEL_COLUMNS)) if end else []:
        label = f" {short(tick)} "
        begin = round(tick / end * (columns - 1)) - len(label) // 2
        after = begin + len(label)
        if begin > 1 and after < columns - len(now) and not axis[begin - 1 : after].strip(glyphs.edges[0]):
            axis = axis[:begin] + label + axis[after:]
    return axis
