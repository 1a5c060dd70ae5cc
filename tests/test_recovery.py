"""Faults at chosen moments, and the digest of the disturbed run compared with the undisturbed run's."""

import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chaos import CAMPAIGN, Chaos
from disturbing import disturb
from gate import Gate
from launching import (
    TIMEOUT,
    launch,
    metrics_of,
    output_of,
    running,
    stop,
    summary_of,
    together,
    train,
    wait_for,
)
from marks import slow

from learner.borders import from_bits
from rundir import checkpoint
from rundir.checkpoint import add_checkpoint, discard_checkpoint, list_checkpoints, load_checkpoint

EXPERIMENT: list[object] = [*CAMPAIGN, "--total-steps", 1024 * 25]
SMALL = "--num-envs 16 --lane-size 2 --rollout-length 32 --minibatches 4 --epochs 2 --total-steps 4096".split()  # noqa: SIM905
HANG = ["--env", "tests.environments:Hang-v0", *SMALL]
SCHEDULES = ["sync", "pipelined"]


# A process that is silent for so long is stopped, on the slowest machine, too. Runs that wait for this run together.
SILENCE = 10  # seconds


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("undisturbed")
    runs = [partial(train, path / s, "--in-process", *EXPERIMENT, "--schedule", s) for s in SCHEDULES]
    return dict(zip(SCHEDULES, (summary["weights_digest"] for summary in together(*runs)), strict=True))


def disturb_campaign(run_dir: Path, schedule: str, faults: list[str], *flags: object) -> dict[str, Any]:
    return disturb(run_dir, [*EXPERIMENT, "--schedule", schedule, "--actors", 2, *flags], faults, every=4)


@dataclass(frozen=True)
class Silent:
    """The results of runs in which actors fell silent."""

    stopped: dict[str, dict[str, Any]]  # Summaries by schedule of runs in which one actor was stopped.
    hung: dict[str, Any]  # Summary of a run whose first two faulty steps never returned.
    marks: Path  # The folder of marks that this run left.


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Silent:
    path = tmp_path_factory.mktemp("silent")
    marks = path / "marks"
    marks.mkdir()
    patience = ["--step-timeout", SILENCE]
    stops = [partial(disturb_campaign, path / s, s, ["stop_actor"], *patience) for s in SCHEDULES]
    hang = partial(train, path / "hung", *HANG, "--actors", 2, *patience, MARKS=str(marks))
    hung, *stopped = together(hang, *stops, at_once=3)
    return Silent(dict(zip(SCHEDULES, stopped, strict=True)), hung, marks)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_actor_that_is_stopped_is_replaced_and_counted_and_changes_nothing(
    undisturbed: dict[str, str], silent: Silent, schedule: str
) -> None:
    assert silent.stopped[schedule]["actor_restarts"] == 1
    assert silent.stopped[schedule]["weights_digest"] == undisturbed[schedule]


@pytest.mark.parametrize("schedule", [slow("sync"), "pipelined"])
@pytest.mark.parametrize(
    "faults",
    [
        ["kill_learner_and_actor", "kill_learner_while_saving"],
        slow(["kill_everything", "kill_launcher"]),
        slow(["kill_launcher_of_a_stopped_learner"]),
        slow(["change_actors", "kill_actor", "change_actors"]),
    ],
    ids="-".join,
)
def test_faults_do_not_change_the_weights(
    tmp_path: Path, undisturbed: dict[str, str], schedule: str, faults: list[str]
) -> None:
    summary = disturb_campaign(tmp_path / "run", schedule, faults)
    assert summary["weights_digest"] == undisturbed[schedule]


