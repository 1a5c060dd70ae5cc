"""Only one thread of one process uses MLX, because streams and graphs belong to the thread that made them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ROOT, SMALL, summary_of

# This runs launch.py, and prints how often each thread called a function of mlx.core.
SPY = """
import json
import sys
import threading
from collections import Counter

import learner.process

calls = Counter()
prepare_device = learner.process.prepare_device


def watched(function):
    def call(*args, **kwargs):
        calls[threading.current_thread().name] += 1
        return function(*args, **kwargs)

    return call


def prepare(*args):
    found = prepare_device(*args)
    import mlx.core as mx

    for name in dir(mx):
        function = getattr(mx, name)
        if type(function).__name__ == "nb_func":
            setattr(mx, name, watched(function))
    return found


learner.process.prepare_device = prepare
from launch import main

code = main(sys.argv[1:])
print(json.dumps(calls))
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--recurrent-size", 8], ["--schedule", "async"]], ids=["", "gru", "async"])
def test_only_the_learners_thread_uses_mlx(tmp_path: Path, flags: list) -> None:
    words = ["--in-process", "--run-dir", tmp_path / "run", *SMALL, "--actors", 2, "--eval-every", 2, *flags]
    words += ["--checkpoint-every", 1, "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", SPY, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    calls = json.loads(done.stdout.splitlines()[-1])
    assert summary_of(tmp_path / "run")["status"] == "finished"
    (count,) = calls.values()
    assert "MainThread" not in calls
    assert count > 100
