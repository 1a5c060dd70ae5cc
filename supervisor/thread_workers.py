"""The learner and the actors as threads of this process, for `--in-process`."""

import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from actors.actor import Actor
from learner.launcher import Launcher
from learner.process import run_learner
from protocol.errors import EnvironmentFault, UserError
from protocol.events import ActorExit, Event, LearnerExit
from protocol.execution import Execution
from protocol.files import append_line
from protocol.lifeline import ENVIRONMENT_ERROR, FAILURE, SUCCESS, USER_ERROR
from protocol.text import error_line
from rundir.config import RunConfig
from rundir.names import LOGS
from supervisor.workers import Events


class ThreadWorkers:
    """Runs the same learner and actor code as the processes do, in threads and over `inproc://`."""

    def __init__(self, config: RunConfig, execution: Execution, events: Events) -> None:
        self._config, self._execution, self._events = config, execution, events
        self._launcher = Launcher(events.put)
        self._threads: list[threading.Thread] = []
        (execution.run_dir / LOGS).mkdir(exist_ok=True)

    def start_learner(self) -> int:
        def work() -> None:
            run_learner(self._config, self._execution, self._launcher)

        self._start("learner", LearnerExit, work)
        return 0

    def start_actor(self, name: str, life: int) -> int:
        self._start(
            f"actor-{name}", partial(ActorExit, name, life), Actor(name, self._execution.address, life=life).run
        )
        return 0

    def stop_learner(self) -> None:
        self._launcher.stop.set()

    def learner_is_stopped(self) -> bool:
        return False

    def kill_learner(self) -> bool:
        return False

    def tell_lost(self, life: int) -> None:
        self._launcher.lost.put(life)

    def tell_wanted(self, names: Iterable[str]) -> None:
        self._launcher.wanted.put(set(names))

    def kill_actor(self, name: str, life: int) -> bool:
        return False

    def restart_actor(self, name: str) -> None:
        pass  # A thread cannot be killed, and may still join.

    def end_actor(self, name: str) -> None:
        raise NotImplementedError("threads cannot be taken away")

    def end(self, seconds: float) -> None:
        self._launcher.stop.set()
        deadline = time.monotonic() + seconds  # Shared by all threads.
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self, name: str, exit_event: Callable[[int, str], Event], work: Callable[[], None]) -> None:
        def run() -> None:
            code, last = SUCCESS, ""
            try:
                work()
            except UserError as error:
                code, last = USER_ERROR, str(error)
            except EnvironmentFault as fault:
                code, last = ENVIRONMENT_ERROR, str(fault)
            except BaseException as error:
                code, last = FAILURE, error_line(error)
                with suppress(OSError):  # A process leaves its traceback there, too.
                    append_line(self._execution.run_dir / LOGS / f"{name}.log", traceback.format_exc().rstrip())
            self._events.put(exit_event(code, last))

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
