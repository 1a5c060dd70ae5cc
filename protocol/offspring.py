"""Ends the processes that environments start, such as simulators, at the latest with the process that steps them.

When this process is about to start its first child, it also starts a keeper (`protocol/keeper.py`). An environment that
starts no process costs nothing.
"""

import os
import secrets
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

VARIABLE = "PPO_OFFSPRING"  # Every process that this one starts has this variable in its environment.
FOR_CHILD = "-child-"  # Separates the parent's pid from the rest of a mark that a parent gives.
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn"}
# Modules that start processes without any of the audit events in `STARTS`.
STARTERS = {"multiprocessing.popen_spawn_posix", "multiprocessing.popen_forkserver"}
KEEPERS_VARIABLES = ("PATH", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")
SIBLINGS_SECONDS = 5.0  # Seconds that siblings have to end by themselves.
LOOK_SECONDS = 1.0  # Seconds between two looks for processes that Python did not start.

_owner: int | None = None  # Pid of the process that watches. Its forks inherit the audit hook and ignore it.
_keeper: subprocess.Popen[bytes] | None = None
_to_keeper: int | None = None  # A pipe on which forks report themselves.
_starting = False
_next_look = 0.0  # time.monotonic()


def watch() -> None:
    """From now on, no process that this one starts outlives it. Call this before an environment is made."""
    global _owner
    if _owner != os.getpid():
        first, _owner = _owner is None, os.getpid()
        given = os.environ.get(VARIABLE, "")
        if not given.startswith(f"{os.getppid()}{FOR_CHILD}"):  # An inherited mark is another process's.
            os.environ[VARIABLE] = secrets.token_hex(16)
        if first:
            sys.addaudithook(_notice)
            if STARTERS & sys.modules.keys():
                _start_keeper()


def mark_for_child() -> dict[str, str]:
    """A mark to add to the environment variables of a child that will run environments.

    The child's forks then show the mark from their start. They would not show a mark that the child sets itself.
    """
    return {VARIABLE: f"{os.getpid()}{FOR_CHILD}{secrets.token_hex(16)}"}


def look() -> None:
    """Notice processes that were started by other means than Python's. Call this after an environment was made."""
    global _next_look
    if _keeper is None and time.monotonic() >= _next_look:
        import psutil  # Imported here: launch.py itself reports what an installation lacks.

        _next_look = time.monotonic() + LOOK_SECONDS
        if psutil.Process().children():
            _start_keeper()


def end_offspring() -> None:
    """Kill the processes that this process's environments started and left. Does nothing if there are none."""
    if _keeper is not None and _owner == os.getpid():
        from protocol.keeper import Seen, end_all, see_descendants

        seen: Seen = {}
        see_descendants(os.getpid(), seen)
        end_all(os.getpid(), _mark(), seen, spared={os.getpid(), _keeper.pid})


def end_siblings(parent: int) -> None:
    """End the remaining children of process `parent`, which is gone, except this process.

    Children normally end by themselves. A child that was stopped, or hangs in C code, cannot.
    """
    import psutil

    def left() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                mark = process.environ().get(VARIABLE, "")
            except (psutil.Error, OSError):
                continue  # The process has just ended, or belongs to another user.
            if process.pid != os.getpid() and mark.startswith(f"{parent}{FOR_CHILD}"):
                found.append(process)
        return found

    deadline = time.monotonic() + SIBLINGS_SECONDS
    while left() and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS / 4)
    for process in left():
        with suppress(psutil.Error):
            process.kill()


def _mark() -> str:
    return f"{VARIABLE}={os.environ[VARIABLE]}"


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if event in STARTS or (event == "import" and arguments[0] in STARTERS):
        _start_keeper()


def _introduce_fork() -> None:
    """Report this process, a new fork, to the keeper: the parent may be killed before the keeper looks.

    A fork does not show a mark that its parent set itself. Another process may have the pid when the keeper reads it,
    so the start time is sent as well.
    """
    if _to_keeper is not None:
        import psutil

        with suppress(OSError, psutil.Error):  # The keeper is gone, or has not read for long and will look itself.
            os.write(_to_keeper, f"{os.getpid()} {psutil.Process().create_time()}\n".encode())


def _start_keeper() -> None:
    global _keeper, _starting, _to_keeper
    if _keeper is not None or _starting or _owner != os.getpid():
        return
    _starting = True
    try:
        import psutil  # noqa: F401 - here: no import is safe in a fork

        keeper = Path(__file__).with_name("keeper.py")
        hears, tells = os.pipe()
        os.set_blocking(tells, False)
        _keeper = subprocess.Popen(
            [sys.executable, "-P", str(keeper), str(os.getpid()), _mark()],
            stdin=hears,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # Leave out variables that mark an environment's processes: the keeper is not one of these.
            env={name: os.environ[name] for name in KEEPERS_VARIABLES if name in os.environ},
            start_new_session=True,  # A signal to this process's group must not kill the keeper.
        )
        os.close(hears)
        _to_keeper = tells
        os.register_at_fork(after_in_child=_introduce_fork)
    finally:
        _starting = False
