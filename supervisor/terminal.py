"""What the user sees of a run: a live table in a terminal, plain lines anywhere else."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from learner.config import RunConfig
from protocol.remote import RemoteAccess

DASH = "–"
LINE_SECONDS = 1.0  # between plain lines
SLOW_START_SECONDS = 3.0


class _Console(Console):
    """Falls silent when nobody reads any more (`| head`), where rich would exit: the run matters more."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Terminal:
    """Shows events as they come. A context manager: the live table stands as long as the context lasts."""

    def __init__(
        self, config: RunConfig, run_dir: Path, num_actors: int, transport: str, remote: RemoteAccess | None
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._total_steps = config.total_iterations * config.experiment.env_steps_per_iteration
        self._console = _Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._row: dict[str, Any] | None = None
        self._began = time.monotonic()
        self._first_row: tuple[float, int] | None = None  # (time, env_steps) of this process's first iteration
        self._last_line = 0.0
        self._waiting_since: float | None = None
        experiment = config.experiment
        parts = [f"{num_actors} actor{'s' if num_actors > 1 else ''} over {transport}"] if num_actors else []
        parts += [f"remote actors at {remote.address}"] if remote else []
        lanes = f"{experiment.num_lanes} lanes of {experiment.lane_size} environments"
        what = f"{experiment.env}, seed {experiment.seed}, {experiment.schedule}"
        self._title = f"{what}: {' and '.join(parts)}, {lanes}"
        self.note(f"{self._title} -> {run_dir}")
        if remote is not None and remote.keys is None:
            self.note(
                f"WARNING: no keys. Whoever reaches {remote.address} can read this run's policy, send it false"
                " experience, or stop it, and nothing on the wire is encrypted"
            )
        if num_actors > experiment.num_lanes:
            idle = num_actors - experiment.num_lanes
            self.note(f"note: {num_actors} actors are more than the {experiment.num_lanes} lanes; {idle} will idle")

    def __enter__(self) -> "Terminal":
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the live table away; what is said from now on stands by itself."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False)

    def show(self, event: dict[str, Any]) -> None:
        """An event of the learner's."""
        match event["event"]:
            case "iteration":
                self._show_iteration(event)
            case "started":
                self._waiting_since = time.monotonic()
                begun = f" from version {event['policy_version']}" if event["policy_version"] else ""
                self.note(f"learning{begun}: {event['parameters']:,} parameters")
            case "evaluation":
                self.note(event["text"])
            case "note" | "warning":
                self.note(f"{event['event']}: {event['text']}")

    def tick(self) -> None:
        """Nothing has happened for a moment."""
        if self._waiting_since is not None and time.monotonic() - self._waiting_since > SLOW_START_SECONDS:
            self._waiting_since = None
            if self._row is None:
                self.note("note: the first update is slow where MLX compiles its kernels, once on each machine")

    def summarize(self, summary: dict[str, Any]) -> None:
        """The run's last words."""
        self.close()
        self.note(
            f"{summary['status']}: {summary['env_steps']:,} env-steps in {summary['seconds']:.1f} s"
            f" ({_number(summary['env_steps_per_second'], ',.0f')}/s),"
            f" return {_number(summary['episode_return_mean'], '.1f')}, version {summary['policy_version']}"
        )
        if evaluations := summary.get("evaluations"):
            best, last = (
                f"{which} {one['return_mean']:.2f} ± {one['return_std']:.2f} (version {one['policy_version']})"
                for which, one in evaluations.items()
            )
            self.note(f"evaluations: {best}, {last}")
        self.note(f"weights {summary['weights_digest'] or DASH}")
        self.note(f"evaluate it: python launch.py eval {self._run_dir}")

    def _show_iteration(self, row: dict[str, Any]) -> None:
        self._row = row
        now = time.monotonic()
        if self._first_row is None:
            self._first_row = (now, row["env_steps"])
        if self._live is not None:
            self._live.update(self._table())
            return
        if now - self._last_line >= LINE_SECONDS or row["env_steps"] >= self._total_steps:
            self._last_line = now
            self.note(
                f"{row['env_steps']:>11,} / {self._total_steps:,} env-steps"
                f"  {row['time/env_steps_per_second']:>7,.0f}/s"
                f"  return {_number(row['rollout/episode_return_mean'], '.1f'):>8}"
                f"  length {_number(row['rollout/episode_length_mean'], '.1f'):>6}"
                f"  KL {row['train/approx_kl']:.4f}"
                f"  {self._time_left(now)} left"
            )

    def _table(self) -> Table:
        row = self._row or {}
        table = Table(title=self._title, title_justify="left", title_style="bold", show_header=False, min_width=60)
        for _ in range(2):
            table.add_column(style="dim")
            table.add_column(justify="right", min_width=12)
        steps = row.get("env_steps", 0)
        cells = [
            ("progress", f"{steps / self._total_steps:.0%} of {self._total_steps:,}"),
            ("time left", self._time_left(time.monotonic())),
            ("env-steps", f"{steps:,}"),
            ("env-steps/s", _number(row.get("time/env_steps_per_second"), ",.0f")),
            ("episode return", _number(row.get("rollout/episode_return_mean"), ".2f")),
            ("episode length", _number(row.get("rollout/episode_length_mean"), ".1f")),
            ("policy loss", _number(row.get("train/policy_loss"), ".4f")),
            ("value loss", _number(row.get("train/value_loss"), ".4g")),
            ("entropy", _number(row.get("train/entropy"), ".3f")),
            ("approx. KL", _number(row.get("train/approx_kl"), ".4f")),
            ("explained variance", _number(row.get("train/explained_variance"), ".3f")),
            ("clip fraction", _number(row.get("train/clip_fraction"), ".3f")),
            ("policy lag", _number(row.get("policy/lag_mean"), ".1f")),
            ("learner waits", _number(row.get("time/learner_wait_share"), ".0%")),
        ]
        for left, right in zip(cells[::2], cells[1::2], strict=True):
            table.add_row(*left, *right)
        return table

    def _time_left(self, now: float) -> str:
        if self._first_row is None or self._row is None or self._row["env_steps"] <= self._first_row[1]:
            return DASH
        began, first = self._first_row
        speed = (self._row["env_steps"] - first) / (now - began)
        seconds = round((self._total_steps - self._row["env_steps"]) / speed)
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"


def _number(value: float | None, form: str) -> str:
    """A dash for what is not known yet."""
    return DASH if value is None else format(value, form)
