"""Serves the run's page for the browser in a child process, whose failure does not affect the run."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from protocol.output import say
from rundir.names import LOGS
from supervisor.process_workers import end_child, last_line, start_child
from supervisor.workers import END_SECONDS


@contextmanager
def dashboard(run_dir: Path) -> Iterator[None]:
    """Serve the page as long as the context lasts, and print its address once it is known."""
    log = run_dir / LOGS / "dashboard.log"
    try:
        process = start_child("dashboard", ["--run-dir", str(run_dir)], log, stdout=subprocess.PIPE)
    except OSError as error:
        say(f"warning: no dashboard: {error}")
        yield
        return
    over = threading.Event()
    teller = threading.Thread(target=_tell, args=(process, log, over), daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        end_child(process, END_SECONDS)
        teller.join()


def _tell(process: subprocess.Popen[bytes], log: Path, over: threading.Event) -> None:
    assert process.stdout is not None
    with process.stdout, suppress(OSError):  # Nobody reads this process's output any more.
        for line in process.stdout:
            say(f"dashboard: {line.decode().strip()}")
        process.wait()
        if not over.is_set():
            say(f"warning: the dashboard has ended: {last_line(log)}; training goes on")
