"""A Ray cluster simulated on this machine: a run on all its nodes, one of which is lost, against an undisturbed run.

`python -m tests.cluster --nodes 3 --actors 32` prints what the loss costs.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from gate import Gate
from launching import TIMEOUT, running, summary_of, train, wait_for

from protocol.files import read_rows
from protocol.process import HASH_SEED

CARTPOLE = "benchmarks.environments:Uneven-v0"  # It can sleep in every step, so that a run takes long enough.
SHAPE = "--lane-size 2 --rollout-length 32 --minibatches 4 --epochs 2".split()  # noqa: SIM905
AGAIN = re.compile(r"actor (\d+) delivers again, ([\d.]+) s after it was lost")
LOST = re.compile(r"warning: actor (\d+) (ended with exit code|was killed)")
ITERATION = re.compile(r"([\d,]+) / [\d,]+ env-steps")
OBJECT_STORE = 80 * 2**20  # bytes


@dataclass
class Nodes:
    """The cluster. Its first node, the head, stands for the learner's machine."""

    cluster: Any  # Ray's `Cluster`.

    @property
    def address(self) -> str:
        return self.cluster.address

    def lose_last(self) -> None:
        """Remove the last node abruptly, as when its machine is gone: no process there shuts down in order."""
        self.cluster.remove_node(max(self.cluster.worker_nodes, key=lambda node: node.unique_id), allow_graceful=False)


@contextmanager
def cluster_of(nodes: int, cpus: int) -> Iterator[Nodes]:
    """Start a cluster of `nodes` nodes that claim `cpus` CPUs each; it ends with the context."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": cpus, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HASH_SEED.items():  # docs/more-machines.md asks for the same with `ray start`.
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            for _ in range(nodes - 1):
                cluster.add_node(**node)
            yield Nodes(cluster)
        finally:
            cluster.shutdown()


@dataclass
class Output:
    """The lines that launch.py prints, each with the time at which it was read."""

    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    def found(self, pattern: re.Pattern[str], since: float = 0.0) -> list[tuple[float, re.Match[str]]]:
        return [(at, match) for at, line in list(self.lines) if at >= since and (match := pattern.search(line))]

    def wait_for(self, pattern: re.Pattern[str], since: float = 0.0, count: int = 1) -> None:
        deadline = time.monotonic() + 2 * TIMEOUT
        while len(self.found(pattern, since)) < count:
            assert time.monotonic() < deadline and self.process.poll() is None, self.text()
            time.sleep(0.05)

    def end(self) -> int:
        code = self.process.wait(timeout=2 * TIMEOUT)
        self._reader.join()
        return code

    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)


@dataclass(frozen=True)
class Loss:
    """How the loss of a node affected a run."""

    lost: int  # Actors lost.
    noticed: float  # Seconds until the first actor was known to be lost.
    learning: float  # Seconds until an iteration was completed without the lost actors.
    replaced: float  # Seconds until the last of the lost actors delivered again.
    longest: float  # Seconds, as the launcher counts them, from the notice of a loss to the next delivery.
    equal: bool  # Whether the weights equal those of the undisturbed run.
    summary: dict[str, Any]
    output: str


def lose_a_node(folder: Path, nodes: int, actors: int, seconds: float, num_envs: int, iterations: int) -> Loss:
    """Train on a cluster and remove its last node during training; each step of a lane takes `seconds`."""
    cpus = -(-actors // (nodes - 1))  # The nodes that stay have CPUs for all actors.
    steps = num_envs * 32 * iterations

    def flags(step_seconds: float) -> list[object]:
        settings = [f"folder='{folder}'", f"slowest={step_seconds}", "places=1"]
        return ["--env", CARTPOLE, "--env-kwargs", *settings, "--num-envs", num_envs, *SHAPE, "--total-steps", steps]

    undisturbed = train(folder / "undisturbed", "--in-process", *flags(0.0))
    with cluster_of(nodes, cpus) as cluster:
        on_ray = ["--cluster", "ray", "--address", cluster.address, "--actors", actors]
        gate = Gate(folder / "run", 5)
        with running(folder / "run", *on_ray, *flags(seconds / 2), *gate.flags) as process:
            output = Output(process)
            output.wait_for(ITERATION, count=3)
            began = time.monotonic()
            cluster.lose_last()
            output.wait_for(LOST, began)
            # The restarted actors have to join before the run goes on, so that they deliver before it ends.
            wait_for(lambda: joins(folder / "run") >= actors + len(output.found(LOST, began)), process)
            gate.open()
            code = output.end()
    assert code == 0, output.text()
    gone = output.found(LOST, began)
    again = output.found(AGAIN, began)
    first, last = gone[0][0], gone[-1][0]
    assert len(again) == len(gone), output.text()
    summary = summary_of(folder / "run")
    return Loss(
        lost=len(gone),
        noticed=first - began,
        learning=next(at for at, _ in output.found(ITERATION, last)) - began,
        replaced=again[-1][0] - began,
        longest=max(float(match[2]) for _, match in again),
        equal=summary["weights_digest"] == undisturbed["weights_digest"],
        summary=summary,
        output=output.text(),
    )


def joins(run_dir: Path) -> int:
    """How often actors have joined the run."""
    return sum(row["event"] == "actor_joined" for row in read_rows(run_dir / "events.jsonl"))


def main() -> int:
    """Lose a node, and print how this affected the run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--actors", type=int, default=32)
    parser.add_argument("--num-envs", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.02, help="seconds that each step of a lane takes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        loss = lose_a_node(
            Path(name),
            arguments.nodes,
            arguments.actors,
            arguments.seconds,
            arguments.num_envs,
            arguments.iterations,
        )
    print(loss.output)
    print(f"\n{arguments.nodes} nodes, {arguments.actors} actors, one node lost with {loss.lost} of them")
    print(f"noticed after            {loss.noticed:5.1f} s")
    print(f"next iteration after     {loss.learning:5.1f} s")
    print(f"all delivered again      {loss.replaced:5.1f} s after the node was lost, ", end="")
    print(f"at most {loss.longest:.1f} s after their loss was known")
    print(f"weights equal            {'yes' if loss.equal else 'NO'}")
    return 0 if loss.equal else 1


if __name__ == "__main__":
    sys.exit(main())
