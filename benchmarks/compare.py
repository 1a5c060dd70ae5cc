"""`compare`: whole training runs, here and of other projects, each in processes of its own."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.arguments import positive
from benchmarks.contenders import CLEANRL, JAX, PEERS, SB3, Contender, Run, find_peers, ours
from benchmarks.measurements import Row, Samples, Target, at_least, at_most, interleave
from benchmarks.peers.card import Card
from benchmarks.processes import Outcome, train
from benchmarks.report import Report
from protocol.errors import UserError

CARD = Card("CartPole-v1", 8, 128, 4, 4, 2.5e-4, 102_400, learning_rate_schedule="linear", entropy_coef=0.01)
CARD_TARGETS = {"pipelined": at_least(1.5), "sync": at_least(1)}
HALFCHEETAH = Card("HalfCheetah-v5", 8, 256, 32, 10, 3e-4, 40_960, learning_rate_schedule="linear")
HALFCHEETAH_TARGETS = {"pipelined": at_least(1.25)}

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
    parser.add_argument("--shapes", nargs="+", default=["8x1", "4x2", "2x4"], help="LANE_SIZExACTORS to choose from")
    parser.add_argument("--iterations", type=positive(int), help="of `card` and `halfcheetah`, instead of 100 and 20")
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


def compare_card(arguments: argparse.Namespace, peers: dict[str, Contender], report: Report) -> None:
    """Compare speed where steps are cheap and updates small, with all peers."""
    everyone = [peers[peer.name] for peer in PEERS if peer.name in peers]
    compare_speeds("CartPole-v1, 8 × 128 steps", CARD, CARD_TARGETS, everyone, arguments, report)


def compare_halfcheetah(arguments: argparse.Namespace, peers: dict[str, Contender], report: Report) -> None:
    """Compare speed where steps are more expensive and updates are many."""
    rivals = [peers[peer.name] for peer in (JAX, SB3) if peer.name in peers]
    compare_speeds("HalfCheetah-v5, 8 × 256 steps", HALFCHEETAH, HALFCHEETAH_TARGETS, rivals, arguments, report)


def compare_speeds(
    title: str,
    card: Card,
    targets: Mapping[str, Target],
    peers: list[Contender],
    arguments: argparse.Namespace,
    report: Report,
) -> None:
    """Add rows of env-steps per second. Each schedule of this project is compared with the fastest rival."""
    if arguments.iterations is not None:
        card = dataclasses.replace(card, total_steps=arguments.iterations * card.batch)
    everyone = [*(ours(schedule, arguments.shapes, arguments.device) for schedule in targets), *peers]
    runs = {c.name: with_seed(way, card) for c in everyone if (way := c.fastest(card, report.note))}
    outcomes = interleave(runs, arguments.repeats, title)
    rows = rows_of(title, "env-steps/s", outcomes, lambda run: run.rate)
    rivals = [rows[peer.name] for peer in (JAX, CLEANRL, SB3) if peer.name in rows]
    if rivals:
        fastest = max(rivals, key=lambda row: row.samples.median)
        for schedule, target in targets.items():
            compare_row(rows, f"MLX {schedule}", [fastest.contender], [target])
    report.rows += rows.values()
    report.rows += rows_of(f"{title}, whole process", "s", outcomes, lambda run: run.wall_seconds).values()


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


WORKS = {"card": compare_card, "return": compare_returns, "halfcheetah": compare_halfcheetah}
