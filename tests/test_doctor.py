"""`doctor`: its findings about this machine, and about environments that are deterministic or not."""

import signal
import subprocess
import time
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from launching import LAUNCH, children, launch, wait_for
from marks import slow

from actors.simulation import Simulation
from commands.helpers.environment_check import check_environment
from commands.helpers.environment_speed import Timing, measure, suggested_actors
from protocol.experiment import Experiment


def said(env: str, **settings: Any) -> str:
    return "\n".join(map(str, check_environment(Experiment(env, **settings))))


def test_a_machine_that_can_train_is_told_so_line_by_line() -> None:
    done = launch("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok ", "note ")) for line in lines), done.stdout
    for part in (
        "mlx",
        "the learner ",
        "performance cores",
        "memory",
        "open files",
        "sockets",
        "extras",
    ):
        assert any(part in line for line in lines), part


def test_a_machine_without_mlx_is_told_what_to_install(tmp_path: Any) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'mlx' else find(name, *a)\n"
    )
    done = launch("doctor", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("WRONG")]
    assert "needs MLX, which is not installed" in line


def test_an_environment_that_repeats_itself_is_said_to() -> None:
    text = said("CartPole-v1")
    assert "WRONG" not in text and "500 steps repeat themselves" in text
    assert "suggested: --actors" in text


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        slow("tests.environments:Forgetful-v0", "go different ways"),
        slow("tests.environments:GlobalRandom-v0", "draws from the global"),
        slow("tests.environments:RememberingReward-v0", "its reset leaks state"),
        slow("tests.environments:Raise-v0", "raised RuntimeError: the step fails"),
        ("Nowhere-v0", "--env Nowhere-v0"),
        ("CartPole", "there is CartPole-v1"),
        slow("tests.environments:Constructor-v0", "constructor: it raised RuntimeError: the constructor fails"),
        slow("tests.environments:Nan-v0", "step: the observation is not finite"),
        slow("tests.environments_doctor:Hashed-v0", "with another PYTHONHASHSEED"),
        slow("tests.environments_doctor:Numbered-v0", "in another process it goes another way"),
        slow("tests.environments_doctor:Shared-v0", "its instances share state"),
        slow("tests.environments_doctor:Drawn-v0", "np.random` in its constructor, reset:"),
        ("tests.environments_doctor:Leaving-v0", "it ended its process in its step: exit code 3"),
    ],
)
def test_what_is_wrong_with_an_environment_is_named_with_what_to_do(env: str, expected: str) -> None:
    kwargs = ("every=1",) if "Raise" in env or "Nan" in env else ()
    (line,) = [line for line in said(env, env_kwargs=kwargs).splitlines() if expected in line]
    assert line.startswith("WRONG")


@pytest.mark.slow
def test_a_leak_that_rebuilding_mends_is_none() -> None:
    text = said("tests.environments:RememberingReward-v0", rebuild_env=True)
    assert "but --rebuild-env makes a fresh one" in text


@pytest.mark.slow
def test_what_hangs_is_ended_with_a_line() -> None:
    findings = list(check_environment(Experiment("tests.environments_doctor:Hanging-v0"), step_timeout=5.0))
    assert "its step has not returned within 5 s" in findings[-1].text and "--step-timeout" in str(findings[-1])


@pytest.mark.slow
def test_doctor_takes_the_flags_that_it_advises() -> None:
    done = launch(
        "doctor", "tests.environments:RememberingReward-v0", "--rebuild-env", "--step-timeout", 90, "--num-envs", 16
    )
    assert done.returncode == 0 and "--rebuild-env makes a fresh one" in done.stdout, done.stdout + done.stderr


class Sleeping(gymnasium.Env):
    """An environment that waits, like one that talks to a simulator."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        time.sleep(0.02)
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.mark.slow
def test_waiting_is_told_from_computing() -> None:
    timing = measure(Simulation(Experiment(), make=lambda _: Sleeping()))
    assert timing.step >= 0.02 and timing.busy < 0.5
    assert measure(Simulation(Experiment())).busy > 0.5


def test_an_environment_that_waits_wants_more_actors_than_cores() -> None:
    assert suggested_actors(Timing(1e-5, 1e-4, busy=1.0), cores=8) == 7
    assert suggested_actors(Timing(1e-2, 1e-1, busy=0.25), cores=8) == 28
    assert suggested_actors(Timing(1e-2, 1e-1, busy=0.0), cores=8) == 64
    assert suggested_actors(Timing(1e-5, 1e-4, busy=1.0), cores=1) == 1


@pytest.mark.parametrize("number", [slow(signal.SIGINT), slow(signal.SIGTERM), slow(signal.SIGKILL)])
def test_a_hanging_environment_does_not_outlive_its_doctor(number: signal.Signals) -> None:
    doctor = subprocess.Popen([*LAUNCH, "doctor", "tests.environments_doctor:Hanging-v0"], stdout=subprocess.DEVNULL)
    task = "from commands.helpers.environment_check import main; main()"
    checks = wait_for(lambda: children(psutil.Process(doctor.pid), task), doctor)
    doctor.send_signal(number)
    doctor.wait()
    wait_for(lambda: not any(check.is_running() for check in checks))


@pytest.mark.slow
def test_masks_metrics_and_a_curriculum_are_told() -> None:
    texts = [finding.text for finding in check_environment(Experiment(env="tests.environments_agent:Garden-v0"))]
    assert any("action masks: from info['action_mask']" in text for text in texts)
    assert any(text.startswith("episode metrics: ") and "is_success" in text for text in texts)
    assert any(text.startswith("a curriculum: ") for text in texts)
    assert any("500 steps repeat themselves" in text for text in texts)
    method = Experiment(env="tests.environments_agent:Garden-v0", env_kwargs=("masks=method", "action=several"))
    texts = [finding.text for finding in check_environment(method)]
    assert any("action masks: from its method action_masks()" in text for text in texts)
    assert any("500 steps repeat themselves" in text for text in texts)
