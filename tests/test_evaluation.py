"""Evaluation during training: results do not depend on the course of the run, and do not change the run."""

import json
import queue
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from gate import Gate, iterations
from launching import children, launch, output_of, running, stop, summary_of, train, wait_for
from marks import slow

from protocol.events import Event
from rundir.checkpoint import list_checkpoints
from supervisor.evaluation import Evaluation, best_of, read_results
from supervisor.workers import Events

EXPERIMENT = "--num-envs 16 --lane-size 2 --rollout-length 32 --total-steps 14336 --minibatches 4 --epochs 2".split()  # noqa: SIM905
EVERY: list[object] = [*EXPERIMENT, "--eval-every", 8, "--eval-episodes", 3]
VERSIONS = [8, 16, 24, 28]  # The last version is evaluated, too.


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    return read_results(run_dir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    train(run_dir, *EVERY, "--actors", 1)
    return run_dir


def assert_same_as(whole: Path, run_dir: Path) -> None:
    assert evaluations(run_dir) == evaluations(whole)
    assert [path.name for path in list_checkpoints(run_dir / "best")] == [
        path.name for path in list_checkpoints(whole / "best")
    ]
    assert list_checkpoints(run_dir / "evaluations") == []
    assert summary_of(run_dir)["evaluations"] == summary_of(whole)["evaluations"]
    assert summary_of(run_dir)["weights_digest"] == summary_of(whole)["weights_digest"]


def test_every_nth_version_and_the_last_are_evaluated(whole: Path) -> None:
    results = evaluations(whole)
    assert [result["policy_version"] for result in results] == VERSIONS
    assert [result["env_steps"] for result in results] == [512 * version for version in VERSIONS]
    assert all(len(result["returns"]) == result["episodes"] == 3 for result in results)
    assert len({tuple(result["returns"]) for result in results}) > 1


@pytest.mark.slow
def test_evaluations_are_equal_with_three_actors(tmp_path: Path, whole: Path) -> None:
    train(tmp_path / "run", *EVERY, "--actors", 3)
    assert_same_as(whole, tmp_path / "run")


@pytest.mark.slow
def test_evaluating_does_not_change_the_weights(tmp_path: Path, whole: Path) -> None:
    summary = train(tmp_path / "run", *EXPERIMENT, "--in-process")
    assert summary["weights_digest"] == summary_of(whole)["weights_digest"]
    assert "evaluations" not in summary
    assert not (tmp_path / "run" / "evaluations").exists()


def test_the_best_is_kept_and_is_really_the_best(whole: Path) -> None:
    best = max(evaluations(whole), key=lambda result: (result["return_mean"], -result["policy_version"]))
    assert [int(path.name) for path in list_checkpoints(whole / "best")] == [best["policy_version"]]
    summary = summary_of(whole)["evaluations"]
    assert summary["best"]["policy_version"] == best["policy_version"]
    assert summary["last"]["policy_version"] == VERSIONS[-1]
    done = launch("eval", whole, "--best", "--episodes", 3)
    assert done.returncode == 0, done.stderr
    result = json.loads((whole / "eval.json").read_text())
    assert (result["policy_version"], result["returns"]) == (best["policy_version"], best["returns"])


def test_of_equal_evaluations_the_older_is_the_best() -> None:
    results = [{"policy_version": version, "return_mean": mean} for version, mean in [(1, 3.0), (3, 5.0), (2, 5.0)]]
    assert best_of(results) is results[2]


@pytest.mark.slow
def test_a_killed_evaluator_changes_nothing(tmp_path: Path, whole: Path) -> None:
    run_dir = tmp_path / "run"
    gate = Gate(run_dir, 8)  # The gate also holds the evaluator of version 8.
    killed: set[int] = set()
    with running(run_dir, *EVERY, "--actors", 2, *gate.flags) as process:

        def kill_evaluators() -> bool:
            for evaluator in children(psutil.Process(process.pid), "supervisor.evaluator"):
                if evaluator.pid not in killed:
                    assert evaluator.nice() >= 0
                    evaluator.kill()
                    killed.add(evaluator.pid)
            return len(killed) == 3

        wait_for(kill_evaluators, process)
        gate.open()
        out = output_of(process)
    assert len(re.findall("warning: an evaluation was killed by SIGKILL", out)) == 3
    assert_same_as(whole, run_dir)


@pytest.mark.slow
def test_a_killed_learner_a_stop_and_a_resume_change_nothing(tmp_path: Path, whole: Path) -> None:
    run_dir = tmp_path / "run"
    gate = Gate(run_dir, 8)  # The gate also holds the evaluator of version 8.
    with running(run_dir, *EVERY, "--actors", 2, "--checkpoint-every", 10, *gate.flags) as process:
        wait_for(lambda: list_checkpoints(run_dir / "evaluations"), process)
        (learner,) = children(psutil.Process(process.pid), "learner")
        learner.kill()
        gate.close_after(12)
        wait_for(lambda: iterations(run_dir) >= 12, process)
        stop(process, signal.SIGINT)
    assert summary_of(run_dir)["status"] == "stopped", "the run ended before its faults"
    gate.open()
    done = launch("--resume", run_dir, "--actors", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_as(whole, run_dir)


@pytest.mark.slow
def test_a_finished_run_makes_up_for_evaluations_that_were_left(tmp_path: Path, whole: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    lines = (whole / "evaluations.jsonl").read_text().splitlines(keepends=True)
    # The last line is incomplete, as after a full disk.
    (run_dir / "evaluations.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])
    last = f"{VERSIONS[-1]:08d}"
    shutil.copytree(run_dir / "checkpoints" / last, run_dir / "evaluations" / last)
    done = launch("--resume", run_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"evaluation of version {VERSIONS[-1]}" in done.stdout
    assert_same_as(whole, run_dir)


def test_what_was_entered_already_is_not_evaluated_again(tmp_path: Path, whole: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    told = [{**result, "return_mean": -1.0} for result in evaluations(whole)]
    (run_dir / "evaluations.jsonl").write_text("".join(json.dumps(result) + "\n" for result in told))
    last = f"{VERSIONS[-1]:08d}"
    shutil.copytree(run_dir / "checkpoints" / last, run_dir / "evaluations" / last)
    events: Events = queue.SimpleQueue()
    ticks: list[int] = []
    Evaluation(run_dir, events, 60.0).finish(lambda _: None, lambda: ticks.append(1))
    assert len(ticks) > 1  # The terminal and status.json are kept up to date meanwhile.
    assert evaluations(run_dir) == told
    assert list_checkpoints(run_dir / "evaluations") == []


@pytest.mark.slow
def test_an_evaluator_that_keeps_failing_is_given_up_and_said(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.crashes.BACKOFF", 0.01)
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    (run_dir / "evaluations" / "00000099").mkdir()  # An empty folder is no checkpoint.
    said: list[Event] = []
    events: Events = queue.SimpleQueue()
    evaluation = Evaluation(run_dir, events, 60.0)
    evaluation.finish(said.append, lambda: None)
    evaluation.end()
    while not events.empty():
        said.append(events.get())
    assert sum("manifest.json" in str(event) for event in said) == 5
    assert "WITHOUT EVALUATIONS" in str(said[-1])
    assert evaluation.pending() == 1


@pytest.mark.parametrize(("flag", "value"), [("--eval-every", 0), ("--eval-episodes", 0)])
def test_what_cannot_be_evaluated_is_refused(tmp_path: Path, flag: str, value: int) -> None:
    done = launch("--run-dir", tmp_path / "run", flag, value)
    assert done.returncode == 2
    assert flag in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_best_of_a_run_that_was_not_evaluated_is_refused(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "best")
    done = launch("eval", tmp_path / "run", "--best")
    assert done.returncode == 2
    assert "--eval-every" in done.stderr


ILL = ["--env", "tests.environments_faulty:Ill-v0"]
FEW = ["--num-envs", 8, "--lane-size", 2, "--rollout-length", 16, "--minibatches", 2, "--total-steps", 1024]


@pytest.mark.parametrize(
    "kwargs",
    [
        *(slow(k) for k in (["how=nan"], ["how=raise"], ["how=exit"], ["how=exit", "where=reset"], ["move=True"])),
    ],
)
def test_episodes_that_end_in_a_fault_are_counted_apart(
    tmp_path: Path, kwargs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # The run directory is relative, and an environment changes the working directory.
    every = ["--eval-every", 4, "--eval-episodes", 20]
    train(Path("run"), *ILL, "--env-kwargs", "every=9", *kwargs, *FEW, *every, "--actors", 1)
    for row in evaluations(tmp_path / "run"):
        assert row["episodes"] == len(row["returns"]) and row["episodes"] + row["faults"] == 20
        assert row["faults"] > 0 and row["first_fault"]["seed"] % 9 == 0
        assert 0 <= row["return_mean"] <= 10
    assert list_checkpoints(tmp_path / "run" / "best")
    done = launch("eval", "run", "--episodes", 20)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert result["episodes"] == len(result["returns"]) == len(result["lengths"]) == 20 - len(result["faults"])
    where = 0 if "where=reset" in kwargs else 4
    assert result["faults"] and all(fault["seed"] % 9 == 0 and fault["step"] == where for fault in result["faults"])
    assert f"{len(result['faults'])} of 20 episodes ended in a fault" in done.stdout


@pytest.mark.slow
def test_where_every_episode_ends_in_a_fault_there_is_no_return_and_no_best(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(run_dir, *ILL, "--env-kwargs", "every=2000000011", *FEW, "--eval-every", 4, "--actors", 1)
    config = (run_dir / "config.toml").read_text()
    (run_dir / "config.toml").write_text(config.replace("every=2000000011", "every=1"))
    done = launch("eval", run_dir, "--episodes", 3)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "3 of 3 episodes ended in a fault" in done.stderr
    text = (run_dir / "eval.json").read_text()
    result = json.loads(text)
    assert "NaN" not in text and result["return_mean"] is None and result["episodes"] == 0
    last = list_checkpoints(run_dir / "checkpoints")[-1]
    for name in ("evaluations", "best"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    (run_dir / "evaluations.jsonl").unlink()
    shutil.copytree(last, run_dir / "evaluations" / last.name)
    done = launch("--resume", run_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = evaluations(run_dir)
    assert (row["return_mean"], row["faults"]) == (None, 20)
    assert "20 ended in a fault" in done.stdout
    assert not list_checkpoints(run_dir / "best")
    assert "best" not in summary_of(run_dir).get("evaluations", {})
    shutil.copytree(run_dir, tmp_path / "same")
    assert launch("compare", run_dir, tmp_path / "same").returncode == 0


def test_the_best_is_among_those_that_have_a_return() -> None:
    results = [{"policy_version": version, "return_mean": mean} for version, mean in [(1, None), (2, -5.0), (3, None)]]
    assert best_of(results) == results[1]
    assert best_of(results[:1]) is None


@pytest.mark.parametrize("how", ["raise", *map(slow, ("exit", "hang", "hang in C"))])
def test_results_come_before_a_close_that_fails_or_hangs(tmp_path: Path, how: str) -> None:
    run_dir = tmp_path / "run"
    train(run_dir, *ILL, "--env-kwargs", "every=2000000011", *FEW, "--in-process")
    config = (run_dir / "config.toml").read_text()
    assert config.count('"every=2000000011"') == 1
    (run_dir / "config.toml").write_text(config.replace('"every=2000000011"', f'"every=2000000011", "close={how!r}"'))
    done = launch("eval", run_dir, "--episodes", 3)
    assert done.returncode == 0, done.stderr
    assert "over 3 episodes" in done.stdout
    assert json.loads((run_dir / "eval.json").read_text())["episodes"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("execution", [["--in-process"], ["--actors", 2]])
def test_a_run_ends_whatever_close_does(tmp_path: Path, execution: list[object]) -> None:
    for how in ("raise", "hang"):
        kwargs = ["--env-kwargs", "every=2000000011", f"close={how}"]
        train(tmp_path / how, *ILL, *kwargs, *FEW, *execution, "--eval-every", 8, "--eval-episodes", 2)
        assert len(evaluations(tmp_path / how)) == 1


@pytest.mark.slow
def test_an_environment_that_hangs_in_an_evaluation_alone_ends_it_and_not_the_run(tmp_path: Path) -> None:
    hangs = ["--env-kwargs", "how='hang in evaluation'", "--env-kwargs", "every=1"]
    flags = [*ILL, *hangs, *FEW, "--eval-every", 4, "--step-timeout", 2, "--in-process", "--run-dir", tmp_path / "run"]
    done = launch(*flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the environment has made no progress for 2 s (--step-timeout)") == 1
    assert "WITHOUT EVALUATIONS, which are left for --resume" in done.stdout
    assert summary_of(tmp_path / "run")["status"] == "finished"
    assert list_checkpoints(tmp_path / "run" / "evaluations")
