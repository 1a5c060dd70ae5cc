"""A child's tie to its supervisor: standard input, a line for each thing to know; its end means that of the child.

A learner is first told `execution JSON`, and whoever is of a run with a key `key WORD…`. Later, `stop` asks the learner
to save and end; `lost LIFE` tells it that an actor's process is no more; `actors NAME…` tells it which actors there
are, or will be again.
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
    """What the supervisor says after `word`, which it says first; for a child that is about to call `run_child`. Ends
    the process where the supervisor is gone."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as pipe:  # no buffer may take what follows
        said, _, rest = pipe.readline().decode().partition(" ")
    if said != word:
        leave(SUCCESS)
    return rest


def run_child(name: str, work: Callable[[], None], on_word: Callable[[list[str]], None]) -> NoReturn:
    """Run `work` as a child of the supervisor, and exit the process.

    `on_word` is called, in another thread, with the words of each line that the supervisor sends, and with `stop` when
    it is gone. The signals that a terminal sends to everything in it are left to the supervisor.
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
    """The signals that end a run. Whoever ignores SIGHUP (`nohup`) wants it to go on without its terminal; a shell's
    background job was given an ignored SIGINT without anyone wanting that."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]


def leave(code: int) -> NoReturn:
    """End this process and all that its environments have started, without waiting for a library's threads."""
    end_offspring()
    trace.flush()
    flush_streams()
    exit_at_once(code)


def tell_who_exits() -> None:
    """Let no environment end this process unseen: with `os._exit` it would look as if all had gone well.

    For a process that has no parent which watches it. Its forks, which end in this way, stay as they are.
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
