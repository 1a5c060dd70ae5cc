"""Training from Python: the same runs as by `launch.py`, from scripts, threads and notebooks."""

import importlib.machinery
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from launching import ROOT, metrics_of, summary_of, wait_for
from launching import train as launch_train
from marks import slow

import mlx_distributed_ppo as ppo

SMALL: dict[str, Any] = {
    "num_envs": 16,
    "lane_size": 2,
    "rollout_length": 32,
    "total_steps": 512 * 6,
    "minibatches": 4,
    "epochs": 2,
    "device": "cpu",
    "quiet": True,
}
LONG: dict[str, Any] = {**SMALL, "total_steps": 512 * 400}
FLAGS = [word for name, value in SMALL.items() if name != "quiet" for word in (f"--{name.replace('_', '-')}", value)]


def test_the_settings_are_the_flags_of_today() -> None:
    loader = importlib.machinery.SourceFileLoader("facade", str(ROOT / "scripts" / "facade"))
    spec = importlib.util.spec_from_loader("facade", loader)
    assert spec is not None
    script = importlib.util.module_from_spec(spec)
    loader.exec_module(script)
    text = (ROOT / "mlx_distributed_ppo.py").read_text()
    assert script.written(text) == text, "run scripts/facade"


@pytest.mark.slow
def test_a_run_has_the_bits_of_one_that_launch_started(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wanted = launch_train(tmp_path / "launched", *FLAGS, "--in-process")
    rows: list[dict[str, Any]] = []
    run = ppo.train(rows.append, run_dir=tmp_path / "run", actors=2, **SMALL)
    assert run.summary["weights_digest"] == wanted["weights_digest"] and run.path == tmp_path / "run"
    assert [row["policy_version"] for row in rows] == [1, 2, 3, 4, 5, 6] and rows == run.metrics()
    found = run.evaluate(episodes=3)
    assert found["episodes"] == 3 and found == json.loads((run.path / "eval.json").read_text())
    assert run.policy()(np.zeros(4, np.float32)) in (0, 1)
    assert "return" not in capfd.readouterr().out  # quiet


@pytest.mark.slow
def test_a_callback_ends_a_run_which_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = ppo.train(lambda row: row["policy_version"] >= 3, run_dir=tmp_path / "run", actors=1, **LONG)
    stopped = run.summary["policy_version"]
    assert run.summary["status"] == "stopped" and 3 <= stopped < 400
    seen: list[int] = []
    more = ppo.resume(run.path, lambda row: seen.append(row["policy_version"]) or len(seen) >= 2, quiet=False)
    assert seen[0] == stopped + 1 and more.summary["status"] == "stopped"
    assert "go on:" in capfd.readouterr().out


def test_a_row_that_a_restarted_learner_writes_again_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"

    def write(*versions: int) -> None:
        path.write_text("".join(json.dumps({"policy_version": version}) + "\n" for version in versions))

    write(1)
    rows = ppo._new_rows(path)
    found = []
    for versions in ([1], [1, 2, 3], [1], [1, 2], [1, 2, 3, 4]):
        write(*versions)
        found.append([row["policy_version"] for row in next(rows)])
    assert found == [[], [2, 3], [], [], [4]]


@pytest.mark.slow
def test_a_run_directory_is_chosen_where_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = ppo.train(run_dir=None, actors=1, **(SMALL | {"env": "loud:Loud-v0", "total_steps": 512}))
    assert run.path == tmp_path / "runs/Loud-v0-seed0" and run.summary["status"] == "finished"
    assert "something to know" in capfd.readouterr().err


@pytest.mark.slow
def test_a_callback_that_raises_ends_the_run_and_is_heard(tmp_path: Path) -> None:
    def broken(row: dict[str, Any]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ppo.train(broken, run_dir=tmp_path / "run", actors=1, **LONG)
    assert summary_of(tmp_path / "run")["status"] == "stopped"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"env": "Nope-v1"}, "--env Nope-v1: Environment `Nope` doesn't exist"),
        slow({"lane_size": 3}, "--num-envs 16 is not a multiple of --lane-size 3"),
        ({"total_step": 256}, "total_step is no setting; did you mean total_steps?"),
    ],
)
def test_a_mistake_is_raised_in_a_line(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ppo.TrainingFailed, match=re.escape(said)) as error:
        ppo.train(run_dir=tmp_path / "run", **(SMALL | settings))
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)
    with pytest.raises(ppo.TrainingFailed, match="there is no run here"):
        ppo.resume(tmp_path / "run")


def test_keyword_arguments_of_an_environment_are_a_dict_or_texts() -> None:
    assert ppo._flags({"env_kwargs": {"mode": "a b", "n": 2}}) == ["--env-kwargs", "mode='a b'", "n=2"]
    assert ppo._flags({"env_kwargs": ["n=2"], "seed": 1}) == ["--env-kwargs", "n=2", "--seed", "1"]
    begun: Any = {"init_from": ppo.Run("/runs/first")}
    assert ppo._flags(begun) == ["--init-from", "/runs/first"]
    assert ppo._flags({"quiet": True, "normalize_rewards": False, "target_kl": None}) == [
        *("--quiet", "--no-normalize-rewards"),
        *("--target-kl", "None"),
    ]


@pytest.mark.slow
def test_it_works_in_two_threads_one_after_the_other(tmp_path: Path) -> None:
    digests: list[str] = []

    def work(number: int) -> None:
        digests.append(ppo.train(run_dir=tmp_path / str(number), actors=1, **SMALL).summary["weights_digest"])

    for number in range(2):
        thread = threading.Thread(target=work, args=(number,))
        thread.start()
        thread.join()
    assert len(digests) == 2 and len(set(digests)) == 1


LOUD = """
import sys
import gymnasium
print("something to know", file=sys.stderr)
gymnasium.register("Loud-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=50)
"""

SCRIPT = """
import mlx_distributed_ppo as ppo
run = ppo.train(run_dir={path!r}, actors=1, **{settings!r})
print("digest", run.summary["weights_digest"])
"""


@pytest.mark.slow
def test_a_script_needs_no_guard_and_takes_its_run_with_it(tmp_path: Path) -> None:
    """Killed with -9, it leaves a run that was saved and can go on."""
    settings = {**SMALL, "total_steps": 512 * 2000}
    (tmp_path / "script.py").write_text(SCRIPT.format(path=str(tmp_path / "run"), settings=settings))
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, env=environ) as script:
        wait_for(lambda: (tmp_path / "run/metrics.jsonl").exists() and len(metrics_of(tmp_path / "run")) > 2, script)
        everyone = psutil.Process(script.pid).children(recursive=True)
        assert everyone
        script.send_signal(signal.SIGKILL)
    psutil.wait_procs(everyone, timeout=300)
    assert not [process for process in everyone if process.is_running()]
    assert summary_of(tmp_path / "run")["status"] == "stopped"
    run = ppo.resume(tmp_path / "run", lambda row: True, quiet=True)
    assert run.summary["policy_version"] > 2


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="the extra `notebook` is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the extra `notebook` is not installed")
    pytest.importorskip("pandas", reason="the extra `notebook` is not installed")
    notebook = nbformat.read(ROOT / "examples" / "cartpole.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = json.dumps(notebook.cells)
    assert "\\u001b" not in text and "stopped" in text
    assert "env-steps" in text and "(500, 500.0)" in text.replace("np.float64(", "").replace("))", ")")
