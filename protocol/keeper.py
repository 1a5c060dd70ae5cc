"""`python keeper.py PARENT MARK`: waits until process PARENT is gone, and then ends every process it has left behind.

A process group does not reach a simulator with a session of its own, and a killed process can clean up nothing. So
this one remembers all descendants of PARENT that it sees, and its forks, which introduce themselves at standard input.
At its end it looks for more by MARK, an environment variable (NAME=VALUE) that they have inherited. It is run as a
script, and imports nothing of this project: it has to be there at once.
"""

import os
import sys
import time

import psutil

LOOK_SECONDS = 0.1  # It looks at the descendants that often.
END_SECONDS = 5.0  # Ending them may take so long.
FORKS_BYTES = 2**16  # A pipe holds no more.
SAME_SECONDS = 2.0  # Two processes may be a second apart about when the system was started, from which they count.
AGAIN_SECONDS = 0.05  # It tries again that often.

Seen = dict[int, psutil.Process]  # Processes by their number.


def see_descendants(parent: int, seen: Seen) -> None:
    """Add all that are alive to `seen`, but for this process."""
    try:
        for child in psutil.Process(parent).children(recursive=True):
            if child.pid != os.getpid():
                seen.setdefault(child.pid, child)
    except psutil.Error:
        pass  # the parent has just ended


def hear_forks(seen: Seen) -> None:
    """Add the forks that have introduced themselves, each by its pid and the time at which it began."""
    try:
        lines = os.read(0, FORKS_BYTES).decode().splitlines()
    except BlockingIOError:
        return  # nobody has
    for line in lines:
        try:
            pid, began = line.split()
            process = psutil.Process(int(pid))
            if abs(process.create_time() - float(began)) < SAME_SECONDS:
                seen.setdefault(process.pid, process)
        except (psutil.Error, ValueError):
            continue  # it has ended, or the pipe was full and its line is none


def see_strays(parent: int, mark: str, seen: Seen) -> None:
    """Add whoever has the mark, or is in the session that `parent` leads or led, but for these two processes."""
    name, _, value = mark.partition("=")
    for process in psutil.process_iter():
        if process.pid in (parent, os.getpid()) or process.pid in seen:
            continue
        try:
            if os.getsid(process.pid) == parent or process.environ().get(name) == value:
                seen[process.pid] = process
        except (psutil.Error, OSError):
            continue  # it has just ended, or is none of this user's


def end_all(parent: int, mark: str, seen: Seen, spared: set[int]) -> None:
    """Kill all in `seen`, and who else belongs to them, until nobody is left; never anyone `spared`, by pid."""
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
                process.kill()  # psutil makes sure that the pid is still that process's
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
