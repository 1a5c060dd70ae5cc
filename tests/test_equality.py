"""Execution options never change the result: digests of whole runs are compared."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from launching import SMALL, together, train
from marks import slow

EXECUTIONS = {
    "in-process": ["--in-process", "--actors", 1],
    "in-process-3": ["--in-process", "--actors", 3],
    "1-ipc": ["--actors", 1],
    "2-ipc": ["--actors", 2],
    "2-tcp": ["--actors", 2, "--transport", "tcp"],
    "4-ipc": ["--actors", 4],
    "8-ipc": ["--actors", 8],
}


def digests(path: Path, names: Iterable[str], *flags: object, **environ: str) -> dict[str, str]:
    runs = [partial(train, path / name, *EXECUTIONS[name], *SMALL, *flags, **environ) for name in names]
    return dict(zip(names, (summary["weights_digest"] for summary in together(*runs)), strict=True))


@pytest.mark.parametrize(
    ("schedule", "executions"),
    [slow("sync", EXECUTIONS), slow("pipelined", EXECUTIONS), ("pipelined", ["in-process", "2-tcp", "4-ipc"])],
)
def test_actors_transport_and_threads_do_not_change_the_weights(
    tmp_path: Path, schedule: str, executions: Iterable[str]
) -> None:
    found = digests(tmp_path, executions, "--schedule", schedule)
    assert len(set(found.values())) == 1, found


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["sync", "pipelined"])
def test_the_same_holds_on_an_ordinary_processor(tmp_path: Path, schedule: str) -> None:
    found = digests(tmp_path, ["in-process", "2-tcp", "8-ipc"], "--schedule", schedule, OPENBLAS_CORETYPE="Haswell")
    assert len(set(found.values())) == 1, found


@pytest.mark.slow
def test_the_same_holds_for_box_actions_and_truncated_episodes(tmp_path: Path) -> None:
    found = digests(
        tmp_path, ["in-process", "4-ipc"], "--env", "Pendulum-v1", "--rollout-length", 128, "--total-steps", 8192
    )
    assert len(set(found.values())) == 1, found


# Four small iterations with four lanes.
EVERY_SPACE = ["--env", "tests.environments:EverySpace-v0", "--total-steps", 512, "--num-envs", 16, "--lane-size", 4]
EVERY_SPACE += ["--rollout-length", 8, "--minibatches", 4, "--epochs", 2]

# (observation, action, other flags): every kind of observation, action and network, at least once in `sync`.
KINDS: dict[str, tuple[str, str, list[object]]] = {
    "numbers, an MLP": ("matrix", "unbounded", ["--network", "mlp", "--activation", "silu"]),
    "bytes": ("ram", "box", ["--normalize-rewards"]),
    "small images, the IMPALA CNN": ("image", "discrete", ["--network", "impala_cnn"]),
    "stacked frames, the Nature CNN": ("frames", "multi_binary", ["--network", "nature_cnn"]),
    "one choice": ("discrete", "multi_discrete", []),
    "several choices": ("multi_discrete", "discrete", []),
    "bits, a memory": ("multi_binary", "multi_binary", ["--recurrent-size", 8]),
    "numbers, an LSTM": ("matrix", "discrete", ["--recurrent", "lstm", "--recurrent-size", 8]),
    "several parts, images among them": ("dict", "box", []),
    "several parts, a CNN and a memory": ("dict", "multi_discrete", ["--recurrent-size", 8, "--normalize-rewards"]),
    "in pipelined": ("dict", "multi_binary", ["--recurrent-size", 8, "--schedule", "pipelined"]),
}
QUICK = {"bytes"}


@pytest.mark.parametrize("kind", [kind if kind in QUICK else slow(kind) for kind in KINDS])
def test_the_same_holds_for_every_space_and_network(tmp_path: Path, kind: str) -> None:
    observation, action, flags = KINDS[kind]
    kwargs = ["--env-kwargs", f"observation='{observation}'", f"action='{action}'"]
    found = digests(tmp_path, ["in-process", "2-ipc"], *EVERY_SPACE, "--schedule", "sync", *kwargs, *flags)
    assert len(set(found.values())) == 1, found


@pytest.mark.slow
def test_seed_and_schedule_do_change_the_weights(tmp_path: Path) -> None:
    found = [
        train(tmp_path / name, *EXECUTIONS["in-process"], *SMALL, *flags)["weights_digest"]
        for name, flags in {
            "first": [],
            "seed": ["--seed", 1],
            "schedule": ["--schedule", "sync"],
        }.items()
    ]
    assert len(set(found)) == 3
