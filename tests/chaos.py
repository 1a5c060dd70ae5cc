"""Faults on purpose: kill, stop and starve a run at random moments, and compare its digest with an undisturbed one's.

`python -m tests.chaos --minutes 10 --seed 0` runs a random campaign and prints a table.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent))
from launching import LAUNCH, children, launch, running, summary_of, train

FIRST_MOMENTS = 0.3  # Seconds after an actor's start.
WORLDS = {  # Flags of what is trained. Some updates are tiny, some take longer than an actor's restart.
    "small": ["--total-steps", 100_000],
    "wide": ["--hidden-sizes", 768, 768, "--total-steps", 12_288],
    "recurrent": ["--recurrent-size", 64, "--minibatches", 4, "--total-steps", 20_480],
    "images": [
        *["--env", "tests.environments:EverySpace-v0", "--env-kwargs", "observation='frames'"],
        *["--network", "nature_cnn", "--total-steps", 6_144],
    ],
}
CAMPAIGN = "--num-envs 32 --lane-size 4 --rollout-length 32 --minibatches 4 --epochs 2 --checkpoint-every 3".split()  # noqa: SIM905


@dataclass
class Chaos:
    """One disturbed run. Each fault is a method that acts on the run in its current state."""

    run_dir: Path
    flags: list[object]
    random: random.Random
    done: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    def iterations(self) -> int:
        path = self.run_dir / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def actors(self) -> list[psutil.Process]:
        return self._children("actors")

    def learner(self) -> list[psutil.Process]:
        return self._children("learner")

    def witness(self) -> list[psutil.Process]:
        return self._children("actors.witness")

    def kill_actor(self) -> None:
        self._signal(self.actors(), signal.SIGKILL)

    def stop_actor(self) -> None:
        self._signal(self.actors(), signal.SIGSTOP)

    def kill_young_actor(self) -> None:
        """Kill an actor just after its start: before it says hello, while it waits for an answer, or just after."""
        self._kill_a_replacement(self.random.uniform(0, FIRST_MOMENTS))

    def kill_rebuilding_actor(self) -> None:
        """Kill an actor that has replaced another one, about when it rebuilds its lanes."""
        self._kill_a_replacement(FIRST_MOMENTS + self.random.uniform(0, 3 * FIRST_MOMENTS))

    def kill_actor_in_update(self) -> None:
        """Kill an actor just after an iteration was completed: the learner is in the next update, or soon will be."""
        before, deadline = self.iterations(), time.monotonic() + 10
        while self.iterations() == before and self._alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        self.kill_actor()

    def stop_learner(self) -> None:
        self._signal(self.learner(), signal.SIGSTOP)

    def kill_witness(self) -> None:
        self._signal(self.witness(), signal.SIGKILL)

    def stop_witness(self) -> None:
        self._signal(self.witness(), signal.SIGSTOP)

    def _kill_a_replacement(self, age: float) -> None:
        known = {actor.pid for actor in self.actors()}
        self.kill_actor()
        deadline = time.monotonic() + 10
        while self._alive() and time.monotonic() < deadline:
            if new := [actor for actor in self.actors() if actor.pid not in known]:
                time.sleep(age)
                self._signal(new, signal.SIGKILL)
                return
            time.sleep(0.001)

    def kill_learner(self) -> None:
        self._signal(self.learner(), signal.SIGKILL)

    def kill_learner_while_saving(self) -> None:
        """Kill the learner as soon as it writes a checkpoint, or after a second without one."""
        checkpoints = self.run_dir / "checkpoints"
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline and not list(checkpoints.glob(".[0-9]*")):
            pass
        self._signal(self.learner(), signal.SIGKILL)

    def kill_learner_and_actor(self) -> None:
        """Kill the learner, then an actor while there is no learner that could be told of it."""
        self.kill_learner()
        time.sleep(0.2)
        self.kill_actor()

    def kill_everything(self) -> None:
        """Send SIGKILL to the launcher and all its children, then `--resume`."""
        assert self.process is not None
        for process in [*self.learner(), *self.actors(), *self.witness(), psutil.Process(self.process.pid)]:
            self._signal([process], signal.SIGKILL)
        self.process.communicate()
        self.resume()

    def kill_launcher(self) -> None:
        """Send SIGKILL to the launcher alone, then `--resume` while its orphans may still be ending."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()
        self.resume()

    def kill_launcher_of_a_stopped_learner(self) -> None:
        """Stop the learner, then kill the launcher. The learner cannot end by itself then, and holds the run's lock."""
        self.stop_learner()
        self.kill_launcher()

    def change_actors(self) -> None:
        launch("actors", self.run_dir, "--count", self.random.randint(1, 6))

    def resume(self) -> None:
        words = list(map(str, self.flags))
        patience = words.index("--step-timeout") if "--step-timeout" in words else len(words)
        arguments = [*LAUNCH, "--resume", str(self.run_dir), *words[patience : patience + 2]]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, faults: list[str], due: Callable[[int], bool]) -> dict[str, Any]:
        """Start the run, cause fault i once `due(i)` is true, and wait for the run's end; returns the summary."""
        with running(self.run_dir, *self.flags) as self.process:
            output = self._disturb(faults, due)
        assert self.process is not None
        if self.process.returncode != 0:
            raise AssertionError(output)
        return summary_of(self.run_dir)

    def _disturb(self, faults: list[str], due: Callable[[int], bool]) -> str:
        begun = self.run_dir / "config.toml"  # Until this file exists, there is no run to disturb.
        for i, fault in enumerate(faults):
            while not (due(i) and begun.exists()) and self._alive():
                time.sleep(0.01)
            if not self._alive():
                break
            getattr(self, fault)()
            self.done.append(fault)
        assert self.process is not None
        output, _ = self.process.communicate(timeout=600)
        return output

    def _alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _children(self, module: str) -> list[psutil.Process]:
        assert self.process is not None
        try:
            return children(psutil.Process(self.process.pid), module)
        except psutil.NoSuchProcess:
            return []

    def _signal(self, processes: list[psutil.Process], number: signal.Signals) -> None:
        if processes:
            with suppress(psutil.NoSuchProcess):
                self.random.choice(processes).send_signal(number)


