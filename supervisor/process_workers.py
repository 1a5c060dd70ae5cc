"""The learner and the actors as child processes. The lifeline of each is its standard input."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from protocol.events import ActorExit, Event, LearnerExit, from_line
from protocol.execution import WITNESS, Execution, title_of
from protocol.keys import RunKeys
from protocol.lifeline import ACTORS, EXECUTION, KEY, LOST, STOP
from protocol.offspring import mark_for_child
from protocol.process import HASH_SEED, ONE_THREAD, START
from protocol.records import plain
from protocol.text import one_line
from rundir.names import LOGS
from supervisor.workers import END_SECONDS, Events

MAX_LOG, KEPT_LOG = 2**20, 2**18  # Bytes. A log longer than MAX_LOG is cut to its last KEPT_LOG.
MAX_LAST_LINE = 2000  # Most characters of a last line.
MAX_LAST_WORDS = 2**16  # Bytes at a log's end in which the last line is searched.
ROOT = Path(__file__).parent.parent


class ProcessWorkers:
    """Workers that can be killed, lost and started again."""

    def __init__(self, execution: Execution, events: Events) -> None:
        self._execution, self._events = execution, events
        # A socket file is protected by its folder, but anyone can reach a port. There, an actor needs the run's key.
        remote = execution.remote
        open_to_all = execution.address.startswith("tcp://") or (remote is not None and remote.supervised)
        self._keys = RunKeys.fresh() if open_to_all else None
        self._learner: subprocess.Popen[bytes] | None = None
        self._actors: dict[str, subprocess.Popen[bytes]] = {}
        self._lives: dict[str, int] = {}  # The life of each actor in `_actors`.
        self._watchers: list[threading.Thread] = []
        (execution.run_dir / LOGS).mkdir(exist_ok=True)

    def start_learner(self) -> int:
        arguments = ["--run-dir", str(self._execution.run_dir)]
        arguments += ["--keyed"] if self._keys else []
        start = size_of(self._log("learner"))
        self._learner = start_child("learner", arguments, self._log("learner"), stdout=subprocess.PIPE)
        self._tell(self._learner, f"{EXECUTION} {json.dumps(plain(self._execution))}")
        if self._keys:
            self._tell(self._learner, " ".join([KEY, *self._keys.words_for_learner()]))
        self._watch(self._read_learner, self._learner, start)
        return self._learner.pid

    def start_actor(self, name: str, life: int) -> int:
        arguments = ["--connect", self._execution.address, "--life", str(life), "--name", name]
        arguments += ["--keyed"] if self._keys else []
        log = self._log(title_of(name).replace(" ", "-"))
        start = size_of(log)
        module = "actors.witness" if name == WITNESS else "actors"
        process = self._actors[name] = start_child(module, arguments, log, stdout=subprocess.DEVNULL)
        if self._keys:
            self._tell(process, " ".join([KEY, *self._keys.words_for_actor()]))
        self._lives[name] = life
        self._watch(self._await_actor, name, life, process, log, start)
        return process.pid

    def stop_learner(self) -> None:
        self._tell(self._learner, STOP)

    def learner_is_stopped(self) -> bool:
        try:
            return self._learner is not None and psutil.Process(self._learner.pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False  # The learner has ended.

    def kill_learner(self) -> bool:
        if self._learner is not None:
            kill(self._learner)
        return True

    def tell_lost(self, life: int) -> None:
        self._tell(self._learner, f"{LOST} {life}")

    def tell_wanted(self, names: Iterable[str]) -> None:
        names = [*names]
        witness = WITNESS in names
        self._execution = replace(self._execution, num_actors=len(names) - witness, witness=witness)
        self._tell(self._learner, " ".join([ACTORS, *names]))

    def kill_actor(self, name: str, life: int) -> bool:
        process = self._actors.get(name)
        if process is not None and self._lives[name] == life:
            kill(process)
        return True

    def restart_actor(self, name: str) -> None:
        kill(self._actors[name])

    def end_actor(self, name: str) -> None:
        process = self._actors.pop(name, None)
        if process is not None:
            end_child(process, END_SECONDS)

    def end(self, seconds: float) -> None:
        processes = [*self._actors.values(), *([self._learner] if self._learner else [])]
        for process in processes:
            close_stdin(process)
        deadline = time.monotonic() + seconds  # Shared by all processes.
        for process in processes:
            end_child(process, max(0.0, deadline - time.monotonic()))
        for watcher in self._watchers:
            watcher.join()

    def _tell(self, process: subprocess.Popen[bytes] | None, line: str) -> None:
        if process is not None and process.stdin is not None:
            with suppress(BrokenPipeError, ValueError):  # The process has ended; its exit event reports that.
                process.stdin.write(f"{line}\n".encode())
                process.stdin.flush()

    def _watch(self, work: Callable[..., None], *arguments: Any) -> None:
        watcher = threading.Thread(target=work, args=arguments, daemon=True)
        self._watchers.append(watcher)
        watcher.start()

    def _await_actor(self, name: str, life: int, process: subprocess.Popen[bytes], log: Path, start: int) -> None:
        code = process.wait()
        close_stdin(process)
        self._events.put(ActorExit(name, life, code, last_line(log, start)))

    def _read_learner(self, process: subprocess.Popen[bytes], start: int) -> None:
        for event in self._read_events(process):
            self._events.put(event)
        code = process.wait()
        close_stdin(process)
        self._events.put(LearnerExit(code, last_line(self._log("learner"), start)))

    def _read_events(self, process: subprocess.Popen[bytes]) -> Iterator[Event]:
        """The events that a child reports until it ends."""
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if (event := from_line(line)) is not None:
                    yield event

    def _log(self, name: str) -> Path:
        return self._execution.run_dir / LOGS / f"{name}.log"


def start_child(module: str, arguments: list[str], log: Path, stdout: int) -> subprocess.Popen[bytes]:
    """Start `python -m MODULE` with a lifeline to this process. Its standard error goes to `log`."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # `run_child` adds the user's folder
    with open(log, "ab") as stderr:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            env=os.environ | ONE_THREAD | HASH_SEED | mark_for_child() | {"PYTHONPATH": os.pathsep.join(path)},
            cwd=START,
            start_new_session=True,  # Only the supervisor gets a terminal's signals.
        )


