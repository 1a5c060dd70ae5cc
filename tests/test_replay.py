"""`replay`: repeats a fault for the user and shows the line that raised."""

import json
import subprocess
from pathlib import Path

import pytest
from launching import LAUNCH, TIMEOUT, launch, train
from marks import slow

from learner.faults import list_faults

ILL = ["--env", "tests.environments_faulty:Ill-v0"]
SMALL = "--num-envs 8 --lane-size 2 --rollout-length 32 --minibatches 2 --epochs 1 --total-steps 2048".split()  # noqa: SIM905


def run_with_faults(run_dir: Path, *kwargs: str) -> Path:
    train(run_dir, *ILL, "--env-kwargs", "every=17", *kwargs, *SMALL, "--in-process")
    return run_dir


@pytest.fixture(scope="module")
def raising(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_with_faults(tmp_path_factory.mktemp("raising") / "run")


def test_faults_are_listed_and_each_comes_again_with_the_users_own_line(raising: Path) -> None:
    listed = launch("replay", raising)
    assert listed.returncode == 0, listed.stderr
    found = list_faults(raising / "faults")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [str(number) for number, _, _ in found]
    number, fault, actions = found[-1]
    assert len(actions) == fault.step + 1 == 5
    done = launch("replay", raising, number)
    assert (done.returncode, done.stderr) == (0, "")
    for part in (f"reset with seed {fault.seed}, then 5 actions", f"action {actions[3]}", "step 4: action"):
        assert part in done.stdout
    assert 'raise RuntimeError("the simulation diverged")' in done.stdout  # The line in the user's file.
    assert "actors/simulation.py" not in done.stdout
    assert done.stdout.endswith("the fault has come again\n")


@pytest.mark.parametrize("where", ["step", slow("reset")])
def test_nonsense_and_resets_come_again(tmp_path: Path, where: str) -> None:
    done = launch("replay", run_with_faults(tmp_path / "run", "how=nan", f"where={where}"), 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{where}: the observation is not finite\nthe fault has come again\n" in done.stdout


def test_what_does_not_come_again_is_said(raising: Path, tmp_path: Path) -> None:
    (tmp_path / "faults").mkdir()
    config = (raising / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(config.replace("every=17", "every=2000000011"))  # The fault is fixed.
    (tmp_path / "faults" / "1.json").write_bytes((raising / "faults" / "1.json").read_bytes())
    done = launch("replay", tmp_path, 1)
    assert (done.returncode, done.stderr) == (1, "")
    assert "DID NOT COME AGAIN" in done.stdout


def test_the_debugger_stops_where_the_environment_raised(raising: Path) -> None:
    done = subprocess.run(
        [*LAUNCH, "replay", str(raising), "1", "--debugger"],
        input="p self._steps, self._how\nq\n",
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert "(5, 'raise')" in done.stdout
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_what_cannot_be_replayed_is_said_in_one_line(raising: Path, tmp_path: Path) -> None:
    data = json.loads((raising / "faults" / "1.json").read_text())
    (tmp_path / "faults").mkdir()
    (tmp_path / "config.toml").write_bytes((raising / "config.toml").read_bytes())
    (tmp_path / "faults" / "1.json").write_text(json.dumps(data | {"actions": ["left"]}))
    for words, said in (
        (["replay", tmp_path / "nowhere"], "there is no run here"),
        (["replay", raising, 99], "has no fault 99; there are 1, "),
        (["replay", raising, 1, "--video", tmp_path], "has no render modes"),
        (["replay", tmp_path, 1], "the actions that were kept are none of this environment's"),
    ):
        done = launch(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr


def test_a_run_without_faults_says_so(tmp_path: Path) -> None:
    train(tmp_path / "run", *SMALL, "--total-steps", 256, "--in-process")
    done = launch("replay", tmp_path / "run")
    assert (done.returncode, done.stdout.count("left no faults")) == (0, 1)
