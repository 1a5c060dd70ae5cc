"""What an environment may do to the process that it shares with the launcher, and what is said of it."""

from pathlib import Path

import pytest
from launching import SMALL, launch, summary_of

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


def test_forks_of_an_environment_end_as_they_want(tmp_path: Path) -> None:
    code, _, errors = run_in_process(tmp_path / "run", "fork")
    assert (code, errors) == (0, "")
    assert summary_of(tmp_path / "run")["env_faults"] == 0


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
