"""`python -m actors --connect ADDRESS --index I`: one actor process, here or on another machine."""

import os

from protocol.threads import use_one_thread

use_one_thread(os.environ)  # before NumPy is imported

import argparse  # noqa: E402

from actors.actor import Actor  # noqa: E402
from protocol.lifeline import SUCCESS, run_child  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m actors", description=__doc__)
    parser.add_argument("--connect", required=True, help="address of the learner, such as tcp://127.0.0.1:5555")
    parser.add_argument("--index", type=int, required=True, help="number of this actor, unique in its run")
    arguments = parser.parse_args()
    run_child(
        f"actor {arguments.index}",
        work=lambda: Actor(arguments.index, arguments.connect).run(),
        on_word=lambda _: os._exit(SUCCESS),  # an environment's step may hang; nothing is lost, the learner has it all
    )


if __name__ == "__main__":
    main()
