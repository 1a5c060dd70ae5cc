"""Closing environments: whatever `close()` does, it changes nothing, and takes a bounded time."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import gymnasium

from actors.interrupts import let_users_interrupt
from protocol.lifeline import exit_at_once
from protocol.output import complain, flush_streams
from protocol.text import error_line

CLOSE_SECONDS = 2.0  # The first close() that hangs may take so long…
LEAST_SECONDS = 0.1  # …and each later one half of that, but never less than this.
AGAIN_SECONDS = 0.5  # A close() that goes on after it was interrupted is interrupted again after so long.

_told: set[str] = set()  # Complaints that were printed already.
_patience = CLOSE_SECONDS


class _Late(BaseException):
    """Raised in a close() that takes too long; no Exception, so that it is not caught there."""


def close_environment(env: gymnasium.Env) -> None:
    """Close `env`. An error is said once on standard error; a close() that hangs is said, and abandoned.

    Closing happens in the thread that stepped, which graphics and browsers need, where that can be interrupted: in the
    main thread, unless it hangs in C code. In another thread it can be abandoned only by leaving it to a third; a
    window, which must be closed where it was opened, is waited for.
    """
    try:
        if threading.current_thread() is threading.main_thread():
            in_time = _interrupted(env.close)
        elif getattr(env, "render_mode", None) == "human":
            env.close()
            in_time = True
        else:
            in_time = _left_to_a_thread(env.close)
    except BaseException as error:
        let_users_interrupt(error)
        _tell(f"raised {error_line(error)}")
        return
    if not in_time:
        global _patience
        _patience = max(LEAST_SECONDS, _patience / 2)
        _tell("did not return and was abandoned")


def end_if_stuck(code: int) -> threading.Timer:
    """End the process with `code` if it is still here when every close() should have come back.

    One that hangs in C code cannot be interrupted. For whoever has told all that there was to tell; cancel what is
    returned to go on.
    """
    flush_streams()
    timer = threading.Timer(3 * CLOSE_SECONDS, exit_at_once, [code])
    timer.daemon = True
    timer.start()
    return timer


def _interrupted(close: Callable[[], Any]) -> bool:
    """Close in this thread, the main one, with an alarm; returns whether it came back by itself."""
    closing = True

    def ring(number: int, frame: FrameType | None) -> None:
        if closing:
            raise _Late

    handler = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, _patience, AGAIN_SECONDS)
    try:
        try:
            close()
        finally:
            closing = False
    except _Late:
        return False
    finally:
        closing = False  # the alarm may have rung in the line above
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
    return True


def _left_to_a_thread(close: Callable[[], Any]) -> bool:
    """Close in a thread of its own; returns whether it came back. Raises what it raised."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            close()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True, name="close")
    thread.start()
    thread.join(_patience)
    if raised:
        raise raised[0]
    return not thread.is_alive()


def _tell(what: str) -> None:
    if what not in _told and len(_told) < 20:
        _told.add(what)
        complain(f"an environment's close() {what}; what it held may be left behind")
