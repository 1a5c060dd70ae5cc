"""Processes of the supervisor and their logs."""

import subprocess
import sys
from pathlib import Path

from supervisor.process_workers import MAX_LAST_WORDS, MAX_LOG, cut_log, kill, last_line, size_of


def test_a_process_that_has_just_ended_may_be_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    process.wait()
    # Another thread that waits for the process holds the lock, and leaves this state for a moment.
    process.returncode = None
    with process._waitpid_lock:  # pyright: ignore[reportAttributeAccessIssue]
        assert process.poll() is None
        kill(process)
    process.returncode = 0


def test_the_last_line_is_one_of_this_process_and_of_no_earlier_one(tmp_path: Path) -> None:
    log = tmp_path / "actor-0.log"
    log.write_text("of an earlier life\n")
    start = size_of(log)
    assert last_line(log, start) == ""
    with open(log, "a") as file:
        file.write("Traceback\nValueError: \x1b[31mbroken\n\n")
    assert last_line(log, start) == "ValueError: ?[31mbroken"


def test_a_log_that_is_gone_or_was_cut_is_no_error(tmp_path: Path) -> None:
    log = tmp_path / "actor-0.log"
    assert (size_of(log), last_line(log, 10)) == (0, "")
    cut_log(log)
    log.write_text("after it was cut\n")
    assert last_line(log, 10_000) == "after it was cut"
    log.write_text(f"{'x' * 10 * MAX_LAST_WORDS}\nthe end\n")
    assert last_line(log) == "the end"


def test_a_log_is_bounded_on_disk_and_keeps_its_end_while_a_process_writes_to_it(tmp_path: Path) -> None:
    log = tmp_path / "actor-0.log"
    with open(log, "ab", buffering=0) as writer:
        for i in range(200_000):
            writer.write(f"line {i} of very many\n".encode())
            if i % 20_000 == 0:
                cut_log(log)
        cut_log(log)
        writer.write(b"the last\n")
    assert log.stat().st_size < MAX_LOG
    lines = log.read_text().splitlines()
    assert lines[0].startswith("(what was here before")
    assert lines[-2:] == ["line 199999 of very many", "the last"]