@pytest.mark.slow
def test_a_witness_that_is_killed_is_none_of_the_run_s_losses(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    summary = disturb_campaign(tmp_path / "run", "sync", ["kill_witness", "kill_witness"])
    assert summary["weights_digest"] == undisturbed["sync"]
    assert summary["actor_restarts"] == 0 and summary["deterministic"] is True
    assert summary["witness"]["in_other_processes"] > 0


@pytest.mark.slow
def test_a_memory_and_observations_of_several_parts_move_to_another_actor(tmp_path: Path) -> None:
    flags: list[object] = ["--env", "tests.environments:EverySpace-v0", "--env-kwargs", "observation='dict'"]
    flags += ["--recurrent-size", 8, "--num-envs", 16, "--lane-size", 4, "--rollout-length", 8]
    flags += ["--total-steps", 128 * 10, "--minibatches", 4, "--epochs", 1]
    whole = train(tmp_path / "whole", "--in-process", *flags)
    disturbed = disturb(tmp_path / "run", [*flags, "--actors", 2], ["kill_actor"], every=2)
    assert disturbed["lanes_not_replayable"] == 0
    assert disturbed["weights_digest"] == whole["weights_digest"]


@pytest.mark.slow
def test_a_killed_learner_is_restarted_and_counted(tmp_path: Path) -> None:
    summary = disturb_campaign(tmp_path / "run", "pipelined", ["kill_learner", "kill_learner"])
    assert summary["learner_restarts"] == 2
    assert [row["policy_version"] for row in metrics_of(tmp_path / "run")] == list(range(1, 26))


def assert_unchanged(run_dir: Path, disturbed: dict[str, Any], marks: Path, *flags: object) -> None:
    """The faults recorded in `marks` do not happen again, and the same run without them gives the same weights."""
    assert disturbed["actor_restarts"] > 0
    marks_left = list(marks.iterdir())
    assert marks_left
    undisturbed = train(run_dir, *flags, "--in-process", MARKS=str(marks))
    assert list(marks.iterdir()) == marks_left
    assert disturbed["weights_digest"] == undisturbed["weights_digest"]


@pytest.mark.slow
def test_steps_that_never_return_change_nothing(tmp_path: Path, silent: Silent) -> None:
    assert_unchanged(tmp_path / "undisturbed", silent.hung, silent.marks, *HANG)


@pytest.mark.slow
def test_steps_that_end_the_process_change_nothing(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    flags = ["--env", "tests.environments:Exit-v0", *SMALL]
    disturbed = train(tmp_path / "disturbed", *flags, "--actors", 2, MARKS=str(marks))
    assert_unchanged(tmp_path / "undisturbed", disturbed, marks, *flags)


@pytest.mark.parametrize("fault", [*map(slow, ("nan", "raise", "inf-reward", "shape"))])
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


@pytest.mark.slow
def test_on_env_error_stop_ends_the_run_with_what_went_wrong(tmp_path: Path) -> None:
    env = ["--env", "tests.environments:Raise-v0", *SMALL, "--on-env-error", "stop"]
    done = launch("--run-dir", tmp_path / "run", *env)
    assert done.returncode == 1
    assert "RuntimeError: the step fails" in done.stderr
    assert "Traceback" not in done.stderr
    assert summary_of(tmp_path / "run")["status"] == "failed"
    assert list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_constructor_that_always_fails_ends_the_run_with_its_cause(tmp_path: Path) -> None:
    done = launch("--run-dir", tmp_path / "run", "--env", "tests.environments:Constructor-v0", *SMALL, "--actors", 2)
    assert done.returncode == 1
    assert "the constructor fails" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "env",
    [
        "tests.environments:Forgetful-v0",
        slow("tests.environments:RememberingReward-v0"),
    ],
)
def test_an_environment_that_does_not_repeat_itself_is_noticed_when_a_lane_moves(tmp_path: Path, env: str) -> None:
    gate = Gate(tmp_path / "run", 3)
    chaos = Chaos(tmp_path / "run", ["--env", env, *EXPERIMENT, "--actors", 2, *gate.flags], random.Random(0))
    with running(chaos.run_dir, *chaos.flags) as chaos.process:
        wait_for(lambda: chaos.iterations() >= 3, chaos.process)
        for actor in chaos.actors():  # All actors, because one of them may have all the lanes.
            actor.kill()
        gate.open()
        output = output_of(chaos.process)
    assert output.count("does not repeat itself") == 1
    summary = summary_of(chaos.run_dir)
    assert summary["lanes_not_replayable"] > 0
    assert summary["deterministic"] is False


@pytest.mark.slow
def test_an_environment_that_draws_from_the_global_random_is_named(tmp_path: Path) -> None:
    done = launch("--run-dir", tmp_path / "run", "--env", "tests.environments:GlobalRandom-v0", *SMALL, "--actors", 1)
    assert done.returncode == 0
    assert done.stdout.count("draws from the global") == 1
    assert summary_of(tmp_path / "run")["deterministic"] is False


@pytest.mark.slow
def test_a_full_disk_is_told_training_goes_on_and_what_could_not_be_saved_is_no_success(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    """A limit of 60 kB per file simulates a full disk: checkpoints do not fit."""
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
        timeout=TIMEOUT,
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


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_on_resume(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    run_dir = tmp_path / "run"
    gate = Gate(run_dir, 6)
    with running(run_dir, *EXPERIMENT, "--actors", 1, *gate.flags) as process:
        wait_for((run_dir / "checkpoints" / "00000006").exists, process)
        stop(process, signal.SIGINT)
    gate.open()
    checkpoints = run_dir / "checkpoints"
    newest = max(checkpoints.iterdir())
    (newest / "arrays.safetensors").write_bytes((newest / "arrays.safetensors").read_bytes()[:-1])
    done = launch("--resume", tmp_path / "run")
    assert done.returncode == 0
    assert f"checkpoint {newest.name} is passed over" in done.stdout
    assert summary_of(tmp_path / "run")["weights_digest"] == undisturbed["pipelined"]


@pytest.mark.slow
def test_actors_come_and_go_while_a_run_goes_on(tmp_path: Path) -> None:
    experiment = [*CAMPAIGN, "--total-steps", 1024 * 12]
    undisturbed = train(tmp_path / "undisturbed", "--in-process", *experiment)
    gate = Gate(tmp_path / "run", 1)
    chaos = Chaos(tmp_path / "run", [*experiment, "--actors", 1, *gate.flags], random.Random(0))
    with running(chaos.run_dir, *chaos.flags) as chaos.process:
        for count in (3, 1, 2):
            reached = chaos.iterations() + 1
            gate.close_after(reached)
            wait_for(lambda: chaos.iterations() >= reached, chaos.process)  # noqa: B023
            done = launch("actors", chaos.run_dir, "--count", count)
            assert done.returncode == 0, done.stderr
            wait_for(lambda: len(chaos.actors()) == count, chaos.process)  # noqa: B023
        for done in together(*(partial(launch, "actors", chaos.run_dir, "--count", count) for count in (4, 2))):
            assert done.returncode == 0, done.stderr
        gate.open()
        output_of(chaos.process)
    told = (chaos.run_dir / "events.jsonl").read_text()
    assert [told.count(f"now with {count} actors") for count in (3, 1, 2, 4)] == [1, 1, 2, 1]  # No request was lost.
    assert summary_of(chaos.run_dir)["actor_restarts"] == 0
    assert summary_of(chaos.run_dir)["weights_digest"] == undisturbed["weights_digest"]
    assert launch("actors", chaos.run_dir, "--count", 2).returncode == 2


@pytest.mark.slow
def test_many_more_actors_than_cores_are_not_taken_to_hang(tmp_path: Path) -> None:
    flags = ["--num-envs", 24, "--lane-size", 1, "--rollout-length", 32, "--minibatches", 4, "--total-steps", 768 * 3]
    many = train(tmp_path / "many", *flags, "--actors", 24)
    one = train(tmp_path / "one", *flags, "--in-process", "--actors", 1)
    assert many["actor_restarts"] == 0
    assert many["weights_digest"] == one["weights_digest"]


@pytest.mark.slow
@pytest.mark.parametrize("format", checkpoint.OLDER)
def test_a_run_goes_on_exactly_from_a_checkpoint_of_an_older_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: int
) -> None:
    """Format 3 stores actions unpacked. Formats 3 and 4 have another name for hidden states, and no list of the
    parameters that belong to the policy."""
    run_dir = tmp_path / "run"
    whole = train(run_dir, "--in-process", *SMALL, "--recurrent-size", 4, "--checkpoint-every", 1)
    *_, middle, last = list_checkpoints(run_dir / "checkpoints")
    saved = load_checkpoint(middle)
    arrays = dict(saved.arrays)
    for name in [name for name in arrays if name.endswith(".hidden_state")]:
        arrays[f"{name.removesuffix('hidden_state')}memory"] = arrays.pop(name)
    for name in [name for name in arrays if name.endswith(".action_bits") and format == 3]:
        lane = name.removesuffix("action_bits")
        steps = int(arrays[f"{lane}episode_steps"].sum())
        arrays[f"{lane}actions"] = from_bits(arrays.pop(name), (steps,), "int64")
    assert any(name.endswith(".actions") for name in arrays) == (format == 3)
    facts = {name: fact for name, fact in saved.facts.items() if name != checkpoint.POLICY_NAMES}
    monkeypatch.setattr(checkpoint, "FORMAT", format)
    add_checkpoint(run_dir / "checkpoints", replace(saved, arrays=arrays, facts=facts))
    discard_checkpoint(last)
    (run_dir / "summary.json").unlink()
    assert launch("--resume", run_dir).returncode == 0
    assert summary_of(run_dir)["weights_digest"] == whole["weights_digest"]
