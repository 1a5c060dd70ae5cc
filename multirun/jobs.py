"""Runs as child processes. Each is an ordinary `launch.py --resume RUN_DIR`, which saves and recovers by itself."""

import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from protocol.files import read_object
from protocol.lifeline import SUCCESS
from rundir.names import LOGS, METRICS, SUMMARY
from supervisor.crashes import Crashes, end_of
from supervisor.process_workers import close_stdin, end_child, last_line, size_of, start_child
from supervisor.status import memory_of

LOG = "launcher.log"
END_SECONDS = 30.0  # Seconds that a run has to save and end after its parent has lost patience.


class Ending(NamedTuple):
    """How a run has ended."""

    run_dir: Path
    state: Literal["finished", "stopped", "failed"]
    reason: str = ""  # Why it failed.


class _Job:
    """One run: its process, which may be the next of several."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.crashes = Crashes()
        self.process: subprocess.Popen[bytes] | None = None  # None while it waits to be started again.
        self.due = 0.0  # time.monotonic() at which it is started again
        self.stopping = False
        self.log_start, self.rows = 0, 0  # bytes of its log and of its metrics before this process
        self.memory = 0  # the most bytes of all its processes together


class Jobs:
    """The runs that are under way. A run whose process is killed is started again, and goes on from its checkpoint."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """`arguments` go to every `launch.py` besides `--resume RUN_DIR`."""
        self._arguments = [*arguments, "--quiet"]
        self._jobs: dict[Path, _Job] = {}
        self.need = 0  # Bytes that a run needs; 0 until one has completed an iteration.

    @property
    def running(self) -> list[Path]:
        """The directories of all runs under way."""
        return list(self._jobs)

    @property
    def memory(self) -> list[int]:
        """The most bytes that each run under way has needed so far."""
        return [job.memory for job in self._jobs.values()]

    def start(self, run_dir: Path) -> None:
        job = self._jobs[run_dir] = _Job(run_dir)
        self._start(job)

    def stop(self, run_dir: Path, again: bool = False) -> None:
        """Ask a run to save and end, once. With `again` it is asked once more, and does not wait for a slow disk."""
        job = self._jobs[run_dir]
        asked, job.stopping = job.stopping, True
        if job.process is not None and (again or not asked):
            job.process.send_signal(signal.SIGTERM)

    def poll(self) -> list[Ending]:
        """Start killed runs again where that is due, and return those that have ended since the last call."""
        endings = []
        for job in list(self._jobs.values()):
            ending = self._look_at(job)
            if ending is not None:
                endings.append(ending)
                del self._jobs[job.run_dir]
        return endings

    def measure(self) -> None:
        """Measure the memory that each run needs, all of its processes together."""
        for job in self._jobs.values():
            if job.process is not None:
                job.memory = max(job.memory, _memory_of_all(job.process.pid))
                if size_of(job.run_dir / METRICS) > job.rows:
                    self.need = max(self.need, job.memory)

    def end(self) -> None:
        """End all runs, as after an error."""
        processes = [job.process for job in self._jobs.values() if job.process is not None]
        for process in processes:
            close_stdin(process)
        for process in processes:
            end_child(process, END_SECONDS)
        self._jobs.clear()

    def _start(self, job: _Job) -> None:
        log = job.run_dir / LOGS / LOG
        log.parent.mkdir(exist_ok=True)
        job.log_start, job.rows = size_of(log), size_of(job.run_dir / METRICS)
        arguments = ["--resume", str(job.run_dir), *self._arguments]
        job.process = start_child("multirun", arguments, log, stdout=subprocess.DEVNULL)

    def _look_at(self, job: _Job) -> Ending | None:
        if job.process is None:
            if job.stopping:
                return Ending(job.run_dir, "stopped")
            if time.monotonic() >= job.due:
                self._start(job)
            return None
        code = job.process.poll()
        if code is None:
            return None
        close_stdin(job.process)
        text = end_of(code, last_line(job.run_dir / LOGS / LOG, job.log_start).removeprefix("launch.py: "))
        if code == SUCCESS and (read_object(job.run_dir / SUMMARY) or {}).get("status") == "finished":
            return Ending(job.run_dir, "finished")
        if job.stopping:
            return Ending(job.run_dir, "stopped")
        if code > 0:  # The run has given up by itself: another process would, too.
            return Ending(job.run_dir, "failed", text)
        if size_of(job.run_dir / METRICS) > job.rows:
            job.crashes.in_a_row = 0
        backoff = job.crashes.next_backoff()
        if backoff is None:
            return Ending(job.run_dir, "failed", text)
        job.process, job.due = None, time.monotonic() + backoff
        return None


def _memory_of_all(pid: int) -> int:
    """Resident bytes of a process and its descendants."""
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            total += memory_of(each.pid) or 0
    return total
