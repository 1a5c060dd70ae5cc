"""Turns the signals that end a run into events."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from protocol.events import SignalReceived
from protocol.lifeline import ends_of_a_run
from supervisor.workers import Events


@contextmanager
def signals(events: Events) -> Iterator[None]:
    """Turn INT, TERM and HUP into events. A background job may start with an ignored SIGINT, so INT is always set."""

    def handle(number: int, frame: FrameType | None) -> None:
        events.put(SignalReceived(signal.Signals(number).name))

    before = {number: signal.signal(number, handle) for number in ends_of_a_run()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
