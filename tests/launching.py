"""Run launch.py as a user does, for the end-to-end tests."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

ROOT = Path(__file__).parent.parent
# Warnings are errors, except one of SWIG: if that is an error, Box2D crashes.
WARNINGS = ["-W", "error", "-W", "ignore:builtin type:DeprecationWarning"]
LAUNCH = [sys.executable, *WARNINGS, str(ROOT / "launch.py")]
TIMEOUT = 300.0  # Seconds that a test waits for anything, far more than the slowest machine takes.

T = TypeVar("T")

# Four small iterations with eight lanes.
SMALL = "--num-envs 16 --lane-size 2 --rollout-length 32 --total-steps 2048 --minibatches 4 --epochs 2".split()  # noqa: SIM905


def heed_hangups() -> None:
    """Let SIGHUP end this process. Without this, a process started by tests under nohup would ignore the signal."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def launch(*flags: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `python launch.py FLAGS…` to its end."""
    return run_python(ROOT / "launch.py", *flags, environ=environ)


def run_python(*words: object, environ: dict[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS…` to its end, with warnings as errors; `environ` is added to the environment variables."""
    return subprocess.run(
        [sys.executable, *WARNINGS, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=os.environ | environ,
        check=False,
    )


def train(run_dir: Path, *flags: object, **environ: str) -> dict[str, Any]:
    """Train to the end, on the CPU unless `flags` name a device; returns the summary."""
    done = launch("--run-dir", run_dir, *on_cpu(flags), **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return summary_of(run_dir)


def on_cpu(flags: Sequence[object]) -> list[object]:
    """`flags` with the device CPU, unless they name one: a new run would take a GPU where there is one."""
    return [*flags] if "--device" in flags else [*flags, "--device", "cpu"]


@contextmanager
def running(run_dir: Path, *flags: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start `python launch.py`; the process is ended with the context, if it has not ended before."""
    arguments = [*LAUNCH, "--run-dir", str(run_dir), *map(str, on_cpu(flags))]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=TIMEOUT)


def stop(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> str:
    """Ask a run to save and end, and check that its exit code is 0; returns what it printed."""
    process.send_signal(number)
    return output_of(process)


def output_of(process: subprocess.Popen[str]) -> str:
    """Wait for a run to end by itself, and check that its exit code is 0; returns what it printed."""
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    return output


def wait_for(condition: Callable[[], T | None], process: subprocess.Popen[Any] | None = None) -> T:
    """Call `condition` until its value is true; returns that value. Fails if `process`, if given, ends first."""
    deadline = time.monotonic() + TIMEOUT
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        assert process is None or process.poll() is None, "the run ended first"
        time.sleep(0.02)
    return value


def together(*calls: Callable[[], T], at_once: int = 2) -> list[T]:
    """The results of `calls`, of which at most `at_once` run at the same time."""
    with ThreadPoolExecutor(at_once) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def free_port() -> int:
    """A port of this machine that is free, and below the ports that systems assign to outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def children(process: psutil.Process, module: str) -> list[psutil.Process]:
    """The child processes of a launcher that run `module`."""
    found = []
    for child in process.children():
        with suppress(psutil.Error):  # The child has just ended.
            found += [child] if module in child.cmdline() else []
    return found


def summary_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics rows so far. While a run is under way, its last line may be incomplete and is then left out."""
    text = (run_dir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
