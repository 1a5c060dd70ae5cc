"""The live view of a run: its status drawn as lines that fit a terminal of any size."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from rundir.episode_metrics import metrics_in, name_of, value_of
from supervisor.status import ActorStatus, Happening, RunStatus
from supervisor.words import DASH, compact, duration, ranges, size_in_words, states_of

NARROW, LOW = 60, 18  # With fewer columns or rows than these there is no room for boxes.
WIDE = 116  # Columns from which three boxes stand beside each other.
ACTOR_COLUMNS = 92  # Columns of each pile in the table of actors.
NUMBER_COLUMNS = (6, 7, 6, 7, 8, 7)  # The widths of an actor's numbers.
COLORS = {
    "starting": "yellow",
    "ready": "cyan",
    "working": "green",
    "idle": "dim",
    "lost": "bold red",
    "training": "bold green",
    "stopping": "bold yellow",
    "finished": "bold green",
    "stopped": "bold yellow",
    "failed": "bold red",
    "warning": "yellow",
    "actor_lost": "red",
    "actor_retired": "red",
    "learner_lost": "red",
    "actor_delivers": "green",
}


@dataclass(frozen=True)
class Glyphs:
    """The characters of lines and curves."""

    spark: str  # Bars from low to high.
    bar: str  # Full and empty.
    corners: str  # Corners of a box, clockwise from the top left.
    edges: str  # Horizontal and vertical.
    dash: str  # Stands for an unknown number.
    cut: str  # Ends a text that does not fit.


UNICODE = Glyphs("▁▂▃▄▅▆▇█", "━─", "╭╮╰╯", "─│", DASH, "…")
ASCII = Glyphs("_.-=+*#", "#.", "++++", "-|", "-", "~")


class View:
    """A renderable that shows the status at the time of drawing."""

    def __init__(self, status: RunStatus) -> None:
        self._status = status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or options.max_height
        yield from draw(self._status, options.max_width, height, ASCII if options.ascii_only else UNICODE)


def draw(status: RunStatus, width: int, height: int, glyphs: Glyphs = UNICODE) -> list[Text]:
    """At most `height` lines of at most `width` columns, with the most important parts of the status."""
    page = Page(status, width, glyphs)
    lines = page.plain(height) if width < NARROW or height < LOW else page.boxes(height)
    return [page.cut(line, width) for line in lines[:height]]


class Page:
    """Draws one state of a run at one width."""

    def __init__(self, status: RunStatus, width: int, glyphs: Glyphs) -> None:
        self._status = status
        self._width = width
        self._glyphs = glyphs

    def plain(self, height: int) -> list[Text]:
        """All parts below each other, without boxes, for a small terminal."""
        status, row = self._status, self._status.row
        shares = {name: self._number(share, ".0%") for name, share in status.shares.items()}
        lines = [
            self._ends(self._state(), Text(self._time_left())),
            self._progress_bar(self._width),
            Text(f"{status.env_steps:,} of {status.total_steps:,} env-steps"),
            self._labelled("return", self._return_mean()),
            *self._episode_metrics()[:1],
            *self._sparkline(self._width, 1),
            Text(f"{self._number(row.get('time/env_steps_per_second'), ',.0f')} env-steps/s"),
            Text(self._actors_in_words()),
            Text(status.title, style="bold"),
            Text(f"acting {shares['acting']}, waiting {shares['waiting']}"),
            Text(f"learning {shares['learning']}, sending {shares['sending']}"),
            Text(f"policy lag {self._number(row.get('policy/lag_mean'), '.1f')}, memory {self._total_memory()}"),
        ]
        lines = lines[: max(1, height - 2)] if height > 4 else lines
        room = height - len(lines)
        troubled = [a for a in status.actors if a.state in ("starting", "lost")][: max(0, room - 3)]
        lines += [
            self._ends(
                Text(f"actor {self._middle_cut(actor.name, 16)}"),
                Text(f"{actor.state} {actor.seconds_silent:.0f} s", style=COLORS[actor.state]),
            )
            for actor in troubled
        ]
        return lines + self._happenings(height - len(lines), with_time=False)

    def boxes(self, height: int) -> list[Text]:
        """Figures side by side, then the actors, then the last events."""
        wide, tall = self._width >= WIDE, height >= 38
        rows = 10 if tall else 6 if height >= 22 else 4
        figures = [self._progress_box, self._time_box, self._learning_box][: 3 if wide else 2]
        width, rest = divmod(self._width, len(figures))
        lines = [self._ends(Text(self._status.title, style="bold"), self._state()), self._progress_bar(self._width)]
        lines += _beside([box(width + (i < rest), rows) for i, box in enumerate(figures)])
        if not wide and height >= 32:
            lines += self._learning_box(self._width, 3)
        room = height - len(lines) - 4  # Lines left for two more boxes.
        happened = 3 if room >= 8 else 1
        piles = max(1, self._width // ACTOR_COLUMNS)
        wanted = 1 + max(1, -(-len(self._status.actors) // piles))
        actors = max(2, min(wanted, room - happened))
        lines += self._box(f"actors: {self._actors_in_words()}", self._actors(actors, piles), self._width, actors)
        happened = room - actors
        return lines + self._box("what happened", self._happenings(happened), self._width, happened)

    def cut(self, text: Text, width: int) -> Text:
        """`text` in at most `width` columns."""
        if text.cell_len <= width:
            return text
        text = text.copy()
        text.truncate(max(0, width - 1), overflow="crop")
        return text.append(self._glyphs.cut) if width > 0 else text

    def _progress_box(self, width: int, rows: int) -> list[Text]:
        row, inner = self._status.row, width - 4
        values = self._status.returns.values(inner)
        span = f"{min(values):.4g} to {max(values):.4g}" if values else ""
        lag = self._number(row.get("policy/lag_mean"), ".1f")
        speed = self._number(row.get("time/env_steps_per_second"), ",.0f")
        length = self._number(row.get("rollout/episode_length_mean"), ".1f")
        below = [
            self._labelled("episode length", length, inner),
            self._labelled("env-steps/s", speed, inner),
            self._labelled("policy lag", lag, inner),
        ][: 3 if rows >= 6 else 2]
        below = [*self._episode_metrics(inner)[: 4 if rows >= 10 else 1 if rows >= 6 else 0], *below]
        first = self._labelled("return", self._return_mean())
        if cell_len(first.plain) + len(span) + 2 <= inner:
            first = self._ends(first, Text(span, style="dim"), inner)
        return self._box("progress", [first, *self._sparkline(inner, rows - 1 - len(below)), *below], width, rows)

    def _time_box(self, width: int, rows: int) -> list[Text]:
        inner = width - 4
        lines = []
        for name, share in self._status.shares.items():
            whose = {"acting": "actors", "waiting": "learner"}.get(name, "")
            line = Text.assemble((f"{whose:8}", "dim"), f"{name:9}")
            number = self._number(share, ".1%" if share is not None and share < 0.0995 else ".0%")
            line.append_text(self._bar(share or 0.0, max(4, inner - 23))).append(f"{number:>6}")
            lines.append(line)
        memory, actors = self._status.memory, [a.memory for a in self._status.actors if a.memory is not None]
        if rows >= 6:
            lines.append(self._labelled("memory", self._total_memory(), inner))
            parts = [f"{name} {size_in_words(size, '')}" for name, size in memory.items() if size is not None]
            parts += [f"actor {size_in_words(sum(actors) // len(actors), '')}"] if actors else []
            lines.append(self._ends(Text(), Text(", ".join(parts), style="dim"), inner))
        return self._box("where the time goes", lines, width, rows)

    def _learning_box(self, width: int, rows: int) -> list[Text]:
        row = self._status.row
        figures = [
            ("policy loss", self._number(row.get("train/policy_loss"), ".4f")),
            ("value loss", self._number(row.get("train/value_loss"), ".4g")),
            ("entropy", self._number(row.get("train/entropy"), ".3f")),
            ("approx. KL", self._number(row.get("train/approx_kl"), ".4f")),
            ("clip fraction", self._number(row.get("train/clip_fraction"), ".3f")),
            ("explained variance", self._number(row.get("train/explained_variance"), ".3f")),
            ("learning rate", self._number(row.get("train/learning_rate"), ".3g")),
            ("version", self._number(row.get("policy_version"), ",")),
            ("checkpoint of version", self._number(self._status.checkpoint, ",")),
            ("restarts of the learner", str(self._status.learner_restarts)),
        ]
        piles = 1 if rows >= 4 else 2
        inner = (width - 4 - 4 * (piles - 1)) // piles
        lines = [self._labelled(name, number, inner) for name, number in figures[: rows * piles]]
        if piles == 2:
            lines = [Text.assemble(left, "    ", right) for left, right in zip(lines[::2], lines[1::2], strict=True)]
        return self._box("learning", lines, width, rows)

    def _actors(self, rows: int, piles: int) -> list[Text]:
        """A head line and a line for each actor. If not all fit, actors in trouble come first."""
        actors, room = self._status.actors, (rows - 1) * piles
        if not actors:
            return [Text("none has joined yet", style="dim")]
        rest: list[ActorStatus] = []
        if len(actors) > room:
            actors = sorted(actors, key=lambda actor: actor.state == "working")
            actors, rest = actors[: room - 1], actors[room - 1 :]
        inner = self._width - 4
        width = (inner - 4 * (piles - 1)) // piles
        cells = [self._actor(actor, width) for actor in actors]
        if rest:
            states = {actor.state for actor in rest}
            words = f"all {states.pop()}" if len(states) == 1 else states_of(rest)
            cells.append(self._padded(Text(f"and {len(rest)} more: {words}", style="dim"), width))
        numbers = ("steps", "steps/s", "acting", "memory", "restarts", "silent")
        head = self._actor_cells("actor", Text("state"), "lanes", numbers, width)
        head.stylize("dim")
        deep = -(-len(cells) // piles)
        lines = [Text("    ").join([head] * min(piles, -(-len(cells) // deep)))]
        for i in range(deep):
            lines.append(Text("    ").join(cells[i::deep]))
        return lines

    def _actor(self, actor: ActorStatus, width: int) -> Text:
        silent = actor.seconds_silent
        numbers = (
            compact(actor.env_steps),
            self._number(actor.env_steps_per_second, ",.0f"),
            self._number(actor.acting, ".0%"),
            self._number(actor.memory, "bytes"),
            str(actor.restarts),
            f"{silent:.1f} s" if silent < 9.95 else duration(silent),
        )
        state = Text(actor.state, style=COLORS[actor.state])
        return self._actor_cells(actor.name, state, ranges(actor.lanes) or self._glyphs.dash, numbers, width)

    def _actor_cells(self, name: str, state: Text, lanes: str, numbers: Sequence[str], width: int) -> Text:
        tail = "".join(f" {number:>{columns}}" for number, columns in zip(numbers, NUMBER_COLUMNS, strict=True))
        room = width - len(tail) - 9  # Columns left for name and lanes.
        lanes_width = min(room // 2, 16)
        name = self._middle_cut(name, room - lanes_width - 1)
        line = Text(set_cell_size(name, room - lanes_width))
        line.append_text(self._padded(state, 9)).append(set_cell_size(lanes, lanes_width)).append(tail)
        return self.cut(line, width)

    def _happenings(self, rows: int, with_time: bool = True) -> list[Text]:
        """The last events, the newest at the bottom."""
        if rows <= 0:
            return []
        happenings: Sequence[Happening] = list(self._status.happenings)[-rows:]
        lines = []
        for happening in happenings:
            when = time.strftime("%H:%M:%S  ", time.localtime(happening.time)) if with_time else ""
            lines.append(Text.assemble((when, "dim"), (happening.text, COLORS.get(happening.event, "none"))))
        return lines

    def _progress_bar(self, width: int) -> Text:
        status = self._status
        done = min(1.0, status.env_steps / status.total_steps) if status.total_steps else 0.0
        after = f" {done:>4.0%}"
        if width >= NARROW:
            after += f"  {status.env_steps:,} of {status.total_steps:,}  {self._time_left()}"
        return self._bar(done, max(1, width - len(after))).append(after)

    def _time_left(self) -> str:
        seconds = self._status.seconds_left
        return f"{self._glyphs.dash if seconds is None else duration(seconds)} left"

    def _state(self) -> Text:
        return Text(self._status.state, style=COLORS[self._status.state])

    def _return_mean(self) -> str:
        return self._number(self._status.row.get("rollout/episode_return_mean"), ".2f")

    def _episode_metrics(self, width: int = 0) -> list[Text]:
        metrics = metrics_in(self._status.row)
        return [self._labelled(name_of(name), value_of(name, value), width) for name, value in metrics.items()]

    def _total_memory(self) -> str:
        sizes = [*self._status.memory.values(), *(actor.memory for actor in self._status.actors)]
        known = [size for size in sizes if size is not None]
        return self._number(sum(known) if known else None, "bytes")

    def _actors_in_words(self) -> str:
        actors = self._status.actors
        return states_of(actors) if actors else "none yet"

    def _sparkline(self, width: int, rows: int) -> list[Text]:
        """The curve of the return in `rows` rows."""
        values, levels = self._status.returns.values(max(1, width)), len(self._glyphs.spark)
        if not values:
            return [Text()] * rows
        low, high = min(values), max(values)
        steps = rows * levels - 1
        heights = [round((value - low) / (high - low) * steps) if high > low else steps // 2 for value in values]
        lines = []
        for row in reversed(range(rows)):
            filled = [min(height - row * levels, levels - 1) for height in heights]
            lines.append(Text("".join(self._glyphs.spark[f] if f >= 0 else " " for f in filled), style="cyan"))
        return lines

    def _bar(self, share: float, width: int) -> Text:
        full = round(max(0.0, min(1.0, share)) * width)
        return Text.assemble((self._glyphs.bar[0] * full, "cyan"), (self._glyphs.bar[1] * (width - full), "dim"))

    def _box(self, title: str, lines: list[Text], width: int, rows: int) -> list[Text]:
        """A box around exactly `rows` rows."""
        horizontal, vertical = self._glyphs.edges
        top_left, top_right, low_left, low_right = self._glyphs.corners
        title = f" {self.cut(Text(title), width - 6).plain} "
        top = f"{top_left}{horizontal}"
        lines = [*lines[:rows], *[Text()] * (rows - len(lines))]
        edge = (f"{vertical}", "dim")
        return [
            Text.assemble(
                (top, "dim"), (title, "bold"), (horizontal * (width - 3 - cell_len(title)) + top_right, "dim")
            ),
            *(Text.assemble(edge, " ", self._padded(line, width - 4), " ", edge) for line in lines),
            Text(low_left + horizontal * (width - 2) + low_right, style="dim"),
        ]

    def _labelled(self, name: str, value: str, width: int = 0) -> Text:
        """A name and its value, at the two ends of `width` columns; side by side if `width` is 0."""
        label, number = Text(f"{name} ", style="dim"), Text(value)
        return self._ends(label, number, width) if width else label.append_text(number)

    def _ends(self, left: Text, right: Text, width: int | None = None) -> Text:
        """`left` and `right` at the two ends of a line. `left` is cut if it must be."""
        width = width or self._width
        right = self.cut(right, width)
        left = self.cut(left, max(0, width - right.cell_len - 1))
        return Text.assemble(left, " " * (width - left.cell_len - right.cell_len), right)

    def _padded(self, line: Text, width: int) -> Text:
        line = self.cut(line, width)
        return Text.assemble(line, " " * (width - line.cell_len))

    def _middle_cut(self, name: str, width: int) -> str:
        """A name, cut in the middle to `width` columns: beginning and end tell it from other names."""
        if len(name) <= width:
            return name
        half = (width - 1) // 2
        return name[: width - 1 - half] + self._glyphs.cut + name[len(name) - half :]

    def _number(self, value: float | None, form: str) -> str:
        if value is None:
            return self._glyphs.dash
        return size_in_words(int(value)) if form == "bytes" else format(value, form)


def _beside(boxes: list[list[Text]]) -> list[Text]:
    return [Text.assemble(*parts) for parts in zip(*boxes, strict=True)]
