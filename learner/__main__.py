"""`python -m learner --run-dir DIR --listen ADDRESS --peers N`: the learner's process, a child of launch.py.

What it has to tell goes to standard output, one JSON object a line.
"""

import os

from protocol.threads import use_one_thread

use_one_thread(os.environ)  # before NumPy is imported: NumPy's results must not depend on --learner-threads

import argparse  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from contextlib import suppress  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from learner.config import RunConfig  # noqa: E402
from learner.process import run_learner  # noqa: E402
from learner.supervision import Supervision  # noqa: E402
from protocol.keys import learner_key  # noqa: E402
from protocol.lifeline import ACTORS, LOST, await_key, run_child  # noqa: E402
from protocol.offspring import end_siblings  # noqa: E402
from protocol.remote import RemoteAccess  # noqa: E402

MAX_FILES = 65_536  # of open files, where the system would allow any number


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m learner", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="directory with config.toml")
    parser.add_argument("--listen", required=True, help="address to bind for the actors of this machine")
    parser.add_argument("--listen-remote", help="address to bind for others")
    parser.add_argument("--keys", type=Path, help="directory of the keys that those need; without it, they need none")
    parser.add_argument("--supervised", action="store_true", help="those others are started by launch.py, too")
    parser.add_argument(
        "--keyed", action="store_true", help="standard input begins with the key of those launch.py starts"
    )
    parser.add_argument("--peers", type=int, required=True, help="how many will connect to share the lanes")
    parser.add_argument("--step-timeout", type=float, required=True, help="seconds without progress that are too many")
    arguments = parser.parse_args()
    key = learner_key(await_key()) if arguments.keyed else None
    _allow_many_connections()
    parent = os.getppid()
    lock = threading.Lock()

    def report(event: dict[str, Any]) -> None:
        with lock:
            sys.stdout.write(json.dumps(event) + "\n")
            sys.stdout.flush()

    supervision = Supervision(report)

    def work() -> None:
        config = RunConfig.load(arguments.run_dir / "config.toml")
        remote = None
        if arguments.listen_remote:
            remote = RemoteAccess(arguments.listen_remote, arguments.keys, arguments.supervised)
        timeout = arguments.step_timeout
        try:
            run_learner(config, arguments.run_dir, arguments.listen, remote, arguments.peers, timeout, supervision, key)
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
