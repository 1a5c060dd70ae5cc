"""Whole runs with the schedule `async`: they finish, learn, recover, and never claim to be reproducible."""

from pathlib import Path

import pytest
from gate import Gate, iterations
from launching import SMALL, launch, metrics_of, running, stop, summary_of, train, wait_for
from marks import slow

ASYNC = [*SMALL, "--schedule", "async"]


def check_books(run_dir: Path) -> None:
    """Check that all samples are accounted for, and that the trained samples equal the run's env-steps."""
    summary = summary_of(run_dir)
    samples = summary["samples"]
    assert samples["trained"] == summary["env_steps"] and samples["in_flight"] == 0
    assert samples["produced"] == samples["trained"] + sum(samples["dropped"].values())


@pytest.mark.parametrize(
    "flags",
    [
        ["--actors", 3],
        ["--in-process", "--actors", 2],
        slow(["--actors", 2, "--recurrent-size", 8, "--normalize-rewards"]),
    ],
    ids=["processes", "threads", "a memory"],
)
def test_a_run_finishes_and_says_that_it_is_not_reproducible(tmp_path: Path, flags: list[object]) -> None:
    summary = train(tmp_path / "run", *ASYNC, *flags)
    assert summary["status"] == "finished" and summary["policy_version"] == 4
    assert summary["deterministic"] is False
    rows = metrics_of(tmp_path / "run")
    assert [row["policy_version"] for row in rows] == [1, 2, 3, 4]
    assert all(row["deterministic"] is False for row in rows)
    for row in rows:
        histogram = row["policy/lag_histogram"]
        assert sum(histogram) == 16 and len(histogram) <= 5
        mean = sum(lag * count for lag, count in enumerate(histogram)) / 16
        assert row["policy/lag_mean"] == pytest.approx(mean)
        assert 0 < row["train/effective_sample_size"] <= 1
    check_books(tmp_path / "run")


@pytest.mark.slow
def test_a_stopped_run_goes_on_from_lanes_that_are_not_equally_far(tmp_path: Path) -> None:
    steps = ["--total-steps", 30_000, "--checkpoint-every", 5]
    gate = Gate(tmp_path / "run", 8)
    with running(tmp_path / "run", *ASYNC, *steps, "--actors", 3, *gate.flags) as process:
        wait_for(lambda: iterations(tmp_path / "run") >= 8, process)
        stop(process)
    gate.open()
    assert summary_of(tmp_path / "run")["status"] == "stopped"
    done = launch("--resume", tmp_path / "run", "--actors", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "finished" and summary["lanes_not_replayable"] == 0
    check_books(tmp_path / "run")


def test_a_deterministic_run_says_so_in_every_row(tmp_path: Path) -> None:
    train(tmp_path / "run", *SMALL, "--in-process")
    rows = metrics_of(tmp_path / "run")
    assert all(row["deterministic"] is True for row in rows)
    assert [row["policy/lag_histogram"] for row in rows] == [[16], [0, 16], [0, 16], [0, 16]]
    assert rows[0]["train/effective_sample_size"] == 1