def end_child(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ask a child to end, and kill it if it has not ended within `seconds`."""
    close_stdin(process)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        process.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a child and the processes that it started: each child leads a session of its own."""
    if process.poll() is None:
        # The child may have just ended without its waiting thread knowing. macOS then reports a lack of permission.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def close_stdin(process: subprocess.Popen[bytes]) -> None:
    """Close a child's lifeline, so that the child ends."""
    if process.stdin is not None:
        with suppress(BrokenPipeError):  # The child ended before it had read everything.
            process.stdin.close()


def size_of(log: Path) -> int:
    """Bytes of a log; 0 if there is none."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def last_line(log: Path, start: int = 0) -> str:
    """The last line that a process printed before it ended, such as an error. The process's output begins at byte
    `start` of the log. Empty if the process printed nothing, or if the log cannot be read."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start if start <= size else 0, size - MAX_LAST_WORDS))  # A log that was cut is shorter.
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return one_line(lines[-1], MAX_LAST_LINE) if lines else ""


def cut_log(log: Path) -> None:
    """Cut a log that has grown too long to its newest part. Lines that are written meanwhile may be lost.

    Processes append to the log, and so go on at its new end.
    """
    try:
        if log.stat().st_size <= MAX_LOG:
            return
        with open(log, "r+b") as file:
            file.seek(-KEPT_LOG, os.SEEK_END)
            kept = file.read()
            file.truncate(0)
        with open(log, "ab") as file:
            file.write(b"(what was here before was too much to keep)\n" + kept[kept.find(b"\n") + 1 :])
    except OSError:
        return  # The log has gone, or the disk is full. Its writer may go on.
