"""The contenders that can train as a card says: this project and other installed projects, each in its fastest way."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.peers.card import Card
from benchmarks.processes import Outcome, installed_in, run_peer, train
from benchmarks.report import number
from protocol.errors import UserError

Run = Callable[[Card], Outcome]

NOT_NORMALIZED = ("--no-normalize-observations", "--no-normalize-rewards")  # The peers normalize neither.


@dataclass(frozen=True)
class Contender:
    """One project, and the ways to run it that are worth trying."""

    name: str
    ways: Mapping[str, Run]
    trial_iterations: int = 2
    trials: int = 1
    optional: bool = True  # Whether the comparison continues if this contender does not run.

    def fastest(self, card: Card, note: Callable[[str], None]) -> Run | None:
        """The way that is fastest in short runs; None if the contender does not run here. Notes either result."""
        trial = dataclasses.replace(card, total_steps=self.trial_iterations * card.batch, stop_return=None)
        try:
            speeds = {way: max(run(trial).rate for _ in range(self.trials)) for way, run in self.ways.items()}
        except UserError as error:
            if not self.optional:
                raise
            note(f"{self.name} does not run here; skipped: {error}")
            return None
        best = max(speeds, key=speeds.__getitem__)
        if len(speeds) > 1:
            tried = ", ".join(f"{way}: {number(speed)}/s" for way, speed in speeds.items())
            note(f"{card.env}, {card.num_envs} envs: {self.name} runs with {best} (short runs with {tried})")
        return self.ways[best]


@dataclass(frozen=True)
class Shape:
    """How this project divides the work."""

    lane_size: int
    actors: int

    def __str__(self) -> str:
        return f"{self.lane_size}x{self.actors}"

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """Parse `8x1`: lanes of 8 environments, 1 actor. Raises `UserError`."""
        lane_size, _, actors = text.partition("x")
        if not (lane_size.isdecimal() and actors.isdecimal()):
            raise UserError(f"--shapes {text} is not LANE_SIZExACTORS, such as 8x1")
        return cls(int(lane_size), int(actors))


def ours(schedule: str, shapes: Sequence[str], device: str) -> Contender:
    """This project with a schedule; each of `shapes` is a way to run it."""

    def run(shape: Shape, card: Card) -> Outcome:
        flags = ["--schedule", schedule, "--lane-size", str(shape.lane_size), "--actors", str(shape.actors)]
        return train([*card.flags(), *flags, *NOT_NORMALIZED, "--device", device])

    ways = {f"lanes x actors {shape}": partial(run, shape) for shape in map(Shape.parse, shapes)}
    # Two longer trials, because acting and learning overlap only after a while, and the first run compiles.
    return Contender(f"MLX {schedule}", ways, trial_iterations=8, trials=2, optional=False)


@dataclass(frozen=True)
class Peer:
    """Another project, with its script in `benchmarks.peers`."""

    name: str
    script: str
    package: str  # The package that the script needs, besides gymnasium.
    environs: Mapping[str, Mapping[str, str]]  # Environment variables of each way to run the script.
    flags: tuple[str, ...] = ()


ALONE = {"threads of its own choice": {}, "one thread": {"OMP_NUM_THREADS": "1"}}  # For PyTorch in a single process.
CLEANRL = Peer("CleanRL-style", "torch_card", "torch", ALONE)
COMPILED = Peer("PyTorch, compiled", "torch_card", "torch", ALONE, ("--compile",))
COMPILED_ENVPOOL = Peer(
    "PyTorch, compiled, EnvPool", "torch_card", "envpool", ALONE, ("--compile", "--vector", "envpool")
)
ASYNC_VECTOR = Peer("AsyncVectorEnv", "torch_card", "torch", ALONE, ("--vector", "async"))
SB3 = Peer("Stable-Baselines3", "stable_baselines3_card", "stable_baselines3", ALONE)
MASKABLE = Peer("MaskablePPO", "stable_baselines3_card", "sb3_contrib", ALONE, ("--maskable",))
SAMPLE_FACTORY = Peer("Sample Factory", "sample_factory_card", "sample_factory", {"its defaults": {}})
RLLIB = Peer("RLlib", "rllib_card", "ray", {"its defaults": {}})
ONE_THREAD = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OPENBLAS_NUM_THREADS": "1"}
JAX = Peer("JAX, one file", "jax_card", "jax", {"threads of its own choice": {}, "one thread": ONE_THREAD})
PEERS = (JAX, COMPILED, COMPILED_ENVPOOL, ASYNC_VECTOR, CLEANRL, SB3, MASKABLE, SAMPLE_FACTORY, RLLIB)


def find_peers(pythons: Sequence[str], note: Callable[[str], None]) -> dict[str, Contender]:
    """The peers, by name, that are installed in one of `pythons` or here. Notes versions and missing packages."""
    interpreters = [*(str(Path(path).absolute()) for path in pythons), sys.executable]
    installed = {python: installed_in(python, [peer.package for peer in PEERS]) for python in interpreters}
    found = {}
    for peer in PEERS:
        python = next((p for p in interpreters if peer.package in installed[p]), None)
        if python is None:
            note(f"{peer.package} is not installed here; skipped")
        else:
            note(f"{peer.name} with {peer.package} {installed[python][peer.package]}")
            found[peer.name] = Contender(peer.name, {way: _runner(python, peer, e) for way, e in peer.environs.items()})
    return found


def _runner(python: str, peer: Peer, environ: Mapping[str, str]) -> Run:
    return lambda card: run_peer(python, f"benchmarks.peers.{peer.script}", [card.text(), *peer.flags], environ)
