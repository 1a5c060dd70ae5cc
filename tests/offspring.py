"""Environments that start processes, and runs of them that end in every way: who is left?

`python -m tests.offspring --runs 100` ends that many runs, each another way, and prints how many processes are left.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import psutil
from gymnasium import spaces

sys.path.insert(0, str(Path(__file__).parent))
from launching import LAUNCH, ROOT, children

MARK = "OFFSPRING_TEST"  # Environment variable of every process of a test.
SLEEP = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100_000)"


def _serve(pipe: Any) -> None:
    while True:
        pipe.send(pipe.recv())


def _fork() -> None:
    if os.fork() == 0:
        time.sleep(100_000)


def _daemon() -> None:
    """Start a process that has forked twice and has a session of its own, so that it is no process's descendant."""
    code = f"import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        {SLEEP}"
    subprocess.run([sys.executable, "-c", code], check=True)


def _multiprocessing(method: str) -> None:
    import multiprocessing

    context = multiprocessing.get_context(method)
    _, theirs = context.Pipe()
    context.Process(target=_serve, args=(theirs,), daemon=True).start()  # pyright: ignore[reportAttributeAccessIssue]


KINDS: dict[str, Callable[[], object]] = {
    "group": lambda: subprocess.Popen([sys.executable, "-c", SLEEP], process_group=0),
    "session": lambda: subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True),
    "shell": lambda: subprocess.Popen("sleep 100000 | sleep 100000", shell=True),
    "fork": _fork,
    "daemon": _daemon,
    "mp-fork": lambda: _multiprocessing("fork"),
    "mp-spawn": lambda: _multiprocessing("spawn"),
}


class Parent(gymnasium.Env):
    """Starts a process of one kind in its constructor and never ends it."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, kind: str) -> None:
        self.started = KINDS[kind]()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.np_random.random(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return self.np_random.random(2, np.float32), 1.0, False, bool(self.np_random.random() < 0.1), {}


gymnasium.register("Parent-v0", entry_point="tests.offspring:Parent")

SMALL = ["--env", "tests.offspring:Parent-v0", "--num-envs", "2", "--lane-size", "1", "--rollout-length", "8"]
SMALL += ["--minibatches", "2", "--epochs", "1"]
ENDS = ["normal", "in-process", "int", "term", "actor", "actors"]
ENDS += ["launcher", "launcher and actors", "all", "in-process kill"]


def processes_of(mark: str) -> list[psutil.Process]:
    """The processes that are alive and have inherited `mark`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_a_run(run_dir: Path, kind: str, end: str, seconds: float = 120.0) -> list[psutil.Process]:
    """Train in an environment of this kind and end the run as `end` says; returns processes alive `seconds` later."""
    mark = str(run_dir)
    steps = 64 if end in ("normal", "in-process") else 100_000_000
    flags = [*SMALL, "--env-kwargs", f"kind={kind}", "--total-steps", str(steps), "--run-dir", mark, "--quiet"]
    flags += ["--in-process"] if end.startswith("in-process") else ["--actors", "2"]
    process = subprocess.Popen(
        [*LAUNCH, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {MARK: mark},
        cwd=ROOT,
    )
    rows = run_dir / "metrics.jsonl"
    while process.poll() is None and not (rows.exists() and rows.stat().st_size):
        time.sleep(0.01)
    launcher = psutil.Process(process.pid)
    victims: list[psutil.Process] = []
    if process.poll() is None:
        match end:
            case "int" | "term":
                process.send_signal(signal.SIGINT if end == "int" else signal.SIGTERM)
            case "actor" | "actors":
                victims = children(launcher, "actors")[: 1 if end == "actor" else None]
            case "launcher" | "in-process kill":
                victims = [launcher]
            case "launcher and actors":
                victims = [launcher, *children(launcher, "actors")]
            case "all":
                victims = [launcher, *launcher.children()]
    for victim in victims:
        with suppress(psutil.Error):
            victim.kill()
    if end in ("actor", "actors"):
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    process.wait(seconds)
    deadline = time.monotonic() + seconds
    while (left := processes_of(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def main() -> int:
    """End many runs; returns the exit code, which is 1 if any process is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds until all processes must have ended")
    arguments = parser.parse_args()
    chance, total = random.Random(arguments.seed), 0
    cases = [(kind, end) for kind in KINDS for end in ENDS]
    chance.shuffle(cases)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.runs):
            kind, end = cases[number % len(cases)]
            left = end_a_run(Path(folder) / str(number), kind, end, arguments.seconds)
            total += len(left)
            print(f"{number:>3}  {kind:<9}  {end:<20}  {len(left)} left", flush=True)
            for process in left:
                print(f"     {process}", flush=True)
                process.kill()
    print(f"{total} processes left by {arguments.runs} runs")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
