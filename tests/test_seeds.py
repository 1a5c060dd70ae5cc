"""`train --seeds`: several runs at a time, which nothing disturbs for good."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from gate import Gate, iterations
from launching import LAUNCH, SMALL, children, launch, metrics_of, output_of, stop, summary_of, train, wait_for

from multirun import machine
from multirun.machine import Share, gpu_for_another, memory_for_another, share
from multirun.scores import statistics
from rundir.metrics import GPU_PEAK, GPU_SIZE

FLAGS = [*SMALL, "--device", "cpu"]
LONG = ["--num-envs", 16, "--lane-size", 2, "--rollout-length", 64, "--total-steps", 40960, "--checkpoint-every", 4]
LONG += ["--device", "cpu"]


@contextmanager
def seeds_running(*flags: object) -> Iterator[subprocess.Popen[str]]:
    command = [*LAUNCH, *map(str, flags)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()


def digest_of(run_dir: Path) -> str:
    return summary_of(run_dir)["weights_digest"]


def everything_of(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    launcher = psutil.Process(process.pid)
    return [launcher, *launcher.children(recursive=True)]


def kill(processes: list[psutil.Process]) -> None:
    for each in processes:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue


@pytest.mark.parametrize(
    ("cores", "runs", "lanes", "threads", "actors", "parallel", "expected"),
    [
        (2, 5, 8, 1, None, None, Share(2, 1)),
        (24, 5, 8, 1, None, None, Share(5, 3)),
        (24, 5, 2, 1, None, None, Share(5, 2)),
        (24, 40, 8, 1, None, None, Share(24, 1)),
        (8, 5, 8, 4, None, None, Share(2, 1)),
        (8, 5, 8, 1, 4, None, Share(2, 4)),
        (8, 5, 8, 1, 16, None, Share(1, 16)),
        (2, 5, 8, 1, None, 4, Share(4, 1)),
        (24, 5, 8, 1, None, 1, Share(1, 8)),
        (1, 3, 8, 1, None, None, Share(1, 1)),
    ],
)
def test_the_cores_are_shared(
    cores: int, runs: int, lanes: int, threads: int, actors: int | None, parallel: int | None, expected: Share
) -> None:
    assert share(cores, runs, lanes, threads, actors, parallel) == expected


def test_actors_of_all_runs_are_no_more_than_the_cores() -> None:
    shared = share(8, 5, 8, 1, actors=8, parallel=4)
    assert (shared.parallel, shared.actors) == (4, 2)
    assert shared.note == "4 runs with 8 actors each are more than 8 cores: each run has 2"


def test_a_run_waits_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def has(available: int) -> None:
        memory = SimpleNamespace(total=100, available=available)
        monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: memory)

    has(44)
    assert memory_for_another(20, [20, 20])
    assert memory_for_another(20, [20, 5]) is False  # The second has still to grow by 15.
    has(29)
    assert memory_for_another(20, [20]) is False  # A tenth is left to others.


def test_a_learner_waits_for_the_gpu() -> None:
    row = {GPU_PEAK: 30, GPU_SIZE: 100}
    assert gpu_for_another(1, [row]) and gpu_for_another(2, [row])
    assert not gpu_for_another(3, [row])
    assert gpu_for_another(3, [{}])  # They compute on a CPU.


def test_statistics_of_scores() -> None:
    found = statistics({"seed-0": 1.0, "seed-1": 2.0, "seed-2": 3.0, "seed-3": 100.0})
    assert found["mean"] == 26.5 and found["interquartile_mean"] == 2.5
    low, high = found["interquartile_mean_95"]
    assert 1.0 <= low <= 2.5 <= high <= 100.0


def test_seeds_are_ordinary_runs_with_a_summary(tmp_path: Path) -> None:
    done = launch("--seeds", 3, 11, "--run-dir", tmp_path / "seeds", "--in-process", *FLAGS)
    assert done.returncode == 0, done.stderr
    facts = summary_of(tmp_path / "seeds")
    alone = train(tmp_path / "alone", "--seed", 11, "--in-process", *SMALL)
    assert (
        facts["seeds"]["seed-11"]["weights_digest"] == alone["weights_digest"] == digest_of(tmp_path / "seeds/seed-11")
    )
    scores = [facts["seeds"][name]["score"] for name in ("seed-3", "seed-11")]
    assert facts["mean"] == pytest.approx(sum(scores) / 2) and facts["failed"] == {}
    assert "return of 2 seeds: mean" in done.stdout and "seed-3" in done.stdout
    # What is finished is not done again.
    before = (tmp_path / "seeds/seed-3/metrics.jsonl").stat().st_mtime_ns
    again = launch("--resume", tmp_path / "seeds")
    assert again.returncode == 0 and "return of 2 seeds: mean" in again.stdout
    assert (tmp_path / "seeds/seed-3/metrics.jsonl").stat().st_mtime_ns == before
    # What was deleted, or never made, is made.
    shutil.rmtree(tmp_path / "seeds/seed-11")
    assert launch("--resume", tmp_path / "seeds").returncode == 0
    assert digest_of(tmp_path / "seeds/seed-11") == alone["weights_digest"]
    assert launch("--seeds", 1, "--run-dir", tmp_path / "seeds").stderr.count("already holds runs") == 1


@pytest.mark.slow
def test_a_seed_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "seeds"
    assert launch("--seeds", 0, 1, 2, "--run-dir", folder, "--in-process", *FLAGS).returncode == 0
    for seed in (1, 2):
        (folder / f"seed-{seed}" / "summary.json").unlink()
    (folder / "seed-1" / "config.toml").write_text("nonsense")
    done = launch("--resume", folder, "--total-steps", 4096)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "seed-1 failed" in done.stderr and "cannot be read as a file of settings" in done.stderr
    steps = {seed: metrics_of(folder / f"seed-{seed}")[-1]["env_steps"] for seed in (0, 2)}
    assert steps == {0: 4096, 2: 4096}
    assert list(summary_of(folder)["failed"]) == ["seed-1"]


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Holds all runs once seed 1 has done six iterations."""
    (tmp_path / "seeds").mkdir()
    return Gate(tmp_path / "seeds" / "seed-1", 6)


