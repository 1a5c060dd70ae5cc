"""Telling a user's Ctrl-C from a KeyboardInterrupt that an environment raises."""

import signal
import threading


def let_users_interrupt(error: BaseException) -> None:
    """Raise `error` if it may be a user's Ctrl-C: Python raises that in the main thread, unless a handler of ours or
    nobody takes SIGINT. Any other KeyboardInterrupt is raised by an environment, and a fault like any other."""
    raised_by_python = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if (
        isinstance(error, KeyboardInterrupt)
        and raised_by_python
        and threading.current_thread() is threading.main_thread()
    ):
        raise error
