"""`dashboard RUN_DIR …`: runs in the browser, live or finished, one or several to compare."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from commands.helpers.command_line import parse
from protocol.errors import UserError
from protocol.lifeline import SUCCESS
from rundir.run import find_runs


@dataclass(frozen=True)
class DashboardCommand:
    """Serve a page about runs on this machine's loopback: curves, actors, lanes and events, live or afterwards.
    Runs that are seeds of one experiment are shown as their mean ± standard deviation, or singly. A run that appears
    in a folder later is shown without a restart.

    Examples:
      python launch.py dashboard runs/CartPole-v1-seed0
      python launch.py dashboard runs                       # all that there are and will be
    """

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR [RUN_DIR ...]")]
    """Directories of runs, or folders that hold some at any depth."""
    port: int = 0
    """Port to listen on, of 127.0.0.1; 0 takes any free one."""


def main(arguments: list[str]) -> int:
    """Serve until interrupted; returns the exit code."""
    command = parse(DashboardCommand, "launch.py dashboard", arguments)
    if not command.run_dirs:
        raise UserError("name the directory of at least one run")
    if not (command.port == 0 or 1024 <= command.port <= 65535):
        raise UserError(f"--port must lie between 1024 and 65535, or be 0, not {command.port}")
    find_runs(command.run_dirs)  # raises where there is none
    from dashboard.server import serve

    serve(list(command.run_dirs), command.port, lambda address: print(f"{address}  (Ctrl-C ends it)", flush=True))
    return SUCCESS
