"""Running launch.py as a user does, for the end-to-end tests."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
# Warnings are errors, but for the one of SWIG, under which Box2D crashes when it is an error.
WARNINGS = ["-W", "error", "-W", "ignore:builtin type:DeprecationWarning"]
LAUNCH = [sys.executable, *WARNINGS, str(ROOT / "launch.py")]
TIMEOUT = 120  # seconds; a first run on a machine compiles MLX's kernels

# Four small iterations of eight lanes.
SMALL = "--num-envs 16 --lane-size 2 --rollout-length 32 --total-steps 2048 --minibatches 4 --epochs 2".split()  # noqa: SIM905


def launch(*flags: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """`python launch.py FLAGS…`, to its end."""
    return subprocess.run(
        [*LAUNCH, *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=os.environ | environ,
        check=False,
    )


def train(run_dir: Path, *flags: object, **environ: str) -> dict[str, Any]:
    """Train to the end; returns the summary."""
    done = launch("--run-dir", run_dir, *flags, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return summary_of(run_dir)


@contextmanager
def running(run_dir: Path, *flags: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """`python launch.py` under way; ended with the context, if it has not ended before."""
    arguments = [*LAUNCH, "--run-dir", str(run_dir), *map(str, flags)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=30)


def children(process: psutil.Process, module: str) -> list[psutil.Process]:
    """The child processes of a launcher that run `module`."""
    found = []
    for child in process.children():
        with suppress(psutil.Error):  # it has just ended
            found += [child] if module in child.cmdline() else []
    return found


def summary_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """The rows so far; of a run under way the last line may be half written, and a line over two pages is."""
    text = (run_dir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
