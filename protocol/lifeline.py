"""A child's lifeline: its standard input, on which the supervisor sends instructions. When it ends, the child ends.

Each instruction is one line. A learner first gets `execution JSON`. Every child of a run with a key gets `key WORD…`.
Later, `stop` asks the learner to save and end; `lost LIFE` says that an actor's process has ended; `actors NAME…` lists
the actors that run or will be started again.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from protocol import trace
from protocol.errors import EnvironmentFault, UserError
from protocol.offspring import end_offspring
from protocol.output import STANDARD_ERROR, complain, errors, flush_streams, keep_output
from protocol.process import seek_user_modules_last

SUCCESS, FAILURE, USER_ERROR, ENVIRONMENT_ERROR = 0, 1, 2, 3
EXECUTION, KEY, STOP, LOST, ACTORS = "execution", "key", "stop", "lost", "actors"

exit_at_once = os._exit  # Kept, since an environment may replace os._exit.


def await_line(word: str) -> str:
    """Read the supervisor's next line, which begins with `word`, and return the rest of the line.

    A child calls this before `run_child`. Ends the process if the supervisor is gone.
    """
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as pipe:  # A buffer would take later lines.
        said, _, rest = pipe.readline().decode().partition(" ")
    if said != word:
        leave(SUCCESS)
    return rest


def run_child(name: str, work: Callable[[], None], on_word: Callable[[list[str]], None]) -> NoReturn:
    """Run `work` as a child of the supervisor, and exit the process.

    Another thread calls `on_word` with the words of each line that the supervisor sends, and with `stop` when the
    supervisor is gone. The child ignores the signals that a terminal sends to all its processes: the supervisor handles
    them.
    """
    seek_user_modules_last()
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    threading.Thread(target=_listen, args=(on_word,), daemon=True, name="lifeline").start()
    run_to_the_end(name, work)


def run_to_the_end(name: str, work: Callable[[], None]) -> NoReturn:
    """Run `work` and exit the process: 0 when it is done, 2 with one line on a `UserError`, 3 with one line on an
    `EnvironmentFault`, 1 with a traceback on anything else."""
    code = FAILURE
    keep_output()
    trace.join(name)
    try:
        work()
        code = SUCCESS
    except UserError as error:
        complain(f"{name}: {error}")
        code = USER_ERROR
    except EnvironmentFault as fault:
        complain(f"{name}: {fault}")
        code = ENVIRONMENT_ERROR
    except BaseException:
        traceback.print_exc(file=errors())
    leave(code)


def ends_of_a_run() -> list[signal.Signals]:
    """The signals that end a run. An ignored SIGHUP (`nohup`) stays ignored: the user wants the run to outlive its
    terminal. An ignored SIGINT does not: a shell ignores it for every background job, without the user's wish."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]


def leave(code: int) -> NoReturn:
    """End this process and all processes that its environments started, without waiting for a library's threads."""
    end_offspring()
    trace.flush()
    flush_streams()
    exit_at_once(code)


def tell_who_exits() -> None:
    """Replace `os._exit`, so that an environment cannot use it to end this process silently, as if with success.

    This is for a process without a parent that watches it. For its forks, `os._exit` works as before.
    """
    process = os.getpid()

    def exit_and_tell(status: int) -> NoReturn:
        if os.getpid() == process:
            with suppress(OSError):
                words = f"launch.py: an environment, or a module it needs, ended this process with os._exit({status})\n"
                os.write(STANDARD_ERROR, words.encode())
            status = status or FAILURE
        exit_at_once(status)

    os._exit = exit_and_tell


def _listen(on_word: Callable[[list[str]], None]) -> None:
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as pipe:
        while line := pipe.readline():
            on_word(line.decode().split())
    on_word([STOP])
