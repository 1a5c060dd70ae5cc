"""Choice of the learner's device, and its preparation before MLX computes. The machine's answers are simulated."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from launching import ROOT, SMALL, summary_of

import learner.device as device
from learner.device import GPU_WORK, choose_device, gpu_fault, prepare_device
from protocol.errors import UserError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.TF32, "1")  # A user may have set this.
    monkeypatch.setattr(device, "preload_openblas", lambda threads: ["slow on the CPU"])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Simulate a machine with a GPU; returns the devices that were made MLX's default."""
    used: list[str] = []
    monkeypatch.setattr(device, "gpu_fault", lambda: "")
    monkeypatch.setattr(device, "use_device", used.append)
    return used


def test_no_gpu_is_no_fault_of_a_run_that_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "is_available", lambda device: False)
    assert prepare_device("auto", 1)[0] == "cpu"
    assert prepare_device("cpu", 1)[0] == "cpu"
    with pytest.raises(UserError, match="--device gpu: MLX finds no GPU here; use --device cpu"):
        prepare_device("gpu", 1)


def test_a_gpu_that_computes_nothing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, in a virtual machine or a sandbox."""

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("[metal::load_device] No Metal device available.")

    monkeypatch.setattr(mx, "is_available", lambda device: True)
    monkeypatch.setattr(mx, "add", fail)
    assert "cannot compute on it" in gpu_fault() and "No Metal device" in gpu_fault()
    assert prepare_device("auto", 1)[0] == "cpu"
    with pytest.raises(UserError, match=r"--device gpu: .*No Metal device"):
        prepare_device("gpu", 1)


def test_where_there_is_a_gpu_auto_leaves_the_choice_open(gpu: list[str]) -> None:
    assert prepare_device("auto", 1)[0] == "auto"
    assert prepare_device("gpu", 1) == ("gpu", [])  # Causes of a slow CPU do not matter.
    assert prepare_device("cpu", 1)[0] == "cpu"
    assert gpu == ["cpu", "gpu", "cpu"]


@pytest.mark.parametrize("tf32", [False, True])
def test_products_are_rounded_if_the_settings_say_so_whatever_the_environment_says(tf32: bool) -> None:
    prepare_device("cpu", 1, tf32)
    assert os.environ[device.TF32] == str(int(tf32))


@pytest.mark.parametrize(
    ("parameters", "samples", "has_images", "recurrent", "chosen"),
    [
        (9_155, 256, False, False, "cpu"),  # CartPole
        (2 * 10**6, 4096, False, False, "gpu"),
        (10**6, int(GPU_WORK / 10**6) - 1, False, False, "cpu"),
        (10**6, int(GPU_WORK / 10**6), False, False, "gpu"),
        (1_700_000, 256, True, False, "gpu"),  # Atari
        (10**5, 64, True, True, "gpu"),
        (2 * 10**6, 4096, False, True, "cpu"),
    ],
)
def test_images_and_large_networks_take_the_gpu(
    parameters: int, samples: int, has_images: bool, recurrent: bool, chosen: str
) -> None:
    found, why = choose_device(parameters, samples, has_images, recurrent)
    assert found == chosen
    assert f"{parameters:,} parameters, {samples:,} samples a step" in why


PRETENDING = """
import sys
import learner.device

import learner.computation

real = learner.device.use_device
fault = sys.argv.pop(1)
learner.device.gpu_fault = lambda: fault
learner.computation.use_device = learner.device.use_device = lambda name: (print("uses", name, flush=True), real("cpu"))
from launch import main

sys.exit(main(sys.argv[1:]))
"""


def pretend(*flags: object, fault: str = "") -> str:
    """Do a run on a machine that seems to have a GPU, with `fault` if it is not empty; returns the output."""
    command = [sys.executable, "-c", PRETENDING, fault, "--in-process", *map(str, flags)]
    environ = os.environ | {"PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environ)
    return done.stdout


@pytest.mark.slow
def test_a_run_says_which_device_it_takes_and_keeps_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    said = pretend("--run-dir", run_dir, *SMALL, "--stop-return", "1")
    assert "the learner computes on the CPU: a small network (9,155 parameters, 128 samples a step)" in said
    assert summary_of(run_dir)["device"] == "cpu"

    frames = ["--env", "tests.environments:EverySpace-v0", "--env-kwargs", "observation='frames'", *SMALL]
    frames += ["--network", "nature_cnn", "--num-envs", 4, "--rollout-length", 8, "--total-steps", 96, "--epochs", 1]
    said = pretend("--run-dir", tmp_path / "frames", *frames)
    assert "the learner computes on the GPU: a convolutional network" in said and "uses gpu" in said
    summary = summary_of(tmp_path / "frames")
    assert summary["device"] == summary["learner"]["device"] == "gpu"
    assert summary["learner"]["tf32"] == "no"
    assert summary["deterministic"] is (summary["witness"]["updates"] > 0)


@pytest.mark.slow
def test_a_run_that_goes_on_without_its_gpu_says_so(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    pretend("--run-dir", run_dir, *SMALL, "--device", "gpu", "--total-steps", 10**6, "--stop-return", "1")
    assert summary_of(run_dir)["device"] == "gpu"
    (run_dir / "summary.json").unlink()
    config = run_dir / "config.toml"
    config.write_text(config.read_text().replace('device = "gpu"', 'device = "auto"'))
    said = pretend("--resume", run_dir, fault="MLX finds no GPU here")
    assert "device cpu instead of gpu" in said
