"""A child's tie to its supervisor: standard input. A line `stop` asks it to end; the end of the pipe means it must."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable

from protocol.errors import UserError

SUCCESS, FAILURE, USER_ERROR = 0, 1, 2


def run_child(name: str, work: Callable[[], None], on_stop: Callable[[], None]) -> None:
    """Run `work` and exit the process: 0 when it is done, 2 with one line on a `UserError`, 1 with a traceback.

    `on_stop` is called, in another thread, when the supervisor asks for the end or is gone. The signals that a
    terminal sends to everything in it are left to the supervisor.
    """
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(on_stop,), daemon=True, name="lifeline").start()
    code = FAILURE
    try:
        work()
        code = SUCCESS
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        code = USER_ERROR
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without waiting for a library's threads, or for the lifeline's


def _watch(on_stop: Callable[[], None]) -> None:
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as pipe:
        while (line := pipe.readline()) and line.strip() != b"stop":
            pass
    on_stop()
