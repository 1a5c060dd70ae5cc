"""The live view of a run: its status drawn as lines that fit a terminal of any size."""

import textwrap
import time
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from rundir.episode_metrics import metrics_in, name_of, value_of
from supervisor.chart import ASCII, LEAST_ROWS, UNICODE, Glyphs, chart
from supervisor.status import ROUTINE, ActorStatus, Happening, RunStatus
from supervisor.words import compact, duration, ranges, size_in_words, states_of

NARROW, LOW = 60, 18  # With fewer columns or rows than these there is no room for boxes.
FIGURES = 40  # Most columns of the box with figures.
ACTOR_COLUMNS = 92  # Columns of each pile in the table of actors.
LEAST_BAR = 10  # Columns.
LEAST_WIDTH = 20  # Columns from which events are shown.
STATE_COLUMNS = 9
NUMBERS = {"steps": 6, "steps/s": 7, "acting": 6, "memory": 7, "restarts": 8, "silent": 7}  # Columns of an actor's.
LESS = ("memory", "acting", "restarts")  # Numbers that go first where not all fit.
MINOR = ("actor_joined", "actor_restarted")  # Events that say less than those before and after them.
COLORS = {
    "starting": "yellow",
    "ready": "cyan",
    "working": "green",
    "idle": "dim",
    "lost": "bold red",
    "ended": "dim",
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
        status, row, width = self._status, self._status.row, self._width
        shares = {name: self._number(share, ".0%") for name, share in status.shares.items()}
        steps, total = status.env_steps, status.total_steps
        speed = self._number(row.get("time/env_steps_per_second"), ",.0f")
        lag = f"policy lag {self._number(row.get('policy/lag_mean'), '.1f')}"
        returns = self._return_mean()
        facts = [
            self._ends(self._state(), self._time_left(), width),
            self._progress_bar(width),
            self._first(width, f"{steps:,} of {total:,} env-steps", f"{compact(steps)} of {compact(total)}"),
            self._first(width, f"return {returns}", returns),
            *self._episode_metrics(width, apart=False)[:1],
            self._first(width, f"{speed} env-steps/s", f"{speed}/s"),
            self._items(self._actors_in_words(), width),
            self._title(width),
            self._items(f"acting {shares['acting']}, waiting {shares['waiting']}", width),
            self._items(f"learning {shares['learning']}, sending {shares['sending']}", width),
            self._items(f"{lag}, memory {self._total_memory()}", width),
        ]
        facts = [fact for fact in facts if fact.plain][: max(1, height - 2) if height > 4 else height]
        room = height - len(facts)
        troubled = [a for a in status.actors if a.state in ("starting", "lost")][: max(0, room - 3)]
        for actor in troubled:
            silent = Text(f"{actor.state} {actor.seconds_silent:.0f} s", style=COLORS[actor.state])
            facts.append(self._ends(Text(f"actor {self._middle_cut(actor.name, 16)}"), silent, width))
        room = height - len(facts)
        happenings = self._happenings(room if room < LEAST_ROWS + 2 else max(2, room // 3), width)
        return [*facts, *self._chart(width, room - len(happenings)), *happenings]

    def boxes(self, height: int) -> list[Text]:
        """The curve beside the figures, then the actors, then the last events. The curve gets the spare rows."""
        happened = height // 8
        piles = max(1, self._width // ACTOR_COLUMNS)
        wanted = 1 + max(1, -(-len(self._status.actors) // piles))
        actors = max(2, min(wanted, height - 6 - happened - 2 * height // 5))
        rows = height - 8 - happened - actors
        figures = min(FIGURES, self._width // 2)
        curve = self._width - figures
        lines = self._chart(curve - 4, rows)
        if not self._status.returns.points():
            lines = [Text("no episode has ended yet", style="dim")]
        who = self._items(f"actors: {self._actors_in_words()}", self._width - 6).plain
        return [
            self._ends(self._title(self._width - len(self._status.state) - 1), self._state(), self._width),
            self._progress_bar(self._width),
            *_beside([self._box("return over env-steps", lines, curve, rows), self._figures(figures, rows)]),
            *self._box(who, self._actors(actors, piles), self._width, actors),
            *self._box("what happened", self._happenings(happened, self._width - 4, True), self._width, happened),
        ]

    def cut(self, text: Text, width: int) -> Text:
        """`text` in at most `width` columns."""
        if text.cell_len <= width:
            return text
        text = text.copy()
        text.truncate(max(0, width - 1), overflow="crop")
        return text.append(self._glyphs.cut) if width > 0 else text

    def _figures(self, width: int, rows: int) -> list[Text]:
        """A box with figures in groups. The first ones of each group are the most important ones."""
        inner = width - 4
        progress, shares, learning = self._progress(inner), self._shares(inner), self._learning(inner)
        shares = shares[: max(4, rows - 5)]
        progress = progress[: rows - len(shares) - 1]
        room = rows - len(progress) - len(shares) - 2
        groups = {"progress": progress, "where the time goes": shares, "learning": learning[: max(0, room)]}
        (title, lines), *others = [(name, group) for name, group in groups.items() if group]
        box = self._box(title, lines, width, rows)
        row = len(lines) + 1
        for name, group in others:
            box[row : row + 1 + len(group)] = self._box(name, group, width, len(group), self._glyphs.tees)[:-1]
            row += 1 + len(group)
        return box

    def _progress(self, width: int) -> list[Text]:
        row, metrics = self._status.row, self._episode_metrics(width)
        return [
            self._labelled("return", self._return_mean(), width),
            *metrics[:1],
            self._labelled("env-steps/s", self._number(row.get("time/env_steps_per_second"), ",.0f"), width),
            self._labelled("episode length", self._number(row.get("rollout/episode_length_mean"), ",.1f"), width),
            self._labelled("policy lag", self._number(row.get("policy/lag_mean"), ".1f"), width),
            *metrics[1:4],
        ]

    def _shares(self, width: int) -> list[Text]:
        lines = []
        for name, share in self._status.shares.items():
            owner = {"acting": "actors", "waiting": "learner"}.get(name, "")
            whose = f"{owner:8}" if width >= 32 else ""
            number = self._number(share, ".1%" if share is not None and share < 0.0995 else ".0%")
            bar = self._bar(share or 0.0, width - len(whose) - 15)
            lines.append(Text.assemble((whose, "dim"), f"{name:9}", bar, f"{number:>6}"))
        memory, actors = self._status.memory, [a.memory for a in self._status.actors if a.memory is not None]
        parts = [f"{name} {size_in_words(size, '')}" for name, size in memory.items() if size is not None]
        parts += [f"actor {size_in_words(sum(actors) // len(actors), '')}"] if actors else []
        each = self._items(", ".join(parts), width)
        each.stylize("dim")
        return [*lines, self._labelled("memory", self._total_memory(), width), self._ends(Text(), each, width)]

    def _learning(self, width: int) -> list[Text]:
        row = self._status.row
        figures = {
            "policy loss": self._number(row.get("train/policy_loss"), ".4f"),
            "value loss": self._number(row.get("train/value_loss"), ".4g"),
            "entropy": self._number(row.get("train/entropy"), ".3f"),
            "approx. KL": self._number(row.get("train/approx_kl"), ".4f"),
            "clip fraction": self._number(row.get("train/clip_fraction"), ".3f"),
            "explained variance": self._number(row.get("train/explained_variance"), ".3f"),
            "learning rate": self._number(row.get("train/learning_rate"), ".3g"),
            "version": self._number(row.get("policy_version"), ","),
            "checkpoint": self._number(self._status.checkpoint, ","),
            "learner restarts": str(self._status.learner_restarts),
        }
        return [self._labelled(name, number, width) for name, number in figures.items()]

    def _chart(self, width: int, rows: int) -> list[Text]:
        """The curve of the return, from the beginning of the run until now."""
        points = self._status.returns.points()
        end = max(self._status.env_steps, points[-1][0]) if points else 0
        return chart(points, end, width, rows, self._glyphs)

    def _actors(self, rows: int, piles: int) -> list[Text]:
        """A head line and a line for each actor. If not all fit, actors in trouble come first."""
        actors, room = self._status.actors, (rows - 1) * piles
        if not actors:
            return [Text("none has joined yet", style="dim")]
        rest: list[ActorStatus] = []
        if len(actors) > room:
            actors = sorted(actors, key=lambda actor: actor.state == "working")
            actors, rest = (actors[: room - 1], actors[room - 1 :]) if room > 1 else (actors[:1], [])
        inner = self._width - 4
        width = (inner - 4 * (piles - 1)) // piles
        cells = [self._actor(actor, width) for actor in actors]
        if rest:
            states = {actor.state for actor in rest}
            words = f"all {states.pop()}" if len(states) == 1 else states_of(rest)
            more = self._first(width, f"and {len(rest)} more: {words}", f"and {len(rest)} more")
            more.stylize("dim")
            cells.append(self._padded(more, width))
        head = self._actor_cells("actor", Text("state"), ["lanes"], dict(zip(NUMBERS, NUMBERS, strict=True)), width)
        head.stylize("dim")
        deep = -(-len(cells) // piles)
        lines = [Text("    ").join([head] * min(piles, -(-len(cells) // deep)))]
        for i in range(deep):
            lines.append(Text("    ").join(cells[i::deep]))
        return lines

    def _actor(self, actor: ActorStatus, width: int) -> Text:
        silent, speed = actor.seconds_silent, actor.env_steps_per_second
        numbers = {
            "steps": compact(actor.env_steps),
            "steps/s": self._number(speed, ",.0f") if speed is None or speed < 1e6 else compact(round(speed)),
            "acting": self._number(actor.acting, ".0%"),
            "memory": self._number(actor.memory, "bytes"),
            "restarts": str(actor.restarts),
            "silent": f"{silent:.1f} s" if silent < 9.95 else duration(silent),
        }
        state, lanes = Text(actor.state, style=COLORS[actor.state]), len(actor.lanes)
        forms = [ranges(actor.lanes), f"{lanes} lanes", str(lanes)] if lanes else [self._glyphs.dash]
        return self._actor_cells(actor.name, state, forms, numbers, width)

    def _actor_cells(self, name: str, state: Text, lanes: Sequence[str], numbers: dict[str, str], width: int) -> Text:
        """A row of the table; `lanes` are forms of that cell."""
        columns = dict(NUMBERS)
        for less in LESS:
            if width - sum(columns.values()) - len(columns) - STATE_COLUMNS < 18:
                del columns[less]
        tail = Text.assemble(*(f" {self._first(size, numbers[name]).plain:>{size}}" for name, size in columns.items()))
        room = width - len(tail) - STATE_COLUMNS  # Columns left for name and lanes.
        lanes_width = min(room // 2, 16)
        name = self._middle_cut(name, room - lanes_width - 1)
        line = Text(set_cell_size(name, room - lanes_width))
        line.append_text(self._padded(state, STATE_COLUMNS))
        return line.append_text(self._padded(self._first(lanes_width, *lanes), lanes_width)).append_text(tail)

    def _happenings(self, rows: int, width: int, with_time: bool = False) -> list[Text]:
        """The last events, the newest at the bottom. Where not all fit, those that say least are left out first."""
        happenings = list(self._status.happenings) if width >= LEAST_WIDTH else []
        newest = {happening.event: happening for happening in happenings}

        def minor(index: int) -> bool:
            event = happenings[index].event
            return event in MINOR or (event in ROUTINE and newest[event] is not happenings[index])

        shown: dict[int, list[Text]] = {}
        for index in sorted(range(len(happenings)), key=lambda index: (minor(index), -index)):
            if rows <= 0:
                break
            shown[index] = self._happening(happenings[index], width, rows, with_time)
            rows -= len(shown[index])
        return [line for index in sorted(shown) for line in shown[index]]

    def _happening(self, happening: Happening, width: int, rows: int, with_time: bool) -> list[Text]:
        """An event in a line, or wrapped in at most `rows` lines. What does not fit is left out from the end."""
        when = time.strftime("%H:%M:%S  ", time.localtime(happening.time)) if with_time else ""
        width -= len(when)
        text = happening.text if cell_len(happening.text) <= width else happening.brief or happening.text
        clauses = text.split("; ")
        while len(clauses) > 1 and len(textwrap.wrap("; ".join(clauses), width)) > rows:
            clauses.pop()
        lines = textwrap.wrap("; ".join(clauses), width, max_lines=rows, placeholder=f" {self._glyphs.cut}")
        style = COLORS.get(happening.event, "none")
        return [
            Text.assemble((when if i == 0 else " " * len(when), "dim"), (line, style)) for i, line in enumerate(lines)
        ]

    def _progress_bar(self, width: int) -> Text:
        status = self._status
        done = min(1.0, status.env_steps / status.total_steps) if status.total_steps else 0.0
        share, left = f" {done:>4.0%}", self._time_left().plain
        forms = [f"{share}  {status.env_steps:,} of {status.total_steps:,}  {left}", f"{share}  {left}"]
        after = self._first(width - LEAST_BAR, *(forms if width >= NARROW else []), share)
        return self._bar(done, width - after.cell_len).append_text(after)

    def _time_left(self) -> Text:
        seconds = self._status.seconds_left
        return Text(f"{self._glyphs.dash if seconds is None else duration(seconds)} left")

    def _state(self) -> Text:
        return Text(self._status.state, style=COLORS[self._status.state])

    def _title(self, width: int) -> Text:
        """As many items of the title as fit, or else a part of the first one, which has the environment's name."""
        title = self._items(self._status.title, width) or self.cut(Text(self._status.title), width)
        title.stylize("bold")
        return title

    def _return_mean(self) -> str:
        mean = self._status.row.get("rollout/episode_return_mean")
        return self._number(mean, ".2f" if mean is None or abs(mean) < 1e9 else ".6g")

    def _episode_metrics(self, width: int, apart: bool = True) -> list[Text]:
        metrics = metrics_in(self._status.row)
        return [self._labelled(name_of(name), value_of(name, value), width, apart) for name, value in metrics.items()]

    def _total_memory(self) -> str:
        sizes = [*self._status.memory.values(), *(actor.memory for actor in self._status.actors)]
        known = [size for size in sizes if size is not None]
        return self._number(sum(known) if known else None, "bytes")

    def _actors_in_words(self) -> str:
        actors = self._status.actors
        return states_of(actors) if actors else "none yet"

    def _bar(self, share: float, width: int) -> Text:
        full = round(max(0.0, min(1.0, share)) * width)
        return Text.assemble((self._glyphs.bar[0] * full, "cyan"), (self._glyphs.bar[1] * (width - full), "dim"))

    def _box(self, title: str, lines: list[Text], width: int, rows: int, top: str = "") -> list[Text]:
        """A box around exactly `rows` rows; `top` are the ends of its upper edge."""
        horizontal, vertical = self._glyphs.edges
        left, right = top or self._glyphs.corners[:2]
        low_left, low_right = self._glyphs.corners[2:]
        title = f" {title} "
        lines = [*lines[:rows], *[Text()] * (rows - len(lines))]
        edge = (f"{vertical}", "dim")
        return [
            Text.assemble(
                (left + horizontal, "dim"),
                (title, "bold"),
                (horizontal * (width - 3 - cell_len(title)) + right, "dim"),
            ),
            *(Text.assemble(edge, " ", self._padded(line, width - 4), " ", edge) for line in lines),
            Text(low_left + horizontal * (width - 2) + low_right, style="dim"),
        ]

    def _first(self, width: int, *forms: str) -> Text:
        """The first of some forms of a text that fits `width` columns; nothing if none does."""
        return Text(next((form for form in forms if cell_len(form) <= width), ""))

    def _items(self, text: str, width: int) -> Text:
        """As many items of an enumeration as fit."""
        items = text.split(", ")
        return self._first(width, *(", ".join(items[:count]) for count in range(len(items), 0, -1)))

    def _labelled(self, name: str, value: str, width: int, apart: bool = True) -> Text:
        """A name and its value, at the two ends of `width` columns or else side by side. A name may be cut."""
        label = self.cut(Text(name, style="dim"), max(0, width - cell_len(value) - 1))
        return self._ends(label, Text(value), width if apart else label.cell_len + 1 + cell_len(value))

    def _ends(self, left: Text, right: Text, width: int) -> Text:
        """`left` and `right` at the two ends of a line; one of them alone if there is no room for both."""
        if right.cell_len > width:
            right = Text()
        if left.plain and left.cell_len + bool(right.plain) + right.cell_len > width:
            left, right = (left, Text()) if left.cell_len <= width else (Text(), right)
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
