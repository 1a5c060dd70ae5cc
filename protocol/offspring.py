"""Processes that environments start, such as simulators: none of them outlives the process that steps them.

As soon as this process is about to start one, it starts a keeper (`protocol/keeper.py`) beside it. An environment that
starts none costs nothing.
"""

import os
import secrets
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

VARIABLE = "PPO_OFFSPRING"  # Everything that this process starts has it in its environment.
FOR_CHILD = "-child-"  # It stands between the parent's pid and the rest of a mark that a parent gives.
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn"}
# These modules start processes without any of these events.
STARTERS = {"multiprocessing.popen_spawn_posix", "multiprocessing.popen_forkserver"}
KEEPERS_VARIABLES = ("PATH", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")
SIBLINGS_SECONDS = 5.0  # They have so long to end by themselves.
LOOK_SECONDS = 1.0  # That often one looks for processes that Python did not start.

_owner: int | None = None  # the process that watches: its forks have inherited the hook
_keeper: subprocess.Popen[bytes] | None = None
_to_keeper: int | None = None  # a pipe, on which forks introduce themselves
_starting = False
_next_look = 0.0  # time.monotonic()


def watch() -> None:
    """From now on, let nothing that this process starts outlive it; to be called before an environment is made."""
    global _owner
    if _owner != os.getpid():
        first, _owner = _owner is None, os.getpid()
        given = os.environ.get(VARIABLE, "")
        if not given.startswith(f"{os.getppid()}{FOR_CHILD}"):  # inherited: it marks somebody else's offspring
            os.environ[VARIABLE] = secrets.token_hex(16)
        if first:
            sys.addaudithook(_notice)
            if STARTERS & sys.modules.keys():
                _start_keeper()


def mark_for_child() -> dict[str, str]:
    """What to add to the environment of a child that will run environments: a mark that its forks have from the start,
    which they would not have of one that it makes itself."""
    return {VARIABLE: f"{os.getpid()}{FOR_CHILD}{secrets.token_hex(16)}"}


def look() -> None:
    """Notice what was started by other means than Python's; to be called after an environment was made."""
    global _next_look
    if _keeper is None and time.monotonic() >= _next_look:
        import psutil  # here: launch.py says itself what an installation lacks

        _next_look = time.monotonic() + LOOK_SECONDS
        if psutil.Process().children():
            _start_keeper()


def end_offspring() -> None:
    """End whatever this process's environments have started and left; nothing where they started nothing."""
    if _keeper is not None and _owner == os.getpid():
        from protocol.keeper import Seen, end_all, see_descendants

        seen: Seen = {}
        see_descendants(os.getpid(), seen)
        end_all(os.getpid(), _mark(), seen, spared={os.getpid(), _keeper.pid})


def end_siblings(parent: int) -> None:
    """End what is left of the children of process `parent`, which is gone, but for this one.

    They end by themselves where they can. One that was stopped, or hangs in C code, cannot.
    """
    import psutil

    def left() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                mark = process.environ().get(VARIABLE, "")
            except (psutil.Error, OSError):
                continue  # it has just ended, or is none of this user's
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
    """Tell the keeper of this process, which has just been forked: its parent may be killed before the keeper looks.

    A fork does not show the mark that its parent has made for itself. A pid alone may be another process's by then.
    """
    if _to_keeper is not None:
        import psutil

        with suppress(OSError, psutil.Error):  # the keeper is gone, or has not read for long; then it looks for itself
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
            # Without what marks an environment's processes, here or for anybody else: the keeper is none of them.
            env={name: os.environ[name] for name in KEEPERS_VARIABLES if name in os.environ},
            start_new_session=True,  # A signal to this process's group must not kill the keeper.
        )
        os.close(hears)
        _to_keeper = tells
        os.register_at_fork(after_in_child=_introduce_fork)
    finally:
        _starting = False
