"""The supervisor: one learner and N actors, started together, watched, and ended together.

It decides about processes and nothing else: the learner decides about lanes. Whatever happens arrives in one queue.
"""

import json
import os
import queue
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from commands.address import listening_address
from commands.terminal import Terminal
from commands.workers import Events, ProcessWorkers, ThreadWorkers, Workers
from learner.config import RunConfig
from protocol.errors import UserError
from protocol.lifeline import FAILURE, SUCCESS, USER_ERROR

STOP_SECONDS = 4.0  # that a learner has to save and end, once asked
END_SECONDS = 0.5  # that anything else has to end
FIRST_BACKOFF, LAST_BACKOFF = 0.5, 30.0  # seconds before an actor is started again
CRASHES_ALLOWED = 5  # in a row, each within HEALTHY_SECONDS of its start
HEALTHY_SECONDS = 30.0


class RunFailed(Exception):
    """The run cannot go on; what was saved stays saved. The text says why and what to do."""


def supervise(config: RunConfig, run_dir: Path, num_actors: int, transport: str, port: int, in_process: bool) -> int:
    """Run one learner and its actors to the end; returns the exit code. Raises `UserError`."""
    summary_path = run_dir / "summary.json"
    if summary_path.exists():
        summary = json.loads(summary_path.read_text())
        if summary["status"] == "finished":
            print(f"{run_dir} is finished already: {summary['weights_digest']}")
            return SUCCESS
    else:
        summary = {}
    events: Events = queue.SimpleQueue()
    terminal = Terminal(config, run_dir, num_actors, "in-process" if in_process else transport)
    with _signals(events), listening_address("inproc" if in_process else transport, port) as address, terminal:
        workers: Workers
        if in_process:
            workers = ThreadWorkers(config, run_dir, address, num_actors, events)
        else:
            workers = ProcessWorkers(run_dir, address, num_actors, events)
        supervisor = Supervisor(workers, num_actors, events, terminal, can_restart=not in_process)
        try:
            supervisor.start()
            supervisor.watch()
        except RunFailed as error:
            terminal.close()
            print(f"launch.py: {error} (logs in {run_dir / 'logs'}; go on with --resume {run_dir})", file=sys.stderr)
            return FAILURE
        finally:
            workers.end(END_SECONDS)
            if supervisor.summary:
                restarts = {"actor_restarts": supervisor.actor_restarts, "learner_restarts": 0}
                restarts = {name: summary.get(name, 0) + count for name, count in restarts.items()}
                summary = supervisor.summary | restarts
                _write(summary_path, json.dumps(summary, indent=2) + "\n")
                terminal.summarize(summary)
    return SUCCESS if supervisor.summary else FAILURE


class Supervisor:
    """Watches over the workers of one run."""

    def __init__(self, workers: Workers, num_actors: int, events: Events, terminal: Terminal, can_restart: bool):
        self.summary: dict[str, Any] | None = None
        self.actor_restarts = 0
        self._workers = workers
        self._num_actors = num_actors
        self._events = events
        self._terminal = terminal
        self._can_restart = can_restart
        self._started: dict[int, float] = {}  # by actor, time.monotonic()
        self._crashes = dict.fromkeys(range(num_actors), 0)  # in a row
        self._due: dict[int, float] = {}  # actors to start again, and when
        self._deadline: float | None = None  # for the learner's summary, once it was asked to stop

    def start(self) -> None:
        self._workers.start_learner()
        for index in range(self._num_actors):
            self._start_actor(index)

    def watch(self) -> None:
        """Until the learner has summarized the run. Raises `UserError` or `RunFailed` when that cannot be."""
        while self.summary is None:
            now = time.monotonic()
            if self._deadline is not None and now > self._deadline:
                raise RunFailed(f"the learner did not end within {STOP_SECONDS:.0f} s and was killed")
            for index in [i for i, due in self._due.items() if due <= now]:
                del self._due[index]
                self._start_actor(index)
            try:
                self._handle(self._events.get(timeout=0.1))
            except queue.Empty:
                self._terminal.tick()

    def _handle(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "summary":
                self.summary = {key: value for key, value in event.items() if key != "event"}
                if event["status"] == "failed":
                    self._workers.end(END_SECONDS)
                    raise RunFailed("the learner failed")
            case "signal":
                self._terminal.note(f"{event['name']}: saving and ending")
                self._workers.stop_learner()
                self._deadline = self._deadline or time.monotonic() + STOP_SECONDS
            case "learner_exit":
                if event["code"] == USER_ERROR:
                    raise UserError(event["last_line"].removeprefix("learner: "))
                raise RunFailed(f"the learner ended with code {event['code']}: {event['last_line']}")
            case "actor_exit":
                self._lost_actor(event["actor"], event["code"], event["last_line"])
            case _:
                self._terminal.show(event)

    def _start_actor(self, index: int) -> None:
        self._started[index] = time.monotonic()
        self._workers.start_actor(index)

    def _lost_actor(self, index: int, code: int, last_line: str) -> None:
        if code == SUCCESS or self._deadline is not None:
            return  # it was told to stop; the learner's summary follows
        if code == USER_ERROR:
            raise UserError(last_line.removeprefix(f"actor {index}: "))
        now = time.monotonic()
        self._crashes[index] = 1 if now - self._started[index] > HEALTHY_SECONDS else self._crashes[index] + 1
        cause = f"actor {index} ended with code {code}: {last_line}"
        if not self._can_restart or self._crashes[index] >= CRASHES_ALLOWED:
            self._workers.stop_learner()
            raise RunFailed(cause)
        backoff = min(FIRST_BACKOFF * 2 ** (self._crashes[index] - 1), LAST_BACKOFF)
        self._due[index] = now + backoff
        self.actor_restarts += 1
        self._terminal.note(f"{cause}; starting it again in {backoff:.1f} s")


@contextmanager
def _signals(events: Events) -> Iterator[None]:
    """INT, TERM and HUP become events; a background job may have been given an ignored SIGINT, so all are set."""

    def handle(number: int, frame: FrameType | None) -> None:
        events.put({"event": "signal", "name": signal.Signals(number).name})

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
