"""The supervisor: one learner and N actors, started together, watched, and ended together.

It decides about processes and nothing else: the learner decides about lanes. Whatever happens arrives in one queue.
"""

import json
import queue
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from learner.config import RunConfig
from protocol.errors import UserError
from protocol.files import replace_file
from protocol.lifeline import FAILURE, SUCCESS, USER_ERROR
from protocol.remote import RemoteAccess
from supervisor.address import listening_address
from supervisor.terminal import Terminal
from supervisor.workers import END_SECONDS, Events, RayCluster, Workers

STOP_SECONDS = 4.0  # that a learner has to save and end, once asked
START_SECONDS = 120.0  # that an actor has to join the learner
FIRST_BACKOFF, LAST_BACKOFF = 0.5, 30.0  # seconds before a process is started again
CRASHES_ALLOWED = 5  # in a row, without any progress
WANTED_ACTORS = "wanted-actors"  # in the run directory: how many actors to run from now on


class RunFailed(Exception):
    """The run cannot go on; what was saved stays saved. The text says why."""


def supervise(
    config: RunConfig,
    run_dir: Path,
    num_actors: int,
    transport: str,
    remote: RemoteAccess | None,
    cluster: RayCluster | None,
    in_process: bool,
    step_timeout: float,
) -> int:
    """Run one learner and its actors to the end; returns the exit code. Raises `UserError`."""
    summary_path = run_dir / "summary.json"
    earlier = _read_summary(summary_path)
    if earlier.get("status") == "finished":
        print(f"{run_dir} is finished already: {earlier['weights_digest']}")
        return SUCCESS
    events: Events = queue.SimpleQueue()
    way = "in-process" if in_process else "Ray" if cluster else transport
    terminal = Terminal(config, run_dir, num_actors, way, remote)
    with _signals(events), listening_address("inproc" if in_process else transport) as address, terminal:
        workers: Workers
        if in_process:
            from supervisor.threads import ThreadWorkers

            workers = ThreadWorkers(config, run_dir, address, remote, num_actors, step_timeout, events)
        elif cluster is not None:
            from supervisor.cluster import RayWorkers

            workers = RayWorkers(run_dir, address, cluster, num_actors, step_timeout, events)
        else:
            from supervisor.processes import ProcessWorkers

            workers = ProcessWorkers(run_dir, address, remote, num_actors, step_timeout, events)
        supervisor = Supervisor(workers, run_dir, events, terminal, can_restart=not in_process)
        error = None
        try:
            supervisor.start(num_actors)
            supervisor.watch()
        except RunFailed as failure:
            error = str(failure)
        finally:
            workers.end(END_SECONDS)
            if supervisor.summary:
                restarts = {
                    "actor_restarts": supervisor.actor_restarts,
                    "learner_restarts": supervisor.learner_restarts,
                }
                restarts = {name: earlier.get(name, 0) + count for name, count in restarts.items()}
                summary = supervisor.summary | restarts
                try:
                    replace_file(summary_path, json.dumps(summary, indent=2) + "\n")
                except OSError as failure:
                    terminal.note(f"warning: {summary_path} NOT WRITTEN: {failure}")
                terminal.summarize(summary)
    if error is not None:
        print(f"launch.py: {error} (logs in {run_dir / 'logs'}; go on with --resume {run_dir})", file=sys.stderr)
        return FAILURE
    return SUCCESS


