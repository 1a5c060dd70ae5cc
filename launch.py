"""The entry point: `python launch.py --actors 8` trains, `python launch.py eval RUN_DIR` evaluates."""

import importlib
import io
import os
import signal
import sys
from typing import NoReturn

from protocol.process import ONE_THREAD, as_typed, fix_hash_seed, seek_user_modules_last

if __name__ == "__main__":
    fix_hash_seed()  # Environments may run in this process.
os.environ.update(ONE_THREAD)  # NumPy reads these when it is imported.

from commands import COMMANDS, HELP
from protocol.errors import UserError
from protocol.lifeline import SUCCESS, USER_ERROR, ends_of_a_run, exit_at_once, leave, tell_who_exits
from protocol.output import complain, keep_output, say
from protocol.text import one_line, printable

NEEDED = ("gymnasium", "msgpack", "msgpack_numpy", "numpy", "psutil", "rich", "safetensors", "tyro", "zmq")

seek_user_modules_last()  # A user's module may be called like one of ours.


def main(arguments: list[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # None where it was closed
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a dash is no reason to end a run
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "train"
    try:
        _check_arguments(arguments)
        if arguments == ["--version"]:
            say(importlib.import_module("commands.helpers.versions").version_line())
            return SUCCESS
        if command not in COMMANDS:
            raise UserError(f"there is no command {command}; there are {', '.join(COMMANDS)}, each with --help")
        if command not in ("train", "sweep") or HELP.intersection(arguments):
            for number in (signal.SIGINT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)  # nothing to save: end at once, and quietly
        else:  # Until the supervisor takes over there is nothing to save, and no child to end.
            for number in ends_of_a_run():
                signal.signal(number, lambda *_: exit_at_once(SUCCESS))
        return importlib.import_module(f"commands.{command.replace('-', '_')}").main(arguments)
    except UserError as error:
        for line in f"launch.py: {error}".splitlines():
            complain(printable(line))  # it may hold what somebody else wrote
        return USER_ERROR
    except OSError as error:
        if error.filename is None:
            raise
        # A path that was typed is too long, goes through a file, or is somebody else's.
        complain(f"launch.py: {one_line(as_typed(error.filename))}: {error.strerror}")
        return USER_ERROR
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        complain(
            f"launch.py: {sys.executable} has no {error.name}: activate the environment that this project is installed"
            " in (source .venv/bin/activate), or install it, as README.md says"
        )
        return USER_ERROR


def _check_arguments(arguments: list[str]) -> None:
    """Raise `UserError` on what no command can take."""
    for argument in arguments:
        if not argument:
            raise UserError("an argument is empty; is a variable of your shell not set?")
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(f"{one_line(argument)} is not UTF-8") from None


def run(arguments: list[str]) -> NoReturn:
    """Do what the command line says, and end this process."""
    keep_output()
    tell_who_exits()
    code = main(arguments)
    leave(code)  # threads of --in-process may be deep in MLX or in an environment; nothing is left to save


if __name__ == "__main__":
    run(sys.argv[1:])
