"""The examples: each runs by the command that examples/README.md gives for it, with less training."""

import re
import shlex
from pathlib import Path

import pytest
from launching import ROOT, metrics_of, run_python, summary_of

EXAMPLES = ROOT / "examples"
# By the name of the file, the command in its row of the table.
COMMANDS: dict[str, str] = dict(re.findall(r"^\| \[(\S+)\].* \| `(.+?)`", (EXAMPLES / "README.md").read_text(), re.M))
ELSEWHERE = {"cartpole.ipynb": "test_facade.py", "pendulum.toml": "test_sweep.py"}  # What runs there, not here.
SHORT = "--total-steps 8192"


def run(command: str, folder: Path, more: str = SHORT) -> str:
    """Run a command in `folder`, as if that were this project's; returns what it printed."""
    for name in ("launch.py", "examples"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    python, *words = shlex.split(f"{command} {more}")
    assert python == "python"
    done = run_python(*words, cwd=folder, environ={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    return done.stdout


def trained(name: str, folder: Path, more: str = SHORT) -> tuple[str, dict]:
    """What the command of an example printed, and the last row of its metrics."""
    said = run(COMMANDS[name], folder, more)
    (run_dir,) = (folder / "runs").iterdir()
    summary = summary_of(run_dir)
    assert summary["status"] == "finished" and not summary["env_faults"]
    return said, metrics_of(run_dir)[-1]


def doctors_findings(name: str, folder: Path) -> str:
    """What `doctor` prints about the environment of an example. Its exit code is 0 if nothing is wrong with it."""
    words = shlex.split(COMMANDS[name])
    found = run(f"python launch.py doctor {words[words.index('--env') + 1]}", folder, more="")
    assert "reproducible" in found
    return found


def test_every_example_has_a_command_that_a_test_runs() -> None:
    """The functions below run those that are not tested elsewhere: a new file needs one of these, too."""
    files = {path.name for path in EXAMPLES.iterdir()} - {"README.md", "__init__.py", "__pycache__"}
    assert files == COMMANDS.keys()
    here = Path(__file__).read_text()
    for name in files - ELSEWHERE.keys():
        assert re.search(rf'(trained|run)\((COMMANDS\[)?"{re.escape(name)}"', here), f"no test runs {name}"
    for name, test in ELSEWHERE.items():
        pattern = rf'ROOT / "examples".*("{re.escape(name)}"|"\*{re.escape(Path(name).suffix)}")'
        assert re.search(pattern, (ROOT / "tests" / test).read_text()), f"{test} does not run {name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_says_the_command_of_the_table(name: str) -> None:
    path = EXAMPLES / name
    text = (path / "__init__.py" if path.is_dir() else path).read_text()
    said = re.search(rf"(^ +|`){re.escape(COMMANDS[name])}(`|$)", text, re.M)
    assert said or path.suffix == ".ipynb"


def test_an_environment_of_ones_own(tmp_path: Path) -> None:
    _, row = trained("own_environment.py", tmp_path)
    assert row["rollout/episode_length_mean"] == 96


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_environment.py", "success_and_masks.py"])
def test_doctor_finds_nothing_wrong(name: str, tmp_path: Path) -> None:
    found = doctors_findings(name, tmp_path)
    assert ("action masks: from its method" in found) == (name == "success_and_masks.py")


@pytest.mark.slow
def test_a_network_of_ones_own(tmp_path: Path) -> None:
    trained("own_network", tmp_path)


@pytest.mark.slow
def test_a_success_rate_and_masks(tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    said, row = trained("success_and_masks.py", tmp_path / "with")
    assert re.search(r"success +\d+%", said)
    assert 0 < row["episode/is_success"] < 1 and row["episode/refused"] == 0
    _, row = trained("success_and_masks.py", tmp_path / "without", f"{SHORT} --env-kwargs masks=false")
    assert row["episode/refused"] > 0


@pytest.mark.slow
def test_the_facade(tmp_path: Path) -> None:
    said = run(COMMANDS["facade.py"], tmp_path)
    assert "finished after 8,192 env-steps" in said and "of the episodes of an evaluation" in said
    assert re.search(r"\n[←↓→↑]{4}\n[←↓→↑]H[←↓→↑]H\n[←↓→↑]{3}H\nH[←↓→↑]{2}G\n$", said.replace(" ", ""))
