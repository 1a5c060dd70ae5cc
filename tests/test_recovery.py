"""Pull any plug: faults at chosen moments, and the digest of the disturbed run against the undisturbed one's."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from chaos import CAMPAIGN, Chaos
from launching import launch, metrics_of, running, summary_of, train

EXPERIMENT: list[object] = [*CAMPAIGN, "--total-steps", 1024 * 25]
SCHEDULES = ["sync", "pipelined"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("undisturbed")
    flags = ["--in-process", *EXPERIMENT, "--schedule"]
    return {s: train(path / s, *flags, s)["weights_digest"] for s in SCHEDULES}


def disturb(run_dir: Path, schedule: str, faults: list[str]) -> dict[str, Any]:
    """A run with a fault every four iterations; returns its summary."""
    flags = [*EXPERIMENT, "--schedule", schedule, "--actors", 2, "--step-timeout", 2]
    chaos = Chaos(run_dir, flags, random.Random(0))
    summary = chaos.run(faults, due=lambda i: chaos.iterations() >= 4 * (i + 1))
    assert chaos.done == faults, "the run ended before its faults"
    samples = summary["samples"]
    assert samples["in_flight"] == 0
    assert samples["produced"] == samples["trained"] + sum(samples["dropped"].values())
    return summary


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "faults",
    [
        ["stop_actor"],
        ["kill_learner_and_actor", "kill_learner_while_saving"],
        ["kill_everything", "kill_launcher"],
        ["change_actors", "kill_actor", "change_actors"],
    ],
    ids=lambda faults: "-".join(faults),
)
def test_faults_do_not_change_the_weights(
    tmp_path: Path, undisturbed: dict[str, str], schedule: str, faults: list[str]
) -> None:
    summary = disturb(tmp_path / "run", schedule, faults)
    assert summary["weights_digest"] == undisturbed[schedule]


def test_a_memory_and_observations_of_several_parts_move_to_another_actor(tmp_path: Path) -> None:
    flags: list[object] = ["--env", "tests.environments:EverySpace-v0", "--env-kwargs", "observation='dict'"]
    flags += ["--recurrent-size", 8, "--num-envs", 16, "--lane-size", 4, "--rollout-length", 8]
    flags += ["--total-steps", 128 * 6, "--minibatches", 4, "--epochs", 1]
    whole = train(tmp_path / "whole", "--in-process", *flags)
    chaos = Chaos(tmp_path / "run", [*flags, "--actors", 2], random.Random(0))
    disturbed = chaos.run(["kill_actor"], due=lambda _: chaos.iterations() >= 2)
    assert chaos.done == ["kill_actor"], "the run ended before its fault"
    assert disturbed["lanes_not_replayable"] == 0
    assert disturbed["weights_digest"] == whole["weights_digest"]


def test_an_actor_that_is_stopped_is_replaced_and_counted(tmp_path: Path) -> None:
    assert disturb(tmp_path / "run", "pipelined", ["stop_actor"])["actor_restarts"] == 1


def test_a_killed_learner_is_restarted_and_counted(tmp_path: Path) -> None:
    summary = disturb(tmp_path / "run", "pipelined", ["kill_learner", "kill_learner"])
    assert summary["learner_restarts"] == 2
    assert [row["policy_version"] for row in metrics_of(tmp_path / "run")] == list(range(1, 26))


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "marks"
    path.mkdir()
    monkeypatch.setenv("MARKS", str(path))
    return path


SMALL = "--num-envs 16 --lane-size 2 --rollout-length 32 --minibatches 4 --epochs 2 --total-steps 4096".split()  # noqa: SIM905


@pytest.mark.parametrize("fault", ["hang", "exit"])
def test_steps_that_never_return_or_end_the_process_change_nothing(tmp_path: Path, marks: Path, fault: str) -> None:
    env = ["--env", f"tests.environments:{fault.title()}-v0", *SMALL]
    disturbed = train(tmp_path / "disturbed", *env, "--actors", 2, "--step-timeout", 2)
    assert disturbed["actor_restarts"] > 0
    marks_left = list(marks.iterdir())
    assert marks_left
    undisturbed = train(tmp_path / "undisturbed", *env, "--in-process")  # what happens once has happened
    assert list(marks.iterdir()) == marks_left
    assert disturbed["weights_digest"] == undisturbed["weights_digest"]


@pytest.mark.parametrize("fault", ["raise", "nan", "inf-reward", "shape"])
def test_an_environment_that_misbehaves_is_named_and_changes_nothing_between_executions(
    tmp_path: Path, fault: str
) -> None:
    env = ["--env", f"tests.environments:{fault.title()}-v0", *SMALL]
    done = launch("--run-dir", tmp_path / "one", *env, "--in-process")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "episode seed" in done.stdout
    assert "step 19" in done.stdout
    one, other = summary_of(tmp_path / "one"), train(tmp_path / "other", *env, "--actors", 3)
    assert one["env_faults"] == other["env_faults"] > 0
    assert one["weights_digest"] == other["weights_digest"]


def test_on_env_error_stop_ends_the_run_with_what_went_wrong(tmp_path: Path) -> None:
    env = ["--env", "tests.environments:Raise-v0", *SMALL, "--on-env-error", "stop"]
    done = launch("--run-dir", tmp_path / "run", *env)
    assert done.returncode == 1
    assert "RuntimeError: the step fails" in done.stderr
    assert "Traceback" not in done.stderr
    assert summary_of(tmp_path / "run")["status"] == "failed"
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_constructor_that_always_fails_ends_the_run_with_its_cause(tmp_path: Path) -> None:
    begun = time.monotonic()
    done = launch("--run-dir", tmp_path / "run", "--env", "tests.environments:Constructor-v0", *SMALL, "--actors", 2)
    assert done.returncode == 1
    assert time.monotonic() - begun < 60
    assert "the constructor fails" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("env", "flags"),
    [("tests.environments:Forgetful-v0", []), ("tests.environments:RememberingReward-v0", [])],
)
def test_an_environment_that_does_not_repeat_itself_is_noticed_when_a_lane_moves(
    tmp_path: Path, env: str, flags: list[object]
) -> None:
    chaos = Chaos(tmp_path / "run", ["--env", env, *EXPERIMENT, "--actors", 2, *flags], random.Random(0))
    with running(chaos.run_dir, *chaos.flags) as chaos.process:
        while len(chaos.actors()) < 2 or chaos.iterations() < 3:
            time.sleep(0.05)
        chaos.kill_actor()
        output, _ = chaos.process.communicate(timeout=60)
    assert chaos.process.returncode == 0, output
    assert output.count("does not repeat itself") == 1
    summary = summary_of(chaos.run_dir)
    assert summary["lanes_not_replayable"] > 0
    assert summary["deterministic"] is False


def test_an_environment_that_draws_from_the_global_random_is_named(tmp_path: Path) -> None:
    done = launch("--run-dir", tmp_path / "run", "--env", "tests.environments:GlobalRandom-v0", *SMALL, "--actors", 1)
    assert done.returncode == 0
    assert done.stdout.count("draws from the global") == 1
    assert summary_of(tmp_path / "run")["deterministic"] is False


def test_a_full_disk_is_told_training_goes_on_and_what_could_not_be_saved_is_no_success(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    """A limit of 60 kB a file stands in for the disk: checkpoints do not fit."""
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        " import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        " sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            str(root / "launch.py"),
            "--run-dir",
            str(tmp_path / "run"),
            *map(str, EXPERIMENT),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "CHECKPOINT NOT SAVED" in done.stdout
    assert "version 25 could not be saved" in done.stderr
    assert summary_of(tmp_path / "run")["env_steps"] == 1024 * 25
    assert launch("--resume", tmp_path / "run").returncode == 0
    assert summary_of(tmp_path / "run")["weights_digest"] == undisturbed["pipelined"]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_damaged_checkpoint_is_passed_over_on_resume(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    with running(tmp_path / "run", *EXPERIMENT, "--actors", 1) as process:
        checkpoints = tmp_path / "run" / "checkpoints"
        while not (checkpoints / "00000006").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    newest = max(checkpoints.iterdir())
    (newest / "arrays.safetensors").write_bytes((newest / "arrays.safetensors").read_bytes()[:-1])
    done = launch("--resume", tmp_path / "run")
    assert done.returncode == 0
    assert f"checkpoint {newest.name} is passed over" in done.stdout
    assert summary_of(tmp_path / "run")["weights_digest"] == undisturbed["pipelined"]


def test_actors_come_and_go_while_a_run_goes_on(tmp_path: Path) -> None:
    # Environments that sleep, so that no machine is too fast for commands to find the run under way.
    slow = [*CAMPAIGN, "--env", "benchmarks.environments:Sleep-v0", "--env-kwargs", "seconds=0.001"]
    slow += ["--total-steps", 1024 * 8]
    undisturbed = train(tmp_path / "undisturbed", *slow, "--actors", 8)
    chaos = Chaos(tmp_path / "run", [*slow, "--actors", 1], random.Random(0))
    with running(chaos.run_dir, *chaos.flags) as chaos.process:
        for count in (3, 1, 2):
            while not (chaos.run_dir / "metrics.jsonl").exists():
                time.sleep(0.02)
            done = launch("actors", chaos.run_dir, "--count", count)
            assert done.returncode == 0, done.stderr
            assert len(chaos.actors()) == count
        output, _ = chaos.process.communicate(timeout=60)
    assert chaos.process.returncode == 0, output
    assert summary_of(chaos.run_dir)["actor_restarts"] == 0
    assert summary_of(chaos.run_dir)["weights_digest"] == undisturbed["weights_digest"]
    assert launch("actors", chaos.run_dir, "--count", 2).returncode == 2


def test_many_more_actors_than_cores_are_not_taken_to_hang(tmp_path: Path) -> None:
    flags = ["--num-envs", 24, "--lane-size", 1, "--rollout-length", 32, "--minibatches", 4, "--total-steps", 768 * 3]
    many = train(tmp_path / "many", *flags, "--actors", 24)
    one = train(tmp_path / "one", *flags, "--in-process", "--actors", 1)
    assert many["actor_restarts"] == 0
    assert many["weights_digest"] == one["weights_digest"]


def test_no_process_outlives_its_test() -> None:
    ours = str(os.getpid())
    left = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("STARTED_BY_TESTS") == ours]
    assert not left
