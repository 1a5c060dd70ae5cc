"""Shows many runs: a live table in a terminal, lines anywhere else."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

from rich.live import Live
from rich.table import Table
from rich.text import Text

from multirun.jobs import Ending
from multirun.progress import Progress
from protocol.text import printable
from supervisor.terminal import SafeConsole
from supervisor.words import DASH, duration, number

LINE_SECONDS = 10.0  # Seconds between two lines where there is no terminal.
BAR = 12  # columns
COLUMNS = ("run", "state", "done", "env-steps", "steps/s", "return", "left")
NEEDED, NARROW = ("run", "state", "done", "return"), 80  # those columns alone, below so many columns of the terminal
OVER = ("finished", "stopped", "failed")
COLORS = {"finished": "green", "failed": "red", "stopped": "yellow", "training": "cyan"}


class View:
    """A context manager: the table is shown as long as the context lasts."""

    def __init__(
        self, title: str, runs: Sequence[Progress], quiet: bool = False, note: Callable[[], str] = str
    ) -> None:
        """`runs` may grow meanwhile; `note` is a line of its own below the table."""
        self._title, self._runs, self._quiet, self._note = title, runs, quiet, note
        self._console = SafeConsole()
        self._live: Live | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> "View":
        if self._console.can_show_views and not self._quiet:
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
            self._live.__enter__()
        elif not self._quiet:
            self.say(self._title)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self.tick()
            self._live.__exit__(None, None, None)
            self._live = None

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(printable(text), markup=False)

    def tell(self, ending: Ending) -> None:
        """Print how a run has ended: what is wrong in any case, all else where no table shows it."""
        run = next(run for run in self._runs if run.run_dir == ending.run_dir)
        if ending.state == "failed":
            self.say(f"warning: {run.name} failed")
        elif self._live is None and not self._quiet:
            self.say(f"{run.name} {ending.state}: {run.env_steps:,} env-steps, return {_return(run)}")

    def tick(self) -> None:
        """Show how far all are."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif not self._quiet and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self.say(self._line())

    def _line(self) -> str:
        """All runs in one line."""
        states = Counter(run.state for run in self._runs)
        parts = [f"{count} {state}" for state, count in states.most_common()]
        note = self._note()
        return ", ".join([*parts, f"{sum(run.env_steps for run in self._runs):,} env-steps", *([note] if note else [])])

    def _table(self) -> Table:
        room = max(3, self._console.size.height - 6)
        table = Table(title=self._title, title_justify="left", box=None, pad_edge=False, caption_justify="left")
        narrow = self._console.size.width < NARROW
        columns = [column for column in COLUMNS if not narrow or column in NEEDED]
        for name in columns:
            table.add_column(name, justify="left" if name in ("run", "state", "done") else "right", no_wrap=True)
        runs = list(self._runs)
        if len(runs) > room:  # those under way, then the last that have ended
            runs = [run for run in runs if run.state not in OVER and run.state != "waiting"][:room]
            ended = [run for run in self._runs if run.state in OVER]
            runs = [*ended[len(ended) - (room - len(runs)) :], *runs] if len(runs) < room else runs
        for run in runs:
            left = (run.total_steps - run.env_steps) / run.speed if run.speed and run.state == "training" else None
            full = round(run.share * BAR)
            bar = Text.assemble(("━" * full, "cyan"), ("━" * (BAR - full), "dim"))
            cells = {
                "run": run.name,
                "state": Text(run.state, style=COLORS.get(run.state, "dim")),
                "done": Text.assemble(Text() if narrow else bar, f" {run.share:>4.0%}"),
                "env-steps": f"{run.env_steps:,}",
                "steps/s": number(run.speed, ",.0f") if run.state == "training" else "",
                "return": _return(run),
                "left": "" if left is None else duration(left),
            }
            table.add_row(*(cells[name] for name in columns))
        table.caption = self._line()
        return table


def _return(run: Progress) -> str:
    return number(run.episode_return, ",.1f") if run.episode_return is not None else DASH