def wait_for_seed_1(folder: Path, process: subprocess.Popen[str], rows: int = 6) -> None:
    wait_for(lambda: iterations(folder / "seed-1") >= rows, process)


@pytest.mark.slow
def test_after_a_kill_of_everything_they_go_on_to_the_same_weights(tmp_path: Path, gate: Gate) -> None:
    folder = tmp_path / "seeds"
    with seeds_running(*LONG, *gate.flags, "--seeds", 0, 1, 2, "--run-dir", folder, "--parallel", 2) as process:
        wait_for_seed_1(folder, process)
        kill(everything_of(process))
    assert not (folder / "summary.json").exists()
    gate.open()
    done = launch("--resume", folder, "--parallel", 3)
    assert done.returncode == 0, done.stderr
    for seed in (0, 1, 2):
        alone = train(tmp_path / f"alone-{seed}", "--seed", seed, "--actors", 3, *LONG)
        assert alone["weights_digest"] == digest_of(folder / f"seed-{seed}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_all_and_resume_goes_on(tmp_path: Path, gate: Gate, number: signal.Signals) -> None:
    folder = tmp_path / "seeds"
    with seeds_running(*LONG, *gate.flags, "--seeds", 0, 1, "--run-dir", folder) as process:
        wait_for_seed_1(folder, process)
        said = stop(process, number)
    assert "saving and ending" in said and f"go on with --resume {folder}" in said
    assert summary_of(folder / "seed-1")["status"] == "stopped"
    gate.open()
    assert launch("--resume", folder).returncode == 0
    alone = train(tmp_path / "alone", "--seed", 1, "--actors", 1, *LONG)
    assert alone["weights_digest"] == digest_of(folder / "seed-1")


@pytest.mark.slow
def test_a_killed_launcher_is_replaced_and_a_killed_parent_ends_all(tmp_path: Path, gate: Gate) -> None:
    folder = tmp_path / "seeds"

    def launcher_of_seed_1() -> psutil.Process | None:
        found = children(psutil.Process(process.pid), "multirun")
        return next((each for each in found if str(folder / "seed-1") in each.cmdline()), None)

    with seeds_running(*LONG, *gate.flags, "--seeds", 0, 1, "--run-dir", folder) as process:
        wait_for_seed_1(folder, process)
        victim = launcher_of_seed_1()
        assert victim is not None
        victim.kill()
        wait_for(lambda: (now := launcher_of_seed_1()) is not None and now.pid != victim.pid, process)
        gate.close_after(12)
        wait_for_seed_1(folder, process, rows=12)
        processes = everything_of(process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda: not any(each.is_running() for each in processes))
    gate.open()
    with seeds_running("--resume", folder, "--parallel", 1) as process:
        output_of(process)
    for seed in (0, 1):
        alone = train(tmp_path / f"alone-{seed}", "--seed", seed, "--actors", 1, *LONG)
        assert alone["weights_digest"] == digest_of(folder / f"seed-{seed}")


@pytest.mark.slow
def test_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.toml").touch()
    (tmp_path / "damaged" / "seeds.json").write_text(json.dumps({"seeds": "all"}))
    for flags, expected in {
        ("--seeds", 0, 1, "--seed", 3): "--seed and --seeds exclude each other",
        ("--seeds", 0, 1, 0): "--seeds has 0 more than once",
        ("--seeds", 0, "--listen", "tcp://127.0.0.1:5555", "--insecure"): "--listen is for one run",
        ("--seeds", 0, "--trace", tmp_path / "trace.json"): "--trace is for one run",
        ("--parallel", 2): "--parallel is for --seeds",
        ("--seeds", 0, "--parallel", 0): "--parallel must be at least 1",
        ("--seeds", 0, -1): "--seed",
        ("--seeds",): "--seeds has no numbers",
        ("--resume", tmp_path / "sweep"): "holds a sweep: go on with launch.py sweep --resume",
        ("--resume", tmp_path / "damaged"): "is damaged: it does not list the seeds",
    }.items():
        done = launch(*flags, "--run-dir", tmp_path / "none") if "--resume" not in flags else launch(*flags)
        assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / "none").exists()
