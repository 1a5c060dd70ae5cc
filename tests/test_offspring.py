"""Processes that environments start end with the process that steps these environments."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from launching import ROOT, wait_for
from marks import slow
from offspring import end_a_run


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        slow("session", "normal"),
        slow("mp-fork", "in-process"),
        ("daemon", "launcher and actors"),
        slow("group", "int"),
        slow("mp-spawn", "actor"),
        slow("fork", "all"),
        slow("shell", "in-process kill"),
    ],
)
def test_no_process_that_an_environment_started_survives(tmp_path: Path, kind: str, end: str) -> None:
    left = end_a_run(tmp_path / "run", kind, end)
    for process in left:
        process.kill()
    assert not left


def test_an_environment_without_processes_has_no_keeper() -> None:
    from actors.environment import make_environment
    from protocol import offspring
    from protocol.experiment import Experiment

    before = psutil.Process().children()
    make_environment(Experiment()).close()
    assert offspring._keeper is None or before
    assert [child for child in psutil.Process().children() if "keeper.py" in " ".join(child.cmdline())] == [
        child for child in before if "keeper.py" in " ".join(child.cmdline())
    ]


def test_what_one_process_leaves_is_none_of_another_that_it_started(tmp_path: Path) -> None:
    """All descendants inherit a process's mark, also those that run environments themselves."""
    code = """
import os, subprocess, sys, time
from protocol import offspring
offspring.watch()
sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
inner = (
    "import subprocess, sys\\nfrom protocol import offspring\\noffspring.watch()\\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\\noffspring.end_offspring()"
)
subprocess.run([sys.executable, "-c", inner], check=True)
time.sleep(1)
assert sleeper.poll() is None, "another process's end ended it"
offspring.end_offspring()
assert sleeper.wait(60) == -9
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_fork_is_known_before_its_parent_can_be_killed(depth: int) -> None:
    """A fork does not inherit the mark that its parent set for itself, and the keeper looks only at intervals."""
    code = """
import os, signal, sys, time
from protocol import offspring
offspring.watch()
told, tell = os.pipe()
if os.fork() == 0:
    if sys.argv[1] == "2" and os.fork() != 0:
        os._exit(0)
    os.setsid()
    os.write(tell, b"%d" % os.getpid())
    time.sleep(1000)
print(os.read(told, 20).decode(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", code, str(depth)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        fork = int(process.stdout.readline())
    wait_for(lambda: not psutil.pid_exists(fork) or psutil.Process(fork).status() == psutil.STATUS_ZOMBIE)
