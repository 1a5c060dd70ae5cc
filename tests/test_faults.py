"""Faults of environments: reported once, counted equally by every execution, kept as files; one fault ends no run."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import launch, summary_of, train
from marks import slow
from test_lanes import ended, first_border, trajectory

from actors.tracebacks import users_lines, users_place
from learner.faults import MAX_FAULTS, MAX_FILES, EnvironmentsFailed, Faults, list_faults
from learner.refusals import AT_ONCE
from protocol.experiment import Experiment
from protocol.trajectory import MAX_TRACEBACK, Fault

ILL = ["--env", "tests.environments_faulty:Ill-v0"]
SMALL = "--num-envs 8 --lane-size 2 --rollout-length 32 --minibatches 2 --epochs 1 --total-steps 4096".split()  # noqa: SIM905


def fault(number: int, **changes: Any) -> Fault:
    plain = Fault(1, number, 100 + number, "step", 1, 1, f"step: it raised ValueError: {number} is wrong")
    return replace(plain, **changes)


def delivered(*faults: Fault, count: int | None = None, **changes: Any) -> Any:
    never = np.zeros((3, 2), bool)
    rollout = trajectory(0, never, ended((1, 1)), np.zeros(2, bool))
    return replace(rollout, faults=faults, fault_count=len(faults) if count is None else count, **changes)


@pytest.fixture
def told() -> list[str]:
    return []


def faults_of(told: list[str], run_dir: Path, **given: Any) -> Faults:
    return Faults(Experiment(), lambda *words: told.append("\n".join(filter(None, words))), run_dir, **given)


def test_faults_that_differ_in_numbers_alone_are_told_once_and_then_counted(told: list[str], tmp_path: Path) -> None:
    faults = faults_of(told, tmp_path)
    for number in range(30):
        faults.tell(delivered(fault(number)), first_border(2))
    assert [text for text in told if "is wrong" in text] == [
        "CartPole-v1 environment 1 (episode seed 100, step 1): step: it raised ValueError: 0 is wrong; its episode was"
        " truncated there"
    ]
    assert [text for text in told if "so far" in text] == ["10 faults of environments so far, of 1 kind"]


def test_the_same_error_at_another_line_is_told_too(told: list[str], tmp_path: Path) -> None:
    faults = faults_of(told, tmp_path)
    lines = [f'  File "mine.py", line {number}, in step' for number in (5, 5, 6)]
    for line in lines:
        faults.tell(delivered(fault(0, traceback=line)), first_border(2))
    assert [text.partition("\n")[2] for text in told] == [lines[0], lines[2]]
    assert fault(0, traceback=lines[0]) == fault(0, traceback="another machine has the file elsewhere")


def test_however_many_kinds_there_are_few_are_told(told: list[str], tmp_path: Path) -> None:
    faults = faults_of(told, tmp_path)
    for number in range(300):
        faults.tell(delivered(fault(0, text="x" * number)), first_border(2))
    assert len(told) < 30


def test_files_hold_the_episodes_actions_and_are_left_once(told: list[str], tmp_path: Path) -> None:
    border, never = first_border(2), np.zeros((3, 2), bool)
    border = border.after(trajectory(0, never, never, np.zeros(2, bool)))
    whole = trajectory(1, never, ended((1, 1)), np.zeros(2, bool))
    rollout = replace(whole, faults=(fault(0, step=4), fault(1, phase="reset", step=0)), fault_count=2)
    for _ in range(2):  # The second time simulates a restart from an older checkpoint.
        faults_of(told, tmp_path).train(rollout, border)
    (first, second) = list_faults(tmp_path / "faults")
    assert first == (1, fault(0, step=4), [1, 3, 5, 1001, 1003])
    assert second == (2, fault(1, phase="reset", step=0), [])


def test_at_most_so_many_files_are_left(told: list[str], tmp_path: Path) -> None:
    faults = faults_of(told, tmp_path)
    for number in range(MAX_FILES + 5):
        faults.train(delivered(fault(number)), first_border(2))
    assert len(list((tmp_path / "faults").iterdir())) == MAX_FILES


def test_a_folder_that_cannot_be_written_is_said_and_ends_nothing(told: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    faults_of(told, tmp_path / "file").train(delivered(fault(0)), first_border(2))
    assert "could not be kept" in told[0]


def test_faults_that_cannot_be_kept_are_told_as_fast_as_can_be_read(told: list[str], tmp_path: Path) -> None:
    now = [0.0]
    (tmp_path / "file").touch()
    faults = faults_of(told, tmp_path / "file", clock=lambda: now[0])
    for number in range(1000):
        faults.train(delivered(fault(number), episode_returns=np.zeros(11)), first_border(2))
    assert len(told) == AT_ONCE
    now[0] = 60.0
    faults.train(delivered(fault(0), episode_returns=np.zeros(11)), first_border(2))
    assert told[-1].endswith(f"(and {1000 - AT_ONCE} more before it)")


def test_too_many_faults_end_the_run_by_their_true_count(told: list[str], tmp_path: Path) -> None:
    faults = faults_of(told, tmp_path)
    faults.train(delivered(fault(0), count=MAX_FAULTS), first_border(2))
    with pytest.raises(EnvironmentsFailed, match=f"{MAX_FAULTS + 1} of .* seed 101"):
        faults.train(delivered(fault(1)), first_border(2))


def test_few_faults_among_many_episodes_end_nothing(told: list[str], tmp_path: Path) -> None:
    faults = faults_of(told, tmp_path)
    for _ in range(2 * MAX_FAULTS):
        faults.train(delivered(fault(0), episode_returns=np.zeros(11)), first_border(2))
    assert (faults.count, faults.episodes) == (2 * MAX_FAULTS, 22 * MAX_FAULTS)


def test_what_is_no_fault_file_is_passed_over(tmp_path: Path) -> None:
    for name, text in (
        ("1", "{"),
        ("2", "[]"),
        ("3", '{"actions": []}'),
        ("x", "{}"),
        ("4", '{"actions": 1, "seed": 2}'),
    ):
        (tmp_path / f"{name}.json").write_text(text)
    assert list_faults(tmp_path) == []


@pytest.mark.parametrize("where", ["reset", slow("step")])
@pytest.mark.parametrize("how", ["exit", slow("long")])
def test_every_execution_meets_the_same_faults(tmp_path: Path, where: str, how: str) -> None:
    flags = [*ILL, "--env-kwargs", f"how={how}", f"where={where}", "every=17", *SMALL]
    one = train(tmp_path / "one", *flags, "--in-process")
    other = train(tmp_path / "other", *flags, "--actors", 2)
    assert one["env_faults"] == other["env_faults"] > 0
    assert one["weights_digest"] == other["weights_digest"]
    kept = [list_faults(tmp_path / name / "faults") for name in ("one", "other")]
    assert kept[0] == kept[1] and len(kept[0]) == min(one["env_faults"], MAX_FILES)


@pytest.mark.slow
def test_an_environment_that_can_never_be_reset_ends_the_run_and_goes_on_once_it_is_mended(tmp_path: Path) -> None:
    module = tmp_path / "mendable.py"
    text = (
        "import gymnasium, pathlib\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Mendable(CartPoleEnv):\n"
        "    def reset(self, **given):\n"
        "        if not (pathlib.Path(__file__).parent / 'mended').exists():\n"
        "            raise RuntimeError('the server is down')\n"
        "        return super().reset(**given)\n"
        "gymnasium.register('Mendable-v0', entry_point=Mendable)\n"
    )
    module.write_text(text)
    environ = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = launch("--run-dir", tmp_path / "run", "--env", "mendable:Mendable-v0", *SMALL, "--actors", 1, **environ)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("launch.py: ")]
    assert "100 times in a row; the last time: reset: it raised RuntimeError: the server is down" in line
    assert "Traceback" not in done.stderr
    (tmp_path / "mended").touch()
    done = launch("--resume", tmp_path / "run", **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary_of(tmp_path / "run")["env_faults"] == 0


@pytest.mark.slow
def test_on_env_error_stop_leaves_the_fault_to_be_replayed(tmp_path: Path) -> None:
    done = launch("--run-dir", tmp_path / "run", *ILL, *SMALL, "--on-env-error", "stop", "--actors", 1)
    assert done.returncode == 1
    assert "RuntimeError: the simulation diverged" in done.stderr
    assert json.loads((tmp_path / "run" / "faults" / "1.json").read_text())["text"].endswith("the simulation diverged")


@pytest.mark.parametrize("execution", [["--in-process"], slow(["--actors", 2])])
def test_a_bug_is_shown_once_where_it_is(tmp_path: Path, execution: list[object]) -> None:
    (tmp_path / "mine.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Mine(CartPoleEnv):\n"
        "    def step(self, action):\n"
        "        return self.missing(action)\n"
        "gymnasium.register('Mine-v0', entry_point=Mine)\n"
    )
    run_dir, path = tmp_path / "run", os.pathsep.join(["tests", str(tmp_path)])
    done = launch("--env", "mine:Mine-v0", "--run-dir", run_dir, *execution, *SMALL, PYTHONPATH=path)
    shown = f'  File "{tmp_path / "mine.py"}", line 5, in step\n    return self.missing(action)\n'
    assert done.returncode == 1 and done.stdout.count(shown) == 1 and done.stdout.count("it raised") == 1
    assert "site-packages" not in done.stdout and "actors" + os.sep not in done.stdout
    assert "faults of environments so far, of 1 kind" in done.stdout
    assert "evaluate it" not in done.stdout and "env-steps in" not in done.stdout
    (line,) = done.stderr.splitlines()
    assert "episodes ended in a fault; the last: mine:Mine-v0" in line
    assert summary_of(run_dir)["status"] == "failed" and "ended in a fault" in summary_of(run_dir)["error"]


class Reading:
    """A loader whose source cannot be read, as some users' import hooks are."""

    def get_source(self, name: str) -> str:
        raise RuntimeError("no source here")


