"""The learner and the actors as the supervisor sees them: processes, or the threads of `--in-process`.

Both kinds put what happens into one queue: the learner's events as it reports them, and `learner_exit` and
`actor_exit` with the exit code and the last line of what was said.
"""

import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from learner.config import RunConfig
from protocol.errors import UserError
from protocol.lifeline import FAILURE, SUCCESS, USER_ERROR

Events = SimpleQueue[dict[str, Any]]
ROOT = Path(__file__).parent.parent


class Workers(Protocol):
    """One learner and its actors."""

    def start_learner(self) -> None: ...

    def start_actor(self, index: int) -> None: ...

    def stop_learner(self) -> None:
        """Ask the learner to save and end; its summary follows."""
        ...

    def end(self, seconds: float) -> None:
        """End everything that is left, within `seconds`."""
        ...


class ProcessWorkers:
    """Child processes, each tied to this one by its standard input."""

    def __init__(self, run_dir: Path, address: str, num_actors: int, events: Events) -> None:
        self._run_dir = run_dir
        self._address = address
        self._num_actors = num_actors
        self._events = events
        self._learner: subprocess.Popen[bytes] | None = None
        self._actors: dict[int, subprocess.Popen[bytes]] = {}
        self._watchers: list[threading.Thread] = []
        (run_dir / "logs").mkdir(exist_ok=True)

    def start_learner(self) -> None:
        arguments = ["--run-dir", str(self._run_dir), "--listen", self._address, "--peers", str(self._num_actors)]
        self._learner = self._start("learner", arguments, self._log("learner"), stdout=subprocess.PIPE)
        self._watch(self._read_learner, self._learner)

    def start_actor(self, index: int) -> None:
        arguments = ["--connect", self._address, "--index", str(index)]
        log = self._log(f"actor-{index}")
        process = self._actors[index] = self._start("actors", arguments, log, stdout=subprocess.DEVNULL)

        self._watch(self._await_actor, index, process, log)

    def stop_learner(self) -> None:
        if self._learner is not None and self._learner.stdin is not None:
            try:
                self._learner.stdin.write(b"stop\n")
                self._learner.stdin.flush()
            except BrokenPipeError:
                pass  # it has ended already, and its exit is on the way

    def end(self, seconds: float) -> None:
        processes = [*self._actors.values(), *([self._learner] if self._learner else [])]
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in processes:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for watcher in self._watchers:
            watcher.join()

    def _start(self, module: str, arguments: list[str], log: Path, stdout: int) -> subprocess.Popen[bytes]:
        with open(log, "ab") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
                start_new_session=True,  # a terminal's signals are for the supervisor alone
            )

    def _watch(self, work: Callable[..., None], *arguments: Any) -> None:
        watcher = threading.Thread(target=work, args=arguments, daemon=True)
        self._watchers.append(watcher)
        watcher.start()

    def _await_actor(self, index: int, process: subprocess.Popen[bytes], log: Path) -> None:
        code = process.wait()
        self._events.put({"event": "actor_exit", "actor": index, "code": code, "last_line": last_line(log)})

    def _read_learner(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._events.put(json.loads(line))
        code = process.wait()
        self._events.put({"event": "learner_exit", "code": code, "last_line": last_line(self._log("learner"))})

    def _log(self, name: str) -> Path:
        return self._run_dir / "logs" / f"{name}.log"


class ThreadWorkers:
    """The same learner and actor code as threads of this process, over `inproc://`."""

    def __init__(self, config: RunConfig, run_dir: Path, address: str, num_actors: int, events: Events) -> None:
        self._config = config
        self._run_dir = run_dir
        self._address = address
        self._num_actors = num_actors
        self._events = events
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start_learner(self) -> None:
        from learner.process import run_learner

        def work() -> None:
            run_learner(self._config, self._run_dir, self._address, self._num_actors, self._stop, self._events.put)

        self._start({"event": "learner_exit"}, work)

    def start_actor(self, index: int) -> None:
        from actors.actor import Actor

        self._start({"event": "actor_exit", "actor": index}, lambda: Actor(index, self._address).run())

    def stop_learner(self) -> None:
        self._stop.set()

    def end(self, seconds: float) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(seconds)

    def _start(self, exit_event: dict[str, Any], work: Callable[[], None]) -> None:
        def run() -> None:
            code, last = SUCCESS, ""
            try:
                work()
            except UserError as error:
                code, last = USER_ERROR, str(error)
            except Exception as error:
                traceback.print_exc()
                code, last = FAILURE, f"{type(error).__name__}: {error}"
            self._events.put(exit_event | {"code": code, "last_line": last})

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()


def last_line(log: Path) -> str:
    """The last thing a process said before it ended: the error's own line, where there was one."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
