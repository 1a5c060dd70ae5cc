"""`python -m actors --connect ADDRESS`: one actor process, on the learner's machine or on another.

Started by launch.py it has its name from there, and ends with its launcher. Started by hand it ends with the run, or
by a signal.
"""

import argparse
import os
import re
import secrets
import signal
import socket
import threading
from pathlib import Path
from types import FrameType

from actors.actor import Actor
from protocol.execution import title_of
from protocol.keys import actor_key, read_actor
from protocol.lifeline import KEY, SUCCESS, await_line, leave, run_child, run_to_the_end
from protocol.offspring import end_offspring
from protocol.output import complain
from protocol.remote import check_tcp

STOP_SECONDS = 2.0  # An actor that is to end has so long to close its environments.
_stop = threading.Event()
_signals: list[int] = []  # The signals that asked the process to end.


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m actors", description=__doc__)
    parser.add_argument("--connect", required=True, help="address of the learner, such as tcp://192.168.1.2:5555")
    parser.add_argument("--key", type=Path, help="file that `launch.py keys` made; none for a learner without keys")
    parser.add_argument(
        "--trust", action="store_true", help="import what the learner names, though without a key anybody may be it"
    )
    parser.add_argument("--keyed", action="store_true", help="launch.py tells the run's key at standard input")
    parser.add_argument("--name", help="what launch.py calls the actors that it starts")
    parser.add_argument("--life", type=int, default=0, help="number that launch.py gives to each process it starts")
    arguments = parser.parse_args()
    if arguments.name is not None:
        key = actor_key(await_line(KEY).split()) if arguments.keyed else None
        run_child(
            title_of(arguments.name),
            work=lambda: Actor(arguments.name, arguments.connect, key, life=arguments.life, stop=_stop).run(),
            on_word=lambda _: _end(),
        )
    name = _unique_name()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_by)
    run_to_the_end(f"actor {name}", lambda: _join(name, arguments.connect, arguments.key, arguments.trust))


def _join(name: str, address: str, key: Path | None, trust: bool) -> None:
    """Take part in a run that was started elsewhere."""
    check_tcp(address, "--connect")

    def say(text: str) -> None:
        complain(f"actor {name}: {text}")

    trust = trust or key is not None  # Only the learner that the key was made for has the other half.
    Actor(name, address, read_actor(key) if key else None, say, stop=_stop, trust=trust).run()
    if _signals:  # end as they end a process, but for what its environments have started
        end_offspring()
        signal.signal(_signals[0], signal.SIG_DFL)
        os.kill(os.getpid(), _signals[0])


def _end() -> None:
    """Let the actor close its environments, and end it if one of them hangs. The learner has all that counts."""
    _stop.set()
    threading.Timer(STOP_SECONDS, leave, [SUCCESS]).start()


def _end_by(number: int, frame: FrameType | None) -> None:
    _signals.append(number)
    _end()


def _unique_name() -> str:
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:48] or "actor"
    return f"{host}-{secrets.token_hex(4)}"
