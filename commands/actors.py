"""`actors RUN_DIR --count N`: how many actors a run has from now on. The numbers stay the same."""

import fcntl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from commands.helpers.command_line import parse
from protocol.errors import UserError
from protocol.files import replace_file
from protocol.lifeline import SUCCESS
from rundir.run import Run
from supervisor.requests import request_path

ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class ActorsCommand:
    """Give a run that is under way another number of actors.

    Example:
      python launch.py actors runs/CartPole-v1-seed0 --count 8
    """

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Directory of the run."""
    count: int
    """Actor processes from now on."""


def main(arguments: list[str]) -> int:
    """Leave the request where the run's supervisor finds it, and wait until it has followed; returns the exit code."""
    command = parse(ActorsCommand, "launch.py actors", arguments)
    if not _is_running(command.run_dir):
        raise UserError(f"actors {command.run_dir}: no run is under way here")
    Run.open(command.run_dir).config.experiment.check_actors("--count", command.count)
    request = request_path(command.run_dir)
    replace_file(request, str(command.count))
    deadline = time.monotonic() + ANSWER_SECONDS
    while request.exists():
        if time.monotonic() > deadline or not _is_running(command.run_dir):
            request.unlink(missing_ok=True)
            raise UserError(f"actors {command.run_dir}: the run does not answer (one --in-process cannot)")
        time.sleep(0.05)
    print(f"{command.run_dir} now has {command.count} actors")
    return SUCCESS


def _is_running(run_dir: Path) -> bool:
    try:
        with open(run_dir / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
