"""The learner as a child process, and the actors wherever Ray finds a CPU for them.

Another child, `supervisor/ray_driver.py`, talks to Ray. So this process has none of Ray's threads and output, and Ray
cannot end it when the cluster is gone. Ray only places processes; actors and learner talk over ZeroMQ.
"""

import subprocess
import threading
from dataclasses import replace

from protocol.events import ActorExit
from protocol.execution import Execution
from protocol.lifeline import KEY
from protocol.remote import RemoteAccess
from rundir.names import LOGS
from supervisor.address import free_port
from supervisor.process_workers import ProcessWorkers, close_stdin, end_child, last_line, start_child
from supervisor.workers import Events

ANY_HOST = "0.0.0.0"
SHUTDOWN_SECONDS = 5.0  # Seconds that Ray has to end the processes that it started.


class RayWorkers(ProcessWorkers):
    """Actors on the nodes of a Ray cluster. Their lives identify them, since their pids are those of many machines."""

    def __init__(self, execution: Execution, events: Events) -> None:
        self._port = free_port(ANY_HOST)
        remote = RemoteAccess(f"tcp://{ANY_HOST}:{self._port}", keys=None, supervised=True)
        super().__init__(replace(execution, remote=remote), events)
        self._lock = threading.Lock()  # Shared with the thread that sees a driver's end.
        self._driver: subprocess.Popen[bytes] | None = None
        self._placed: dict[int, str] = {}  # Names of the driver's actors that have not ended, by life.

    def start_actor(self, name: str, life: int) -> int:
        with self._lock:
            self._driver = self._driver or self._start_driver()
            self._placed[life] = name
        self._tell_driver(f"start {name} {life}")
        return 0

    def kill_actor(self, name: str, life: int) -> bool:
        self._tell_driver(f"kill {life}")
        return True

    def restart_actor(self, name: str) -> None:
        for life in self._lives_of(name):
            self._tell_driver(f"restart {life}")

    def end_actor(self, name: str) -> None:
        for life in self._lives_of(name):
            self._tell_driver(f"kill {life}")

    def end(self, seconds: float) -> None:
        driver = self._driver
        if driver is not None:
            end_child(driver, SHUTDOWN_SECONDS)
        super().end(seconds)

    def _start_driver(self) -> subprocess.Popen[bytes]:
        arguments = ["--port", str(self._port), "--actors", str(self._execution.num_actors)]
        arguments += ["--logs", str(self._execution.run_dir / LOGS)]
        arguments += ["--address", address] if (address := self._execution.ray_address) else []
        driver = start_child("supervisor.ray_driver", arguments, self._log("ray"), stdout=subprocess.PIPE)
        assert self._keys is not None
        self._tell(driver, " ".join([KEY, *self._keys.words_for_actor()]))
        self._placed = {}
        self._watch(self._read_driver, driver, self._placed)
        return driver

    def _lives_of(self, name: str) -> list[int]:
        return [life for life, placed in list(self._placed.items()) if placed == name]

    def _tell_driver(self, line: str) -> None:
        self._tell(self._driver, line)

    def _read_driver(self, driver: subprocess.Popen[bytes], placed: dict[int, str]) -> None:
        for event in self._read_events(driver):
            if isinstance(event, ActorExit):
                placed.pop(event.life, None)
            self._events.put(event)
        code = driver.wait()
        close_stdin(driver)
        with self._lock:  # The next actor starts a new driver.
            self._driver = None
        reason = last_line(self._log("ray")).removeprefix("ray: ")
        for life, name in list(placed.items()):  # A cluster's actors end with their driver.
            self._events.put(ActorExit(name, life, code, reason))
