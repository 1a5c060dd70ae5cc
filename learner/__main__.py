"""`python -m learner`: the learner's process, a child of launch.py.

What it has to tell goes to standard output, one JSON object a line.
"""

import argparse
import json
import os
import resource
import sys
import threading
from contextlib import suppress

from learner.process import run_learner
from learner.supervision import Supervision
from protocol.events import Event, to_line
from protocol.execution import Execution
from protocol.keys import learner_key
from protocol.lifeline import ACTORS, EXECUTION, KEY, LOST, await_line, run_child
from protocol.offspring import end_siblings
from protocol.records import typed
from rundir.config import RunConfig
from rundir.names import CONFIG

MAX_FILES = 65_536  # A learner may have so many files open where the system sets no limit.


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m learner", description=__doc__)
    parser.add_argument("--run-dir", help="for people who list processes: which run this is")
    parser.add_argument(
        "--keyed", action="store_true", help="standard input goes on with the key of those launch.py starts"
    )
    arguments = parser.parse_args()
    execution = typed(json.loads(await_line(EXECUTION)), Execution, "the execution")
    key = learner_key(await_line(KEY).split()) if arguments.keyed else None
    _allow_many_connections()
    parent = os.getppid()
    lock = threading.Lock()

    def report(event: Event) -> None:
        with lock:
            sys.stdout.write(to_line(event) + "\n")
            sys.stdout.flush()

    supervision = Supervision(report)

    def work() -> None:
        config = RunConfig.load(execution.run_dir / CONFIG)
        try:
            run_learner(config, execution, supervision, key)
        finally:
            if os.getppid() != parent:  # the launcher was killed, and nobody else sees to its children
                end_siblings(parent)

    def listen(words: list[str]) -> None:
        if words[0] == LOST:
            supervision.lost.put(int(words[1]))
        elif words[0] == ACTORS:
            supervision.wanted.put(set(words[1:]))
        else:
            supervision.stop.set()

    run_child("learner", work, on_word=listen)


def _allow_many_connections() -> None:
    """Every actor's connection is an open file, and the usual limit is 1024 of them, or 256."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS has a lower limit than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES if hard == resource.RLIM_INFINITY else hard, hard))


if __name__ == "__main__":
    main()
