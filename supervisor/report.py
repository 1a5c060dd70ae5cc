"""Reports what happens in a run: to its status, to the terminal, to events.jsonl and to status.json."""

import json
import os
import shlex
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from protocol.events import Actors, Caution, CheckpointSaved, Evaluated, Event, Iteration, Note, Started
from protocol.files import append_line, keep_rows, replace_file
from protocol.process import as_word
from protocol.records import plain
from protocol.text import printable
from rundir.episode_metrics import in_words as metrics_in_words
from rundir.names import EVENTS, LOGS, STATUS
from rundir.witness import compared, in_words
from supervisor.process_workers import cut_log
from supervisor.status import Happening, RunStatus
from supervisor.terminal import Terminal
from supervisor.words import DASH, number

LAUNCH = Path(__file__).parent.parent / "launch.py"
STATUS_SECONDS = 1.0  # Seconds between two writes of status.json.
SLOW_START_SECONDS = 3.0
MAX_TEXT = 2000  # Most characters of a text.


class Report:
    """Reports the events of one run."""

    def __init__(self, run_dir: Path, status: RunStatus, terminal: Terminal, resume: str = "") -> None:
        """`resume` are the flags of a command that goes on with the run."""
        self.status = status
        self._run_dir, self._resume = run_dir, resume
        self._terminal = terminal
        self._next_status = 0.0  # time.monotonic()
        self._waiting_since: float | None = None  # When the wait for the first iteration began.
        self._begun = False  # Whether a learner has started before.
        self._unwritten: set[str] = set()  # Files that could not be written.
        with suppress(OSError):  # The next write reports a disk that fails.
            keep_rows(run_dir / EVENTS, lambda _: True)  # A killed launcher may leave half a line.

    def tell(
        self, event: str, text: str, aloud: bool = True, brief: str = "", traceback: str = "", **facts: Any
    ) -> None:
        """Report an event: `text` and `traceback` are for people, `facts` are for programs. If not `aloud`, no line is
        printed. `brief` stands for `text` where there is little room."""
        text = printable(text[:MAX_TEXT])
        happening = Happening(time.time(), event, text, brief)
        facts |= {"traceback": traceback} if traceback else {}
        line = json.dumps({"time": happening.time, "event": event, "text": text, **facts})
        self._write(EVENTS, lambda path: append_line(path, line))
        self._show(happening, aloud)
        for line in traceback.splitlines() if aloud else ():
            self._terminal.say(line)

    def take(self, event: Event) -> None:
        """Report an event that needs no other action."""
        match event:
            case Iteration(row):
                self._waiting_since = None
                self.status.take_row(row)
                self._terminal.show_iteration(row)
            case Actors(actors):
                self.status.take_actors(actors)
            case Started(version, parameters, observations):
                self._waiting_since = time.monotonic()
                begun = f" from version {version}" if version else ""
                if not self._begun and observations:
                    self.tell("note", f"observations: {observations}")
                name = "learner_restarted" if self._begun else "started"
                self._begun = True
                self.status.begin_training()
                self.tell(name, f"learning{begun}: {parameters:,} parameters", **plain(event))
            case CheckpointSaved(version, path):
                self.status.checkpoint = version
                text = f"checkpoint {Path(path).name} saved"
                self.tell("checkpoint", text, aloud=False, policy_version=version, path=path)
            case Evaluated(text, result, brief):
                self.tell("evaluation", text, brief=brief, **result)
            case Note(text):
                self.tell("note", text)
            case Caution(text, traceback):
                self.tell("warning", text, traceback=traceback)

    def tick(self) -> None:
        """Do what is due. To be called often."""
        now = time.monotonic()
        if self._waiting_since is not None and now - self._waiting_since > SLOW_START_SECONDS:
            self._waiting_since = None
            self.tell("note", "the first update is slow where MLX compiles its kernels, once on each machine")
        if now >= self._next_status:
            self._next_status = now + STATUS_SECONDS
            self._save_status()
        self._terminal.tick()

    def end(self, summary: dict[str, Any] | None, error: str | None) -> None:
        """Report the end of the run, with its `summary` or an `error`."""
        status = summary["status"] if summary is not None and error is None else "failed"
        nothing = summary is None or (status == "failed" and not summary["env_steps"])  # The error says it all.
        words = [] if summary is None or nothing else last_words(summary, self._run_dir, self._resume)
        self._terminal.close()
        if summary is not None and compared(summary.get("witness", {})):
            self.tell("note", f"witnessed: {in_words(summary['witness'])}")
        self.status.end(status)
        self.tell("ended", error or next(iter(words), "the launcher failed"), aloud=False, status=status)
        self._save_status()
        for line in words:
            self._terminal.say(line)

    def _save_status(self) -> None:
        self.status.measure()
        text = json.dumps(self.status.as_dict(), allow_nan=False) + "\n"
        self._write(STATUS, lambda path: replace_file(path, text, durable=False))
        for log in (self._run_dir / LOGS).glob("*.log"):
            cut_log(log)

    def _write(self, name: str, write: Any) -> None:
        """Write a file. If this fails, warn once and go on."""
        path = self._run_dir / name
        try:
            write(path)
            self._unwritten.discard(name)
        except OSError as error:
            if name not in self._unwritten:
                self._unwritten.add(name)
                text = f"{path} IS NOT BEING WRITTEN: {error}; training continues"
                self._show(Happening(time.time(), "warning", text), aloud=True)

    def _show(self, happening: Happening, aloud: bool) -> None:
        self.status.happened(happening)
        if aloud:
            self._terminal.tell(happening)


def last_words(summary: dict[str, Any], run_dir: Path, resume: str) -> list[str]:
    """The last lines about a run that has ended."""
    evaluations = []
    for which, one in summary.get("evaluations", {}).items():
        figures = [f"{which} {one['return_mean']:.2f} ± {one['return_std']:.2f}", *metrics_in_words(one)]
        evaluations.append(f"{', '.join(figures)} (version {one['policy_version']})")
    metrics = metrics_in_words(summary)
    return [
        f"{summary['status']}: {summary['env_steps']:,} env-steps in {summary['seconds']:.1f} s"
        f" ({number(summary['env_steps_per_second'], ',.0f')}/s),"
        f" return {number(summary['episode_return_mean'], '.2f')}, version {summary['policy_version']}",
        *([f"episodes: {', '.join(metrics)}"] if metrics else []),
        *([f"evaluations: {'; '.join(evaluations)}"] if evaluations else []),
        f"weights {summary['weights_digest'] or DASH}",
        *([f"go on:       {_launch()} {resume}"] if summary["status"] == "stopped" else []),
        *([f"evaluate it: {_launch()} eval {as_word(run_dir)}"] if summary["policy_version"] else []),
    ]


def _launch() -> str:
    """The beginning of a command line: launch.py with the same Python."""
    found, python = shutil.which("python"), Path(sys.executable)
    if found is not None and Path(found).parent == python.parent:
        python = "python"
    elif python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join([str(python), min(os.path.relpath(LAUNCH), str(LAUNCH), key=len)])
