"""`python -m learner`: the learner's process, a child of launch.py.

What it has to tell goes to standard output, one JSON object a line.
"""

import argparse
import json
import os
import sys
import threading

from learner.launcher import Launcher
from learner.process import run_learner
from protocol.events import Event, to_line
from protocol.execution import Execution
from protocol.keys import learner_key
from protocol.lifeline import ACTORS, EXECUTION, KEY, LOST, await_line, run_child
from protocol.limits import allow_many_files
from protocol.offspring import end_siblings
from protocol.records import typed
from rundir.config import RunConfig
from rundir.names import CONFIG


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m learner", description=__doc__)
    parser.add_argument("--run-dir", help="for people who list processes: which run this is")
    parser.add_argument(
        "--keyed", action="store_true", help="standard input goes on with the key of those launch.py starts"
    )
    arguments = parser.parse_args()
    execution = typed(json.loads(await_line(EXECUTION)), Execution, "the execution")
    key = learner_key(await_line(KEY).split()) if arguments.keyed else None
    allow_many_files()
    parent = os.getppid()
    lock = threading.Lock()

    def report(event: Event) -> None:
        with lock:
            sys.stdout.write(to_line(event) + "\n")
            sys.stdout.flush()

    launcher = Launcher(report)

    def work() -> None:
        config = RunConfig.load(execution.run_dir / CONFIG)
        try:
            run_learner(config, execution, launcher, key)
        finally:
            if os.getppid() != parent:  # the launcher was killed, and nobody else sees to its children
                end_siblings(parent)

    def listen(words: list[str]) -> None:
        if words[0] == LOST:
            launcher.lost.put(int(words[1]))
        elif words[0] == ACTORS:
            launcher.wanted.put(set(words[1:]))
        else:
            launcher.stop.set()

    run_child("learner", work, on_word=listen)


if __name__ == "__main__":
    main()