def test_an_error_without_readable_lines_is_told_without_them() -> None:
    code = compile("def step():\n    raise ValueError('\\x1b[31m')", "<made \x1b up>", "exec")
    names: dict[str, Any] = {"__name__": "made_up", "__loader__": Reading()}
    exec(code, names)
    with pytest.raises(ValueError) as caught:
        names["step"]()
    for words in (users_lines(caught.value), users_place(caught.value)):
        assert "\x1b" not in words and len(words) <= MAX_TRACEBACK
    assert users_lines(None) == users_place(None) == users_lines(ValueError("never raised")) == ""


def test_the_place_is_the_users_own_though_a_library_raised() -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    assert re.fullmatch(rf" \({re.escape(__file__)}, line \d+, in test_the_place_\w+\)", users_place(caught.value))
    assert "decoder.py" in users_lines(caught.value)


def test_deep_recursion_is_short() -> None:
    def deeper(n: int) -> int:
        return deeper(n + 1)

    with pytest.raises(RecursionError) as caught:
        deeper(0)
    assert len(users_lines(caught.value)) <= MAX_TRACEBACK and "in deeper" in users_lines(caught.value)


def test_of_many_calls_the_innermost_are_shown() -> None:
    names: dict[str, Any] = {}
    exec("def f0():\n    raise ValueError\n" + "".join(f"def f{n + 1}(): f{n}()\n" for n in range(30)), names)
    with pytest.raises(ValueError) as caught:
        names["f30"]()
    shown = re.findall(r"in (f\d+)", users_lines(caught.value))
    assert shown == [f"f{n}" for n in reversed(range(len(shown)))] and len(shown) == 10
