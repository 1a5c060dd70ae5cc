"""One of many runs: `launch.py` as a child process. It saves and ends when its parent ends, however that ends."""

import os
import signal
import sys
import threading

import launch


def main() -> None:
    lifeline = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # An environment may read its standard input.
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True, name="lifeline").start()
    launch.run(sys.argv[1:])


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
