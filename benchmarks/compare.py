"""`compare`: whole training runs, here and of other projects, each in processes of its own."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from benchmarks.arguments import positive
from benchmarks.contenders import (
    ASYNC_VECTOR,
    CLEANRL,
    COMPILED,
    COMPILED_ENVPOOL,
    JAX,
    MASKABLE,
    RLLIB,
    SAMPLE_FACTORY,
    SB3,
    Contender,
    Peer,
    Run,
    find_peers,
    ours,
)
from benchmarks.measurements import Row, Samples, Target, at_least, at_most, interleave
from benchmarks.peers.card import Card
from benchmarks.processes import Outcome, cores, train
from benchmarks.report import Report
from protocol.errors import UserError


@dataclass(frozen=True)
class Work:
    """A card, and what is expected of each schedule of this project: a share of the fastest judge, or of a limit."""

    title: str
    card: Card
    targets: Mapping[str, Target]
    judges: tuple[Peer, ...]
    others: tuple[Peer, ...] = ()  # Peers whose speed is shown alone.
    limit: float | None = None  # Env-steps per second that the environments allow, instead of judges.
    shapes: tuple[str, ...] = ("8x1", "4x2", "2x4")  # Ways of this project to choose from.


_SIMPLE = Card("CartPole-v1", 8, 128, 4, 4, 2.5e-4, 102_400, learning_rate_schedule="linear", entropy_coef=0.01)
_SLOW = Card("benchmarks.environments:Sleep2ms-v0", 16, 128, 4, 4, 2.5e-4, 81_920)
SPEEDS = {
    "card": Work(
        "CartPole-v1, 8 × 128 steps",
        _SIMPLE,
        {"pipelined": at_least(1.5), "sync": at_least(1)},
        (JAX, COMPILED, CLEANRL, SB3),
        (SAMPLE_FACTORY, RLLIB),
    ),
    "halfcheetah": Work(
        "HalfCheetah-v5, 8 × 256 steps",
        Card("HalfCheetah-v5", 8, 256, 32, 10, 3e-4, 81_920, learning_rate_schedule="linear"),
        {"pipelined": at_least(1.25)},
        (JAX, COMPILED, SB3),
    ),
    "images": Work(
        "Pong, 8 × 128 steps, Nature CNN",
        Card("ALE/Pong-v5", 8, 128, 4, 4, 2.5e-4, 20_480, network="nature_cnn", hidden_sizes=(512,)),
        {"pipelined": at_least(1.2)},
        (COMPILED_ENVPOOL,),
    ),
    "recurrent": Work(
        "CartPole-v1, 8 × 128 steps, recurrent",
        dataclasses.replace(_SIMPLE, recurrent_size=64, total_steps=20_480),
        {"pipelined": at_least(3)},
        (CLEANRL,),
    ),
    "sleeping": Work(
        "16 environments that sleep 2 ms", _SLOW, {"pipelined": at_least(0.9)}, (), (ASYNC_VECTOR,), 8_000, ("1x16",)
    ),
    "busy": Work(
        "16 environments that compute 2 ms",
        dataclasses.replace(_SLOW, env="benchmarks.environments:Busy2ms-v0", total_steps=20_480),
        {"pipelined": at_least(0.9)},
        (),
        (ASYNC_VECTOR,),
        500.0 * cores(),
        ("1x16",),
    ),
    "wide": Work(
        "CartPole-v1, 64 × 128 steps, MLP 256",
        dataclasses.replace(_SIMPLE, num_envs=64, minibatches=8, hidden_sizes=(256, 256), total_steps=163_840),
        {"pipelined": at_least(1.1)},
        (JAX, COMPILED),
    ),
}

MASKED = Card("benchmarks.environments:Corridors-v0", 8, 128, 4, 10, 1e-3, 40_960)
GOAL = 475.0  # Mean return of the last 100 episodes of CartPole.


@dataclass(frozen=True)
class Settings:
    """Settings with which Stable-Baselines3 reaches the goal, and the share of its time that is the target here."""

    name: str
    card: Card
    target: Target


_WIDE = Card("CartPole-v1", 64, 32, 8, 10, 1e-3, 500_000, discount=0.98, gae_lambda=0.8, stop_return=GOAL)
_ZOO = dataclasses.replace(  # The settings of RL Baselines3 Zoo for CartPole-v1.
    _WIDE,
    num_envs=8,
    minibatches=1,
    epochs=20,
    total_steps=100_000,
    learning_rate_schedule="linear",
    clip_range_schedule="linear",
)
SETTINGS = (Settings("64 envs", _WIDE, at_most(0.35)), Settings("its zoo's 8 envs", _ZOO, at_most(0.15)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS), help="what to compare")
    parser.add_argument("--python", action="append", default=[], metavar="PATH", help="interpreter with peers")
    parser.add_argument("--shapes", nargs="+", help="LANE_SIZExACTORS to choose from, instead of the work's own")
    parser.add_argument("--iterations", type=positive(int), help="of each run, instead of the card's")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="device of the learner here; peers compute on the CPU",
    )


def run(arguments: argparse.Namespace) -> Report:
    report = Report("compare")
    peers = find_peers(arguments.python, report.note)
    for work in arguments.work:
        try:
            WORKS[work](arguments, peers, report)
        except UserError as error:
            if len(arguments.work) == 1:
                raise
            report.note(f"{work} could not be compared: {error}")  # The other results took long, so they are kept.
    return report


def compare_speeds(work: Work, arguments: argparse.Namespace, peers: dict[str, Contender], report: Report) -> None:
    """Add rows of env-steps per second. Each schedule here is compared with the fastest judge, or the limit."""
    card = work.card
    if arguments.iterations is not None:
        card = dataclasses.replace(card, total_steps=arguments.iterations * card.batch)
    shapes = arguments.shapes or work.shapes
    rivals = [peers[peer.name] for peer in (*work.judges, *work.others) if peer.name in peers]
    everyone = [*(ours(schedule, shapes, arguments.device) for schedule in work.targets), *rivals]
    runs = {c.name: with_seed(way, card) for c in everyone if (way := c.fastest(card, report.note))}
    outcomes = interleave(runs, arguments.repeats, work.title)
    rows = rows_of(work.title, "env-steps/s", outcomes, lambda run: run.rate)
    if work.limit is not None:
        rows["limit"] = Row(work.title, "env-steps/s", "", "limit", Samples.of([work.limit]))
    judges = [rows[name] for name in ("limit", *(peer.name for peer in work.judges)) if name in rows]
    if judges:
        fastest = max(judges, key=lambda row: row.samples.median)
        for schedule, target in work.targets.items():
            compare_row(rows, f"MLX {schedule}", [fastest.contender], [target])
    report.rows += rows.values()
    report.rows += rows_of(f"{work.title}, whole process", "s", outcomes, lambda run: run.wall_seconds).values()


def compare_returns(arguments: argparse.Namespace, peers: dict[str, Contender], report: Report) -> None:
    """Compare the time to the goal: with the preset of this project, and with two settings of Stable-Baselines3."""
    flags = ["--stop-return", str(GOAL), "--device", arguments.device]
    runs: dict[str, Callable[[int], Outcome]] = {"MLX": lambda number: train([*flags, "--seed", str(number)])}
    targets = []
    for settings in SETTINGS if SB3.name in peers else ():
        if way := peers[SB3.name].fastest(settings.card, report.note):
            runs[f"{SB3.name}, {settings.name}"] = with_seed(way, settings.card)
            targets.append(settings.target)
    outcomes = interleave(runs, arguments.repeats, f"CartPole-v1 to {GOAL:g}")
    for where, value in (("training", lambda run: run.seconds), ("whole process", lambda run: run.wall_seconds)):
        rows = rows_of(f"CartPole-v1 to {GOAL:g}, {where}", "s", outcomes, value)
        compare_row(rows, "MLX", list(runs)[1:], targets)
        report.rows += rows.values()
    for name, found in outcomes.items():
        reached = sum((run.episode_return or 0.0) >= GOAL for run in found)
        report.notes.append(f"{name}: {reached} of {len(found)} runs reached {GOAL:g}")


def compare_masks(arguments: argparse.Namespace, peers: dict[str, Contender], report: Report) -> None:
    """Show what is learned in the same steps where 96 of 100 actions are masked: here, by MaskablePPO, and by PPO that
    does not know the masks."""
    everyone = [ours("pipelined", arguments.shapes or ("8x1",), arguments.device)]
    everyone += [peers[peer.name] for peer in (MASKABLE, SB3) if peer.name in peers]
    runs = {c.name: with_seed(way, MASKED) for c in everyone if (way := c.fastest(MASKED, report.note))}
    outcomes = interleave(runs, arguments.repeats, "Corridors, 96 of 100 actions masked")
    for unit, value in (("return", lambda run: run.episode_return), ("env-steps/s", lambda run: run.rate)):
        report.rows += rows_of(f"Corridors, {MASKED.total_steps:,} env-steps", unit, outcomes, value).values()


def with_seed(run: Run, card: Card) -> Callable[[int], Outcome]:
    """A function that runs the card with the number of the round as the seed."""
    return lambda number: run(dataclasses.replace(card, seed=number))


def rows_of(
    panel: str, unit: str, outcomes: Mapping[str, list[Outcome]], value: Callable[[Outcome], float]
) -> dict[str, Row]:
    """A row for each contender."""
    return {name: Row(panel, unit, "", name, Samples.of(map(value, runs))) for name, runs in outcomes.items()}


def compare_row(rows: dict[str, Row], name: str, rivals: list[str], targets: list[Target]) -> None:
    """Add comparisons with `rivals` to the row called `name`."""
    pairs = zip(rivals, targets, strict=True)
    comparisons = tuple(rows[name].against(rows[rival], target) for rival, target in pairs)
    rows[name] = dataclasses.replace(rows[name], comparisons=comparisons)


WORKS = {
    **{name: partial(compare_speeds, work) for name, work in SPEEDS.items()},
    "return": compare_returns,
    "masks": compare_masks,
}
