"""Environments that end or disturb the process that they share with the launcher, and the messages about this."""

from pathlib import Path

import pytest
from launching import SMALL, launch, summary_of, train
from marks import slow

ILL = "tests.environments_faulty:Ill-v0"


def run_in_process(run_dir: Path, how: str, every: int = 4) -> tuple[int, str, str]:
    done = launch(
        *("--env", ILL, "--env-kwargs", f"how={how}", "--env-kwargs", f"every={every}", *SMALL),
        *("--in-process", "--run-dir", run_dir),
    )
    return done.returncode, done.stdout, done.stderr


def test_an_environment_that_ends_the_launchers_process_is_told_of(tmp_path: Path) -> None:
    code, _, errors = run_in_process(tmp_path / "run", "leave")
    assert code == 1
    assert errors.splitlines()[-1].endswith("ended this process with os._exit(0)")


@pytest.mark.slow
def test_so_is_one_that_ends_an_evaluation(tmp_path: Path) -> None:
    code, output, _ = run_in_process(tmp_path / "run", "raise", every=1_000_000)
    assert code == 0, output
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace("how=raise", "how=leave").replace("every=1000000", "every=1"))
    done = launch("eval", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.endswith("ended this process with os._exit(0)\n")


@pytest.mark.parametrize("words", ["import os; os._exit(0)", "raise KeyboardInterrupt"])
def test_so_is_a_module_that_ends_whoever_imports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    (tmp_path / "ends.py").write_text(words)
    monkeypatch.chdir(tmp_path)
    done = launch("--env", "ends:Env-v0", "--run-dir", tmp_path / "run")
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_forks_of_an_environment_end_as_they_want(tmp_path: Path) -> None:
    code, _, errors = run_in_process(tmp_path / "run", "fork")
    assert (code, errors) == (0, "")
    assert summary_of(tmp_path / "run")["env_faults"] == 0


@pytest.mark.slow
def test_a_keyboard_interrupt_of_an_environment_is_a_fault(tmp_path: Path) -> None:
    code, output, errors = run_in_process(tmp_path / "run", "interrupt", every=40)
    assert (code, errors) == (0, "")
    assert "it raised KeyboardInterrupt; its episode was truncated there" in output
    assert summary_of(tmp_path / "run")["env_faults"] > 0


def test_a_run_that_its_environments_end_says_so_in_one_line_and_keeps_the_traceback(tmp_path: Path) -> None:
    code, _, errors = run_in_process(tmp_path / "run", "raise", every=1)
    assert code == 1
    assert errors.count("\n") == 1
    assert "episodes ended in a fault" in errors
    assert "Traceback" in (tmp_path / "run" / "logs" / "learner.log").read_text()


@pytest.mark.parametrize("execution", [["--in-process"], slow(["--actors", 3])])
@pytest.mark.parametrize("where", ["constructor", "reset"])
def test_an_environment_that_cannot_even_begin_ends_the_run_at_once_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, execution: list[object]
) -> None:
    """Another process would fail in the same way, so no process is started again."""
    method = {"constructor": "__init__(self)", "reset": "reset(self, **_)"}[where]
    (tmp_path / "never.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
        f"class Never(CartPoleEnv):\n    def {method}:\n        raise ValueError('first line\\nsecond line')\n"
        "gymnasium.register('Never-v0', entry_point=Never)\n"
    )
    monkeypatch.chdir(tmp_path)
    done = launch("--env", "never:Never-v0", "--run-dir", "run", *SMALL, *execution)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "never:Never-v0" in done.stderr and f"{where}: it raised ValueError: first line second line" in done.stderr
    assert "times in a row" in done.stderr and "--resume run" in done.stderr
    assert "starts again" not in done.stdout
    assert f"(never.py, line 5, in {method.partition('(')[0]})" in done.stderr.replace(f"{tmp_path}/", "")
    summary = summary_of(tmp_path / "run")
    assert (summary["status"], summary.get("actor_restarts")) == ("failed", 0)
    assert summary["error"] in done.stderr


@pytest.mark.slow
def test_a_constructor_that_fails_now_and_then_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flaky.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import CartPoleEnv\nmade = 0\n"
        "class Flaky(CartPoleEnv):\n    def __init__(self):\n        global made\n        made += 1\n"
        "        if made % 3:\n            raise OSError('no licence is free')\n        super().__init__()\n"
        "gymnasium.register('Flaky-v0', entry_point=Flaky)\n"
    )
    monkeypatch.chdir(tmp_path)
    summary = train(tmp_path / "run", "--env", "flaky:Flaky-v0", *SMALL, "--actors", 2)
    assert summary["actor_restarts"] == 0 and summary["deterministic"] is True


@pytest.mark.slow
def test_an_environment_that_takes_the_output_away_hides_nothing(tmp_path: Path) -> None:
    code, output, errors = run_in_process(tmp_path / "run", "silence", every=1)
    assert (code, errors) == (0, "")
    assert output.splitlines()[-1].startswith("evaluate it:")
    done = launch("eval", tmp_path / "run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("return ")
