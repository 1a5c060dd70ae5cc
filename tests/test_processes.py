"""Processes of the supervisor, where they end by themselves just then."""

import subprocess
import sys

from supervisor.processes import kill


def test_a_process_that_has_just_ended_may_bekilled() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    process.wait()
    process.returncode = None  # as another thread leaves it for a moment, which holds the lock while it waits
    with process._waitpid_lock:  # pyright: ignore[reportAttributeAccessIssue]
        assert process.poll() is None
        kill(process)
    process.returncode = 0
