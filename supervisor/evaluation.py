"""Evaluation during training: one child at a time evaluates the policy versions that the learner has saved for it.

The result depends on version and seed only, so neither the child's speed nor a kill changes the result.
"""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

from protocol.events import Caution, Evaluated, Event, Note, SignalReceived
from protocol.lifeline import SUCCESS, USER_ERROR
from rundir.checkpoint import list_checkpoints
from rundir.episode_metrics import in_words, metrics_in, name_of
from rundir.evaluations import best_of, read_results
from rundir.names import EVALUATIONS, LOGS, PENDING
from supervisor.crashes import CRASHES_ALLOWED, Crashes, end_of, when
from supervisor.process_workers import close_stdin, kill, last_line, size_of, start_child
from supervisor.workers import Events

LOOK_SECONDS = 0.2  # Seconds between two looks at the child.
END_SECONDS = 2.0


def _outcome(result: dict[str, Any]) -> str:
    """The result of an evaluation in a few words."""
    said = []
    if result["return_mean"] is not None:
        mean, deviation = result["return_mean"], result["return_std"]
        figures = [f"return {mean:.2f} ± {deviation:.2f}", *in_words(result)]
        said.append(f"{', '.join(figures)} over {result['episodes']} episodes")
    first = result.get("first_fault")
    if isinstance(first, dict) and first.keys() >= {"seed", "text"}:
        said.append(f"{result['faults']} ended in a fault, first with seed {first['seed']}: {first['text']}")
    return "; ".join(said)


def _brief(result: dict[str, Any], best: bool) -> str:
    """The same in as little room as possible."""
    mean, deviation = result["return_mean"], result["return_std"]
    outcome = "no return" if mean is None else f"{mean:.2f} ± {deviation:.2f}"
    return f"eval {result['policy_version']}: {outcome}{', best' if best else ''}"


class Evaluation:
    """The evaluations of one run. Each new evaluation is put into `events`."""

    def __init__(self, run_dir: Path, events: Events, step_timeout: float, best_by: str = "return") -> None:
        """`best_by` is what makes an evaluation the best."""
        self._run_dir = run_dir
        self._step_timeout = step_timeout
        self._events = events
        self._best_by = best_by
        self._warned = False  # That no evaluation has what makes one the best.
        self._log = run_dir / LOGS / "evaluator.log"
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0  # The log's byte at which the child's output begins.
        self._crashes = Crashes()
        self._given_up = False
        self._due = 0.0  # time.monotonic() of the next look
        self._reported = len(read_results(run_dir))
        self._size = 0  # Bytes of the results when they were last read.

    def poll(self) -> None:
        """Report new evaluations, and start a child if versions wait to be evaluated. To be called often."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + LOOK_SECONDS
        code = self._child.poll() if self._child else None
        self._report()
        if code is not None:
            self._end_child()
            if code != SUCCESS:
                self._failed(code, now)
        elif self._child is None and not self._given_up and self.pending():
            self._log_start = size_of(self._log)
            arguments = ["--run-dir", str(self._run_dir), "--step-timeout", str(self._step_timeout)]
            self._child = start_child("supervisor.evaluator", arguments, self._log, stdout=subprocess.DEVNULL)

    def pending(self) -> int:
        """How many policy versions wait to be evaluated."""
        return len(list_checkpoints(self._run_dir / PENDING))

    def finish(self, show: Callable[[Event], None], tick: Callable[[], None]) -> None:
        """Wait for the pending evaluations, and call `tick` often. A signal leaves them for --resume."""
        if count := self.pending():
            text = f"evaluations to go: {count}; Ctrl-C leaves them for --resume"
            show(Note(text))
        while (self.pending() or self._child) and not self._given_up:
            self.poll()
            tick()
            try:
                event = self._events.get(timeout=0.1)
            except Empty:
                continue
            if isinstance(event, SignalReceived):
                show(Note(f"{event.name}: ending without {self.pending()} evaluations"))
                return
            if isinstance(event, Evaluated | Caution):
                show(event)

    def end(self) -> None:
        """End the child. Its unfinished evaluation will be done again."""
        if self._child is not None:
            self._end_child()

    def summary(self) -> dict[str, Any]:
        """The best and the last evaluation, for the run's summary; empty if there was none."""
        results = read_results(self._run_dir)
        if not results:
            return {}
        names = ("policy_version", "episodes", "return_mean", "return_std")
        chosen = {
            "best": best_of(results, self._best_by),
            "last": max(results, key=lambda result: result["policy_version"]),
        }
        return {
            "evaluations": {
                which: {name: result[name] for name in names} | metrics_in(result)
                for which, result in chosen.items()
                if result is not None and result["return_mean"] is not None
            }
        }

    def _report(self) -> None:
        path = self._run_dir / EVALUATIONS
        size = path.stat().st_size if path.exists() else 0
        if size == self._size:
            return
        self._size = size
        results = read_results(self._run_dir)
        for i in range(self._reported, len(results)):
            result = results[i]
            self._crashes = Crashes()
            best = best_of(results[: i + 1], self._best_by)
            if best is None and result["return_mean"] is not None and not self._warned:
                self._warned = True
                there = ", ".join(map(name_of, metrics_in(result))) or "none"
                text = f"no evaluation has the episode metric {self._best_by} (--best-by); there are {there}"
                self._events.put(Caution(text))
            praise = ", the best so far" if best is result else ""
            text = f"evaluation of version {result['policy_version']}: {_outcome(result)}{praise}"
            self._events.put(Evaluated(text, result, _brief(result, best is result)))
        self._reported = len(results)

    def _failed(self, code: int, now: float) -> None:
        cause = f"an evaluation {end_of(code, last_line(self._log, self._log_start))}"
        backoff = self._crashes.next_backoff() if code != USER_ERROR else None
        if backoff is not None:
            self._due = now + backoff
            text = f"{cause}; it starts again {when(backoff)}"
        else:
            self._given_up = True
            times = f" {CRASHES_ALLOWED} times in a row" if code != USER_ERROR else ""
            text = f"{cause}{times}; training continues WITHOUT EVALUATIONS, which are left for --resume"
        self._events.put(Caution(text))

    def _end_child(self) -> None:
        assert self._child is not None
        close_stdin(self._child)
        try:
            self._child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            kill(self._child)
            self._child.wait()
        self._child = None
