"""A run on two machines, with keys, over a line that loses and delays packets; its digest against a local run's.

`python -m tests.machines --loss 5 --delay 50 --fault cut kill stop` runs undisturbed, and once with each fault. It
needs what `tests/line.py` says.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from gate import PASSES, Gate, iterations
from launching import LAUNCH, ROOT, TIMEOUT, summary_of, train, wait_for
from line import Line, obstacle

from protocol.keys import make_keys

EXPERIMENT = "--num-envs 32 --lane-size 4 --rollout-length 32 --minibatches 4 --epochs 2".split()  # noqa: SIM905
PORT = 5555
MOVED = 4  # Iterations after which a lost actor's lanes have moved: it delivered rollouts for two of them at most.


@dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    summary: dict[str, Any]
    seconds: float  # Time from the launcher's start to its end.
    meanwhile: int  # Iterations completed during the fault.
    said: list[str]  # The log of each actor.
    codes: list[int]  # The actors' exit codes.

    @property
    def joins(self) -> str:
        """How often each actor was welcomed."""
        return " ".join(str(text.count("connected to run")) for text in self.said)


@dataclass
class TwoMachines:
    """A run whose learner is on one machine and whose actors are on the other. Each fault is a method."""

    line: Line
    folder: Path
    flags: list[object]
    python: str = sys.executable  # The interpreter of the actors.
    local_actors: int = 0  # Actors on the learner's machine.
    fault_seconds: float = 8.0  # Minimum; with local actors, the fault lasts until these have all the lanes.
    step_timeout: float = 3.0  # Shorter than the fault.
    gate: Gate | None = None  # Holds local actors until the one remote actor is back.
    learner: subprocess.Popen[bytes] | None = None
    actors: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def address(self) -> str:
        return f"tcp://{self.line.machines[0].address}:{PORT}"

    def run(self, actors: int, fault: str | None = None) -> Outcome:
        """Do the whole run, with a fault after a few iterations."""
        make_keys(self.folder / "keys", ["actor"])
        began = time.monotonic()
        with self._ending_all():
            self.learner = self._start_learner()
            for _ in range(actors):
                self.start_actor()
            meanwhile = self._disturb(fault) if fault else 0
            code = self.learner.wait()
            seconds = time.monotonic() - began
            assert code == 0, self._log("learner").read_text()
            codes = [actor.wait(TIMEOUT) for actor in self.actors]
        said = [self._log(i).read_text() for i in range(len(self.actors))]
        return Outcome(summary_of(self.run_dir), seconds, meanwhile, said, codes)

    def start_actor(self) -> None:
        words = ["-W", "error", "-m", "actors", "--connect", self.address, "--key", self.folder / "keys" / "actor.key"]
        self.actors.append(self._start(1, len(self.actors), self.python, *words))

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Cut the line; neither end is told."""
        self.line.cut = True
        yield
        self.line.cut = False

    @contextmanager
    def kill(self) -> Iterator[None]:
        """Kill an actor, and start another after the fault."""
        self.actors[0].kill()
        yield
        self.start_actor()

    @contextmanager
    def stop(self) -> Iterator[None]:
        """Stop an actor and continue it after the fault, as a laptop that sleeps."""
        self.actors[0].send_signal(signal.SIGSTOP)
        yield
        self.actors[0].send_signal(signal.SIGCONT)

    def _start_learner(self) -> subprocess.Popen[bytes]:
        remote = ["--listen", self.address, "--keys", self.folder / "keys", "--step-timeout", self.step_timeout]
        local = ["--actors", self.local_actors]
        return self._start(0, "learner", *LAUNCH, "--run-dir", self.run_dir, *remote, *local, *self.flags)

    def _start(self, machine: int, name: object, *words: object) -> subprocess.Popen[bytes]:
        with open(self._log(name), "w") as log:
            return subprocess.Popen(
                [*self.line.machines[machine].command, *map(str, words)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | ({PASSES: ""} if machine else {}),
            )

    def _log(self, name: object) -> Path:
        return self.folder / f"{name}.log"

    def _disturb(self, fault: str) -> int:
        """Cause the fault; returns how many iterations were completed during it."""
        before = self._await_iterations(5)
        if self.gate is not None:
            self._await_joins(1)
            before = self._await_iterations(before + 2)  # The actor has lanes by then.
        with getattr(self, fault)():
            time.sleep(self.fault_seconds)
            meanwhile = self._await_iterations(before + MOVED if self.local_actors else 0) - before
        if self.gate is not None:
            self._await_joins(2)
            self.gate.open()
        else:
            self._await_iterations(before + meanwhile + 1)
        return meanwhile

    def _await_iterations(self, count: int) -> int:
        """Wait until `count` iterations are completed, in a run that goes on; returns their current number."""
        if self.gate is not None:
            self.gate.close_after(count)
        wait_for(lambda: iterations(self.run_dir) >= count, self.learner)
        return iterations(self.run_dir)

    def _await_joins(self, count: int) -> None:
        """Wait until the actor has been welcomed `count` times, in a run that goes on."""
        wait_for(lambda: self._log(0).read_text().count("connected to run") >= count, self.learner)

    @contextmanager
    def _ending_all(self) -> Iterator[None]:
        try:
            yield
        finally:
            for process in self.actors:
                process.kill()
                process.wait()
            if self.learner is not None and self.learner.poll() is None:
                self.learner.terminate()  # The launcher ends its children.
                self.learner.wait()


FAULTS = ("cut", "kill", "stop")


def main() -> int:
    """Do an undisturbed run, and one with each requested fault; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", type=float, default=0.0, help="percent of the packets that are lost, each way")
    parser.add_argument("--delay", type=float, default=0.0, help="milliseconds that a packet takes, each way")
    parser.add_argument(
        "--fault", nargs="*", choices=FAULTS, default=[], help="faults to test, each in a run of its own"
    )
    parser.add_argument("--fault-seconds", type=float, default=8.0, help="how long it lasts at least")
    parser.add_argument("--actors", type=int, default=2, help="on the other machine")
    parser.add_argument("--local-actors", type=int, default=0, help="on the learner's")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the other machine's actors")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--schedule", default="pipelined", choices=["sync", "pipelined"])
    parser.add_argument("--total-steps", type=int, default=100_000)
    parser.add_argument("flags", nargs="*", help="further flags of launch.py, after --")
    arguments = parser.parse_args()
    if (reason := obstacle()) is not None:
        print(f"machines: {reason}", file=sys.stderr)
        return 2
    flags: list[object] = ["--env", arguments.env, *EXPERIMENT, "--schedule", arguments.schedule]
    flags += ["--total-steps", arguments.total_steps, *arguments.flags]
    unequal = 0
    with tempfile.TemporaryDirectory() as name:
        began = time.monotonic()
        local = train(Path(name) / "local", "--in-process", "--actors", 8, *flags)["weights_digest"]
        print(
            f"{'line':<12}  {'fault':<5}  {'seconds':>7}  meanwhile  {'joins':<8}  {'packets':>8}  {'lost':>6}  digest"
        )
        print(f"{'none':<12}  {'':<5}  {time.monotonic() - began:>7.1f}  {'':<37}  {local}")
        for fault in (None, *arguments.fault):
            folder = Path(name) / (fault or "undisturbed")
            folder.mkdir()
            with Line(arguments.loss / 100, arguments.delay / 1000) as line:
                run = TwoMachines(
                    line, folder, flags, arguments.python, arguments.local_actors, arguments.fault_seconds
                )
                outcome = run.run(arguments.actors, fault)
            digest = outcome.summary["weights_digest"]
            unequal += digest != local
            print(
                f"{f'{arguments.loss:g} %, {arguments.delay:g} ms':<12}  {fault or '–':<5}  {outcome.seconds:>7.1f}"
                f"  {outcome.meanwhile:>9}  {outcome.joins:<8}  {line.carried:>8}  {line.lost:>6}"
                f"  {digest if digest != local else 'equal'}",
                flush=True,
            )
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