class Crashes:
    """Counts a process's crashes since it last made progress, and says how long to wait before the next start."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def next_backoff(self) -> float | None:
        """Seconds to wait after one more crash; None where it is one too many."""
        self.in_a_row += 1
        if self.in_a_row >= CRASHES_ALLOWED:
            return None
        return min(FIRST_BACKOFF * 2 ** (self.in_a_row - 1), LAST_BACKOFF)


class Supervisor:
    """Watches over the workers of one run."""

    def __init__(self, workers: Workers, run_dir: Path, events: Events, terminal: Terminal, can_restart: bool) -> None:
        self.summary: dict[str, Any] | None = None
        self.actor_restarts = 0
        self.learner_restarts = 0
        self._workers = workers
        self._wanted_file = run_dir / WANTED_ACTORS
        self._events = events
        self._terminal = terminal
        self._can_restart = can_restart
        self._slots: dict[int, Crashes] = {}  # the actors wanted, by index
        self._learner_crashes = Crashes()
        self._learning = False  # whether an iteration was completed: from then on every end has a summary
        self._pids: dict[int, int] = {}  # of each actor's present process
        self._lost_at: dict[int, float] = {}  # actors that do not deliver again yet, and since when they are lost
        self._joining: dict[int, float] = {}  # actors that have not joined yet, and since when
        self._due: dict[int | None, float] = {}  # actors to start again and when; None is the learner
        self._deadline: float | None = None  # for the learner's summary, once it was asked to stop
        self._failure: str | None = None  # why it was asked to stop, unless by a signal

    def start(self, num_actors: int) -> None:
        self._wanted_file.unlink(missing_ok=True)
        self._workers.start_learner()
        for index in range(num_actors):
            self._slots[index] = Crashes()
            self._start_actor(index)

    def watch(self) -> None:
        """Until the learner has summarized the run. Raises `UserError` or `RunFailed` when that cannot be."""
        while self.summary is None:
            now = time.monotonic()
            if self._deadline is not None and now > self._deadline:
                raise RunFailed(self._failure or f"the learner did not end within {STOP_SECONDS:.0f} s and was killed")
            for index in [i for i, due in self._due.items() if due <= now and self._deadline is None]:
                del self._due[index]
                if index is None:
                    self._workers.start_learner()
                else:
                    self._start_actor(index)
            for index in [i for i, since in self._joining.items() if now - since > START_SECONDS]:
                del self._joining[index]
                self._terminal.note(f"warning: actor {index} has not joined within {START_SECONDS:.0f} s")
                self._workers.restart_actor(index)
            self._adjust_actors()
            try:
                self._handle(self._events.get(timeout=0.1))
            except queue.Empty:
                self._terminal.tick()
        if self._failure or self.summary["status"] == "failed":
            raise RunFailed(self._failure or self.summary["error"])

    def _handle(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "summary":
                self.summary = {key: value for key, value in event.items() if key != "event"}
            case "signal":
                self._terminal.note(f"{event['name']}: saving and ending")
                self._stop()
            case "kill":
                if not self._workers.kill_actor(int(event["actor"]), event["pid"]):
                    self._stop(f"actor {event['actor']} hangs, and a thread cannot be killed")
            case "actor_ready" if event["actor"].isdecimal():
                self._joining.pop(int(event["actor"]), None)
            case "actor_ready":  # another machine's, about whose process nothing can be decided here
                self._terminal.note(f"actor {event['actor']} has joined")
            case "actor_gone":
                self._terminal.note(f"actor {event['actor']} has gone; its lanes go to the others")
            case "actor_working" if event["actor"].isdecimal():
                index = int(event["actor"])
                if index in self._slots:
                    self._slots[index] = Crashes()
                lost_at = self._lost_at.pop(index, None)
                if lost_at is not None:
                    self._terminal.note(
                        f"actor {event['actor']} delivers again, {time.monotonic() - lost_at:.1f} s after it was lost"
                        f" ({event['seconds']:.1f} s after it joined, rebuilding lanes included)"
                    )
            case "learner_exit":
                self._lost_learner(event["code"], event["last_line"])
            case "actor_exit":
                self._lost_actor(**{key: event[key] for key in ("actor", "pid", "code", "last_line")})
            case "iteration":
                self._learning = True
                self._learner_crashes.in_a_row = 0
                self._terminal.show(event)
            case _:
                self._terminal.show(event)

    def _stop(self, failure: str | None = None) -> None:
        """Ask the learner to save and end; what it summarizes is the run's end."""
        self._failure = self._failure or failure
        if self._due.pop(None, None) is not None:
            self._workers.start_learner()  # only a learner can tell what its newest checkpoint amounts to
        self._workers.stop_learner()
        self._deadline = self._deadline or time.monotonic() + STOP_SECONDS

    def _start_actor(self, index: int) -> None:
        self._joining[index] = time.monotonic()
        self._pids[index] = self._workers.start_actor(index)

    def _lost_learner(self, code: int, last_line: str) -> None:
        if code == USER_ERROR:
            raise UserError(last_line.removeprefix("learner: "))
        cause = f"the learner ended with code {code}" + (f": {last_line}" if last_line else "")
        backoff = self._learner_crashes.next_backoff() if self._can_restart else None
        if backoff is None or self._deadline is not None:
            raise RunFailed(self._failure or cause)
        self._due[None] = time.monotonic() + backoff
        self.learner_restarts += 1
        self._terminal.note(f"warning: {cause}; it starts again from its newest checkpoint in {backoff:.1f} s")

    def _lost_actor(self, actor: int, pid: int, code: int, last_line: str) -> None:
        self._workers.tell_lost(pid)
        if self._pids.get(actor) != pid:
            return  # another process has its place already
        self._joining.pop(actor, None)
        if code == SUCCESS or self._deadline is not None or actor not in self._slots:
            return
        if code == USER_ERROR:
            reason = last_line.removeprefix(f"actor {actor}: ")
            if self._learning:
                self._stop(reason)
                return
            raise UserError(reason)
        cause = f"actor {actor} ended with code {code}" + (f": {last_line}" if last_line else "")
        if not self._can_restart:
            self._stop(cause)
            return
        backoff = self._slots[actor].next_backoff()
        if backoff is not None:
            self._due[actor] = time.monotonic() + backoff
            self._lost_at.setdefault(actor, time.monotonic())
            self.actor_restarts += 1
            self._terminal.note(f"warning: {cause}; it starts again in {backoff:.1f} s")
            return
        del self._slots[actor]
        self._terminal.note(f"warning: {cause}; it is given up after {CRASHES_ALLOWED} starts in a row")
        if not self._slots:
            self._stop(f"no actor is left: {cause}")

    def _adjust_actors(self) -> None:
        """Follow what `launch.py actors` wrote; threads cannot."""
        if not self._can_restart:
            return
        try:
            wanted = int(self._wanted_file.read_text())
        except FileNotFoundError:
            return
        except (OSError, ValueError):  # not written by `launch.py actors`
            self._wanted_file.unlink(missing_ok=True)
            return
        self._workers.num_actors = wanted
        for index in [i for i in self._slots if i >= wanted]:
            del self._slots[index]
            self._due.pop(index, None)
            self._workers.end_actor(index)
        for index in range(wanted):
            if index not in self._slots:
                self._slots[index] = Crashes()
                self._start_actor(index)
        self._terminal.note(f"now with {wanted} actors")
        self._wanted_file.unlink()


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


def _read_summary(path: Path) -> dict[str, Any]:
    """The summary of a run's earlier part; empty where there is none that can be read."""
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}
