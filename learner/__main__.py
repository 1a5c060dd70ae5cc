"""`python -m learner --run-dir DIR --listen ADDRESS --peers N`: the learner's process, a child of launch.py.

What it has to tell goes to standard output, one JSON object a line.
"""

import os

from protocol.threads import use_one_thread

use_one_thread(os.environ)  # before NumPy is imported: NumPy's results must not depend on --learner-threads

import argparse  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from learner.config import RunConfig  # noqa: E402
from learner.process import run_learner  # noqa: E402
from learner.supervision import Supervision  # noqa: E402
from protocol.lifeline import LOST, run_child  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m learner", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="directory with config.json")
    parser.add_argument("--listen", required=True, help="address to bind")
    parser.add_argument("--peers", type=int, required=True, help="how many will connect to share the lanes")
    parser.add_argument("--step-timeout", type=float, required=True, help="seconds without progress that are too many")
    arguments = parser.parse_args()
    lock = threading.Lock()

    def report(event: dict[str, Any]) -> None:
        with lock:
            sys.stdout.write(json.dumps(event) + "\n")
            sys.stdout.flush()

    supervision = Supervision(report)

    def work() -> None:
        config = RunConfig.load(arguments.run_dir / "config.json")
        run_learner(config, arguments.run_dir, arguments.listen, arguments.peers, arguments.step_timeout, supervision)

    def listen(words: list[str]) -> None:
        if words[0] == LOST:
            supervision.lost.put(int(words[1]))
        else:
            supervision.stop.set()

    run_child("learner", work, on_word=listen)


if __name__ == "__main__":
    main()