FAULTS = [
    "kill_actor",
    "stop_actor",
    "kill_young_actor",
    "kill_rebuilding_actor",
    "kill_actor_in_update",
    "kill_witness",
    "stop_witness",
    "stop_learner",
    "kill_learner",
    "kill_learner_while_saving",
    "kill_learner_and_actor",
    "kill_everything",
    "kill_launcher",
    "kill_launcher_of_a_stopped_learner",
    "change_actors",
]


def main() -> int:
    """Do one run with one fault `--times` times, or a random campaign; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="length of a random campaign")
    parser.add_argument("--fault", choices=FAULTS, help="instead of a campaign, one run with this fault alone")
    parser.add_argument("--times", type=int, default=10, help="how often, at random iterations")
    parser.add_argument("--actors", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", choices=WORLDS, help="what is trained, instead of each in turn by chance")
    parser.add_argument("flags", nargs="*", help="further flags of launch.py, after --")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    unequal = 0
    print(
        f"{'run':>3}  {'world':<9}  {'schedule':<9}  {'faults':<60}  {'actors':>6}  {'learner':>7}  {'seconds':>7}"
        "  equal",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        undisturbed: dict[str, str] = {}
        for number, (schedule, faults) in enumerate(plan(arguments, chance), start=1):
            world = arguments.world or chance.choice(list(WORLDS))
            flags = [*CAMPAIGN, *WORLDS[world], *arguments.flags, "--schedule", schedule]
            calm = f"{world}-{schedule}"
            if calm not in undisturbed:
                undisturbed[calm] = train(Path(name) / calm, "--in-process", *flags)["weights_digest"]
            actors = arguments.actors if arguments.fault else chance.randint(1, arguments.actors)
            execution = ["--actors", actors, "--transport", chance.choice(["ipc", "tcp"])]
            if chance.random() < 0.5 or any(fault.startswith("stop") for fault in faults):
                execution += ["--step-timeout", 3]  # Otherwise the default timeout, with which a lane may wait long.
            chaos = Chaos(Path(name) / str(number), [*flags, *execution], chance)
            iterations = len((Path(name) / calm / "metrics.jsonl").read_text().splitlines())
            moments = sorted(chance.randrange(iterations + 1) for _ in faults)  # Any iteration, also the last.
            began = time.monotonic()
            try:
                summary = chaos.run(faults, due=lambda i: chaos.iterations() >= moments[i])  # noqa: B023
                equal = summary["weights_digest"] == undisturbed[calm]
            except (AssertionError, subprocess.TimeoutExpired) as error:
                print(f"{error}", flush=True)
                summary, equal = {"actor_restarts": "–", "learner_restarts": "–"}, False
            unequal += not equal
            done = " ".join(f"{fault}×{count}" for fault, count in Counter(chaos.done).items())
            print(
                f"{number:>3}  {world:<9}  {schedule:<9}  {done:<60}  {summary['actor_restarts']:>6}"
                f"  {summary['learner_restarts']:>7}  {time.monotonic() - began:>7.1f}  {'yes' if equal else 'NO'}",
                flush=True,
            )
    return 1 if unequal else 0


def plan(arguments: argparse.Namespace, chance: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Yield (schedule, faults) of each run to do."""
    if arguments.fault:
        for schedule in ("sync", "pipelined"):
            yield schedule, [arguments.fault] * arguments.times
        return
    deadline = time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < deadline:
        yield chance.choice(["sync", "pipelined"]), chance.choices(FAULTS, k=chance.randint(1, 8))


if __name__ == "__main__":
    sys.exit(main())
