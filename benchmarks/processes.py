"""Start other processes: runs of launch.py, peers in their own interpreters, and workers that measure on request."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import UserError
from protocol.lifeline import USER_ERROR

ROOT = Path(__file__).parent.parent
END_SECONDS = 30.0  # Seconds that a process has to end after the request.
REST_SECONDS = 0.2  # Pause before a measurement, so that spinning threads of the previous one come to rest.


@dataclass(frozen=True)
class Outcome:
    """The result of one training run, as its user sees it."""

    env_steps: int
    seconds: float  # Training time, without imports.
    wall_seconds: float  # Time from the start of the process to its end.
    episode_return: float | None  # Mean of the last 100 episodes.

    @property
    def rate(self) -> float:
        """Env-steps per second."""
        return self.env_steps / self.seconds


def cores() -> int:
    """The number of cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def finished_run(flags: Sequence[str]) -> Iterator[Path]:
    """Run `python launch.py FLAGS…` to its end; yields the run's directory, which exists as long as the context."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        _finish(_launch(run_dir, flags), folder, {})
        yield run_dir


def train(flags: Sequence[str]) -> Outcome:
    """Run `python launch.py FLAGS…` to its end; returns the result."""
    started = time.monotonic()
    with finished_run(flags) as run_dir:
        wall_seconds = time.monotonic() - started
        summary = json.loads((run_dir / "summary.json").read_text())
    return Outcome(summary["env_steps"], summary["seconds"], wall_seconds, summary["episode_return_mean"])


def launch_to_end(words: Sequence[str]) -> None:
    """Run `python launch.py WORDS…` to its end. Raises `UserError` if it fails."""
    _finish([sys.executable, str(ROOT / "launch.py"), *words], None, {})


def run_peer(python: str, module: str, flags: Sequence[str], environ: Mapping[str, str]) -> Outcome:
    """Run `PYTHON -m MODULE FLAGS…` to its end; the last line that it prints contains the result."""
    with tempfile.TemporaryDirectory() as folder:  # Working directory, for files that the peer leaves behind.
        started = time.monotonic()
        lines = _finish([python, "-m", module, *flags], folder, {"PYTHONPATH": str(ROOT), **environ}).splitlines()
        wall_seconds = time.monotonic() - started
    answer = json.loads(lines[-1])
    return Outcome(answer["env_steps"], answer["seconds"], wall_seconds, answer["episode_return"])


def installed_in(python: str, packages: Sequence[str]) -> dict[str, str]:
    """The versions of those `packages` that are installed for the interpreter `python`."""
    code = "import importlib.metadata as m, json, sys; names = {d.name.lower().replace('-', '_') for d in "
    code += "m.distributions()}; print(json.dumps({p: m.version(p) for p in sys.argv[1:] if p in names}))"
    return json.loads(_finish([python, "-c", code, *packages], None, {}))


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl so far, without an incomplete last row."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@dataclass(frozen=True)
class Launched:
    """A running launch.py."""

    process: subprocess.Popen[bytes]
    run_dir: Path
    output: Path

    def await_iterations(self, count: int, pause: float = 0.01) -> None:
        """Wait until `count` iterations are complete. Raises `UserError` if launch.py ends before."""
        while len(metrics_of(self.run_dir)) < count:
            if self.process.poll() is not None:
                raise UserError(f"launch.py ended too soon: {_last_line(self.output)}")
            time.sleep(pause)


@contextmanager
def running(flags: Sequence[str]) -> Iterator[Launched]:
    """Start `python launch.py FLAGS…`; the process is ended with the context."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir, output = Path(folder) / "run", Path(folder) / "output"
        with open(output, "wb") as file:
            process = subprocess.Popen(_launch(run_dir, flags), stdout=file, stderr=subprocess.STDOUT, cwd=folder)
        try:
            yield Launched(process, run_dir, output)
        finally:
            process.send_signal(signal.SIGTERM)
            _await_end(process)


class Worker:
    """A process of `benchmarks.workers` that runs as long as the context, and works only on request."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._name = module
        self._errors = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115 - closed with the context
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.workers.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # The process may have ended by itself.
            self._process.stdin.close()
        _await_end(self._process)
        self._process.stdout.close()
        self._errors.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Wait until the machine is at rest, send a request, and return its answer."""
        time.sleep(REST_SECONDS)
        self.tell(**request)
        return self.answer()

    def tell(self, **request: Any) -> None:
        """Send a request without waiting for the answer."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # The process has ended; `answer` raises the reason.
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The answer to the oldest unanswered request. Raises `UserError` if the process has ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise _failure(self._name, self._process.wait(), Path(self._errors.name))
        return json.loads(line)


def _launch(run_dir: Path, flags: Sequence[str]) -> list[str]:
    return [sys.executable, str(ROOT / "launch.py"), "--run-dir", str(run_dir), *flags]


def _await_end(process: subprocess.Popen) -> None:
    """Wait for a process that was asked to end, and kill the process if it does not."""
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _finish(command: list[str], folder: str | None, environ: Mapping[str, str]) -> str:
    """Run `command` to its end; returns what it printed. Raises `UserError` if it fails."""
    with tempfile.NamedTemporaryFile(suffix=".log") as errors:
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                text=True,
                cwd=folder,
                env=os.environ | environ,
                check=False,
            )
        except OSError as error:
            raise UserError(f"{command[0]} cannot be started: {error.strerror}") from None
        if done.returncode:
            module = command[command.index("-m") + 1] if "-m" in command else command[1]
            raise _failure(Path(module).name, done.returncode, Path(errors.name))
    return done.stdout


def _failure(name: str, code: int, errors: Path) -> UserError:
    """The error for a failed process: its last line of text, alone if the process ended because of a `UserError`."""
    said = _last_line(errors)
    return UserError(said if code == USER_ERROR and said else f"{name} ended with code {code}: {said}")


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
