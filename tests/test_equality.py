"""The promise: the execution never changes the result. Whole runs, their digests compared."""

from pathlib import Path

import pytest
from launching import SMALL, train

EXECUTIONS = {
    "in-process": ["--in-process", "--actors", 1],
    "in-process-2": ["--in-process", "--actors", 2],
    "in-process-3": ["--in-process", "--actors", 3],
    "1-ipc": ["--actors", 1],
    "2-ipc": ["--actors", 2],
    "2-tcp": ["--actors", 2, "--transport", "tcp"],
    "4-ipc": ["--actors", 4],
    "8-ipc": ["--actors", 8],
}


def digests(path: Path, names: list[str], *flags: object, **environ: str) -> dict[str, str]:
    return {name: train(path / name, *EXECUTIONS[name], *SMALL, *flags, **environ)["weights_digest"] for name in names}


@pytest.mark.parametrize("schedule", ["sync", "pipelined"])
def test_actors_transport_and_threads_do_not_change_the_weights(tmp_path: Path, schedule: str) -> None:
    executions = ["in-process", "in-process-3", "1-ipc", "2-tcp", "4-ipc", "8-ipc"]
    found = digests(tmp_path, executions, "--schedule", schedule)
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("schedule", ["sync", "pipelined"])
def test_the_same_holds_on_an_ordinary_processor(tmp_path: Path, schedule: str) -> None:
    found = digests(tmp_path, ["in-process", "2-tcp", "8-ipc"], "--schedule", schedule, OPENBLAS_CORETYPE="Haswell")
    assert len(set(found.values())) == 1, found


def test_the_same_holds_for_box_actions_and_truncated_episodes(tmp_path: Path) -> None:
    found = digests(
        tmp_path, ["in-process", "4-ipc"], "--env", "Pendulum-v1", "--rollout-length", 128, "--total-steps", 8192
    )
    assert len(set(found.values())) == 1, found


# Four small iterations of four lanes.
EVERY_SPACE = ["--env", "tests.environments:EverySpace-v0", "--total-steps", 512, "--num-envs", 16, "--lane-size", 4]
EVERY_SPACE += ["--rollout-length", 8, "--minibatches", 4, "--epochs", 2]
KINDS: dict[str, tuple[str, str, list[object]]] = {
    "a memory": ("in-process-3", "sync", ["--recurrent-size", 8, "--env-kwargs", "action='multi_discrete'"]),
    "images, in several parts": ("in-process-2", "sync", ["--env-kwargs", "observation='dict'", "action='box'"]),
    "all of that, and bits": (
        "2-ipc",
        "pipelined",
        ["--recurrent-size", 8, "--normalize-rewards", "--env-kwargs", "observation='dict'", "action='multi_binary'"],
    ),
}


@pytest.mark.parametrize(("execution", "schedule", "flags"), KINDS.values(), ids=KINDS)
def test_the_same_holds_for_every_kind_of_policy(
    tmp_path: Path, execution: str, schedule: str, flags: list[object]
) -> None:
    found = digests(tmp_path, ["in-process", execution], *EVERY_SPACE, "--schedule", schedule, *flags)
    assert len(set(found.values())) == 1, found


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
