"""`python keeper.py PARENT MARK`: waits until process PARENT is gone, then kills every process that PARENT left behind.

A signal to a process group does not reach a simulator with a session of its own, and a killed process cannot clean up.
So the keeper remembers every descendant of PARENT that it sees, and every fork, which reports itself on the keeper's
standard input. When PARENT is gone, the keeper searches for more processes by MARK, an environment variable
(NAME=VALUE) that they inherited. The keeper is run as a script and imports nothing of this project, to start at once.
"""

import os
import sys
import time

import psutil

LOOK_SECONDS = 0.1  # Seconds between two looks at the descendants.
END_SECONDS = 5.0  # Most seconds that ending the processes may take.
FORKS_BYTES = 2**16  # Bytes. A pipe holds no more.
SAME_SECONDS = 2.0  # Seconds. Start times count from the system's boot, which two processes may see a second apart.
AGAIN_SECONDS = 0.05  # Seconds between two attempts to kill.

Seen = dict[int, psutil.Process]  # Processes by their pid.


def see_descendants(parent: int, seen: Seen) -> None:
    """Add every living descendant of `parent` to `seen`, except this process."""
    try:
        for child in psutil.Process(parent).children(recursive=True):
            if child.pid != os.getpid():
                seen.setdefault(child.pid, child)
    except psutil.Error:
        pass  # The parent has just ended.


def hear_forks(seen: Seen) -> None:
    """Add the forks that have reported themselves. Each sends its pid and its start time."""
    try:
        lines = os.read(0, FORKS_BYTES).decode().splitlines()
    except BlockingIOError:
        return  # No fork has reported itself.
    for line in lines:
        try:
            pid, began = line.split()
            process = psutil.Process(int(pid))
            if abs(process.create_time() - float(began)) < SAME_SECONDS:
                seen.setdefault(process.pid, process)
        except (psutil.Error, ValueError):
            continue  # The fork has ended, or the pipe was full and the line is incomplete.


def see_strays(parent: int, mark: str, seen: Seen) -> None:
    """Add every process that has the mark or is in the session that `parent` leads or led, except `parent` and this
    process."""
    name, _, value = mark.partition("=")
    for process in psutil.process_iter():
        if process.pid in (parent, os.getpid()) or process.pid in seen:
            continue
        try:
            if os.getsid(process.pid) == parent or process.environ().get(name) == value:
                seen[process.pid] = process
        except (psutil.Error, OSError):
            continue  # The process has just ended, or belongs to another user.


def end_all(parent: int, mark: str, seen: Seen, spared: set[int]) -> None:
    """Kill every process in `seen`, every descendant and stray, until none is left. Pids in `spared` are not killed."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        see_strays(parent, mark, seen)
        for process in list(seen.values()):
            see_descendants(process.pid, seen)
        alive = [process for pid, process in seen.items() if pid not in spared and _is_alive(process)]
        if not alive:
            return
        for process in alive:
            try:
                process.kill()  # psutil checks that the pid still belongs to that process.
            except psutil.Error:
                continue
        time.sleep(AGAIN_SECONDS)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def main() -> None:
    parent, mark = int(sys.argv[1]), sys.argv[2]
    seen: Seen = {}
    os.set_blocking(0, False)
    while os.getppid() == parent:
        hear_forks(seen)
        see_descendants(parent, seen)
        time.sleep(LOOK_SECONDS)
    hear_forks(seen)
    end_all(parent, mark, seen, spared={os.getpid()})


if __name__ == "__main__":
    main()
