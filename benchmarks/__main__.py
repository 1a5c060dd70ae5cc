"""`python -m benchmarks NAME`: run one benchmark, print what it found, and write it down."""

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.arguments import Parser, positive
from benchmarks.report import publish
from protocol.errors import UserError
from protocol.lifeline import SUCCESS, USER_ERROR

NAMES = ("compare", "scores", "update", "actor", "wire", "curve", "scale", "model", "stragglers", "device", "startup")
INTERRUPTED = 130  # The exit code that a shell reports for SIGINT.


def main(words: list[str]) -> int:
    """Run as the command line says; returns the exit code."""
    parser = Parser(prog="python -m benchmarks", description=__doc__, epilog="Example: python -m benchmarks compare")
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name in NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        about = str(module.__doc__).partition(": ")[2]
        command = commands.add_parser(
            name, help=about, description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_argument("--repeats", type=positive(int), default=5, help="runs of each contender that count")
        command.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    try:
        arguments = parser.parse_args(words)
        report = arguments.run(arguments)
        settings = {k: v for k, v in vars(arguments).items() if k not in ("name", "run", "out", "python")}
        publish(report, settings, arguments.out)
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    return SUCCESS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
