"""The run directory that `train` writes: its name, and who may go on in it."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands.helpers.versions import installed_versions
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.files import read_rows, replace_file
from protocol.trust import sign
from rundir.checkpoint import load_newest_checkpoint
from rundir.config import RunConfig
from rundir.initial import Initial
from rundir.names import CHECKPOINTS, CONFIG, EVENTS, EXECUTION, INITIAL, LOGS, METRICS


def env_name(experiment: Experiment) -> str:
    """Its environment in the name of a directory: without the module, and without a slash."""
    return experiment.env.rpartition(":")[2].replace("/", "-")


def run_name(experiment: Experiment) -> str:
    """The name of its run directory, after environment and seed."""
    return f"{env_name(experiment)}-seed{experiment.seed}"


def fresh_run_dir(name: str) -> Path:
    """A directory below `runs/` that is not there yet, called `name` or much like it."""
    taken = 1
    path = Path("runs") / name
    while path.exists():
        taken += 1
        path = Path("runs") / f"{name}-{taken}"
    return path


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory, which is made if it is not there, for this process alone. Raises `UserError`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / ".lock", "a")  # noqa: SIM115 - held until the context is over
    except OSError as error:
        raise UserError(f"the run directory {directory} cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"the run directory {directory} is in use by another launch.py") from None
        yield


@contextmanager
def claimed(
    run_dir: Path, *, fresh: bool, config: RunConfig, kept: dict[str, Any], initial: Initial | None = None
) -> Iterator[None]:
    """Hold the run directory for this process alone; a new one that comes to nothing is removed again. `kept` is how
    the run is executed, for the next time; `initial` is what a new run begins from."""
    created = not run_dir.exists()
    if not fresh:
        _refuse_links(run_dir)
    with locked(run_dir):
        if fresh and (run_dir / CONFIG).exists():
            raise UserError(f"{run_dir} already holds a run; continue it with --resume, or choose another")
        try:
            if initial is not None:
                initial.save(run_dir)  # Before the configuration: with that, --resume takes the run.
            if fresh or RunConfig.load(run_dir / CONFIG) != config:
                config.save(run_dir / CONFIG, installed_versions())
            (run_dir / LOGS).mkdir(exist_ok=True)
            replace_file(run_dir / EXECUTION, json.dumps(kept) + "\n")
        except OSError as error:
            raise UserError(f"the run directory {run_dir} cannot be written: {error.strerror}") from None
        sign(run_dir, config.experiment)  # it was typed, signed already, or trusted by a flag
        try:
            yield
        except UserError:
            if fresh and not (run_dir / CHECKPOINTS).exists():
                (run_dir / CONFIG).unlink()
                (run_dir / EXECUTION).unlink()
                (run_dir / INITIAL).unlink(missing_ok=True)
                if created:
                    shutil.rmtree(run_dir)
            raise


def _refuse_links(run_dir: Path) -> None:
    """Raise `UserError` where going on with a run, which may be a stranger's, would write elsewhere, or never end."""
    for path in [*run_dir.iterdir(), *run_dir.glob("logs/*")]:
        if path.is_symlink():
            raise UserError(f"{path} is a link; what a run writes must lie in its own directory")
        if not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is neither a file nor a directory; no run has made it")


def refuse_to_begin_anew(run_dir: Path) -> None:
    """Raise `UserError` where what was saved of a run cannot be read any more, so that it would be done all over."""
    events = list(read_rows(run_dir / EVENTS, ["time"]))
    saved = any(row.get("event") == "checkpoint" for row in events)  # no disk may have had room for one
    trained = next(read_rows(run_dir / METRICS, ["policy_version"]), None) is not None
    if not (saved or (trained and not events)):
        return
    if load_newest_checkpoint(run_dir / CHECKPOINTS, lambda _: None) is None:
        raise UserError(
            f"{run_dir / CHECKPOINTS} has no checkpoint that can be read; --begin-anew lets the run begin again from"
            " nothing"
        )
