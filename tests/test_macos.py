"""Behaviour of macOS that differs from Linux. The system's answers are simulated."""

import errno
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import wait_for

from commands.helpers import cores as machine
from learner import device
from protocol import limits
from supervisor import address, process_workers
from supervisor.address import SocketFolder
from supervisor.awake import awake

SYSCTL = """#!/bin/sh
case "$1" in
hw) printf 'hw.ncpu: 18\\nhw.nperflevels: {count}\\n' ;;
{levels}
*) echo "sysctl: unknown oid" >&2; exit 1 ;;
esac
"""
LEVEL = "{part}) printf '{part}.physicalcpu: {cores}\\n{part}.name: {name}\\n' ;;"


def program(folder: Path, name: str, text: str) -> None:
    """Write a program of this name into `folder`, which is first on the path."""
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulate a Mac; returns the folder of its programs."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize(
    ("levels", "cores"),
    [
        ([("Performance", 12), ("Efficiency", 4)], 12),
        ([("Super", 6), ("Performance", 12)], 18),
        ([("Super", 4), ("Performance", 8), ("Efficiency", 4)], 12),
    ],
)
def test_all_but_the_efficiency_cores_are_worth_an_actor(mac: Path, levels: list[tuple[str, int]], cores: int) -> None:
    cases = [LEVEL.format(part=f"hw.perflevel{i}", name=name, cores=count) for i, (name, count) in enumerate(levels)]
    program(mac, "sysctl", SYSCTL.format(count=len(levels), levels="\n".join(cases)))
    assert machine.performance_cores() == cores


def test_a_mac_with_an_intel_processor_says_nothing_of_its_levels(mac: Path) -> None:
    program(mac, "sysctl", SYSCTL.format(count=0, levels=""))
    assert machine.performance_cores() >= 1


def test_a_group_that_has_just_ended_may_refuse_to_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)

    def killpg(group: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "killpg", killpg)
    process_workers.kill(process)
    process.communicate(b"\n")


@pytest.mark.parametrize(("most", "expected"), [(10**6, 65_536), (12_288, 10_240), (5_000, 4_096), (100, 256)])
def test_a_limit_that_the_system_refuses_is_followed_by_a_lower_one(
    monkeypatch: pytest.MonkeyPatch, most: int, expected: int
) -> None:
    """macOS reports no limit, but accepts no more than `kern.maxfilesperproc`."""
    limit = [256]

    def setrlimit(which: int, values: tuple[int, int]) -> None:
        if values[0] > most:
            raise ValueError("current limit exceeds maximum limit")
        limit[0] = values[0]

    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit[0], resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    limits.allow_many_files()
    assert limit[0] == expected


def test_a_mac_is_kept_awake_as_long_as_a_run_lasts_and_no_longer(mac: Path) -> None:
    program(mac, "caffeinate", f'#!/bin/sh\necho "$@" > {mac}/said\nexec sleep 1000\n')
    with awake(True):
        wait_for(lambda: (mac / "said").exists() and (mac / "said").read_text())
        assert (mac / "said").read_text().split() == ["-i", "-w", str(os.getpid())]
    assert not subprocess.run(["pgrep", "-f", f"{mac}/caffeinate"], capture_output=True, check=False).stdout
    (mac / "said").unlink()
    with awake(False):
        pass
    assert not (mac / "said").exists()


def test_the_sockets_of_a_long_run_never_look_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS removes temporary files that were not touched for three days."""
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    folder = SocketFolder()
    try:
        (folder.path / "learner").touch()
        for path in (folder.path / "learner", folder.path / address.LOCK, folder.path):
            os.utime(path, (0, 0))
        assert folder.restore() is False
        assert folder.path.stat().st_mtime == 0
        now[0] += address.TOUCH_SECONDS
        assert folder.restore() is False
        paths = [folder.path, *folder.path.iterdir()]
        assert all(path.stat().st_mtime > 0 and path.stat().st_atime > 0 for path in paths)
    finally:
        folder.remove()


def test_the_learners_threads_are_told_to_accelerate(mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECLIB_MAXIMUM_THREADS", "1")  # Every process of a run starts with this value.
    monkeypatch.setattr(device, "use_device", lambda name: None)
    device.prepare_device("cpu", threads=3)
    assert os.environ["VECLIB_MAXIMUM_THREADS"] == "3"
