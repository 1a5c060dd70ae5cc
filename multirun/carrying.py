"""Carries out many runs, as many at a time as the machine bears, and shows them."""

import queue
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from multirun.jobs import Ending, Jobs
from multirun.machine import gpu_for_another, memory_for_another
from multirun.progress import Progress
from multirun.view import View
from protocol.events import SignalReceived
from protocol.text import counted
from supervisor.signals import signals
from supervisor.workers import Events

LOOK_SECONDS = 0.5  # Seconds between two looks at the files of all runs.


class Work(Protocol):
    """What is to be run. It decides which run is next; nothing that it decides may depend on time."""

    def next_run(self) -> Progress | None:
        """The next run to be started; None while there is none."""
        ...

    def take(self, ending: Ending) -> None:
        """A run has ended."""
        ...

    def look(self) -> Collection[Path]:
        """After a look at the files of all runs under way: those that are not worth going on, or being begun."""
        ...

    @property
    def over(self) -> bool:
        """Whether everything has ended."""
        ...


def carry_out(work: Work, jobs: Jobs, parallel: int, view: View) -> bool:
    """Run until all work is over, or a signal asks to stop; returns whether it is over."""
    events: Events = queue.SimpleQueue()
    watched: dict[Path, Progress] = {}
    following: Progress | None = None  # the next run, which waits for room
    stopping = False
    next_look = 0.0  # time.monotonic()
    with signals(events), view:
        try:
            while jobs.running or not (stopping or work.over):
                for ending in jobs.poll():
                    watched[ending.run_dir].look()
                    watched.pop(ending.run_dir).state = ending.state
                    view.tell(ending)
                    work.take(ending)
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + LOOK_SECONDS
                    jobs.measure()
                    for progress in watched.values():
                        progress.look()
                    useless = work.look()
                    for run_dir in jobs.running:
                        if run_dir in useless:
                            jobs.stop(run_dir)
                    if following is not None and following.run_dir in useless:
                        following = None
                    view.tick()
                while not stopping and len(jobs.running) < parallel:
                    following = following or work.next_run()
                    if following is None or not _room(jobs, list(watched.values())):
                        break
                    watched[following.run_dir] = following
                    following.state = "starting"
                    jobs.start(following.run_dir)
                    following = None
                with suppress(queue.Empty):
                    event = events.get(timeout=0.1)
                    if isinstance(event, SignalReceived):
                        stopping = True
                        view.say(f"{event.name}: saving and ending {counted(len(jobs.running), 'run')}")
                        for run_dir in jobs.running:
                            jobs.stop(run_dir, again=True)
        finally:
            jobs.end()
    return work.over


def _room(jobs: Jobs, watched: list[Progress]) -> bool:
    """Whether another run fits into memory. What a run needs is known once one has completed an iteration."""
    if not watched:
        return True
    newest = [progress.rows[-1] for progress in watched if progress.rows]
    return jobs.need > 0 and memory_for_another(jobs.need, jobs.memory) and gpu_for_another(len(watched), newest)
