"""Tests that need a GPU: `python -m pytest -m gpu`. On other machines, they are skipped."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT, SMALL, metrics_of, train
from making import continuous, discrete, numbers
from test_policies_agree import BLOCK, IMAGES, assert_agree, random_observations

from learner.device import gpu_fault, use_device
from protocol.experiment import Experiment
from protocol.spaces import BoxSpace, ObservationPart
from rundir.metrics import GPU_PEAK, GPU_SIZE

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(gpu_fault()), reason=gpu_fault() or "there is a GPU")]
FRAMES = ["--env", "tests.environments:EverySpace-v0", "--env-kwargs", "observation='frames'", *SMALL]
FRAMES += ["--network", "nature_cnn", "--num-envs", "8", "--rollout-length", "16", "--total-steps", "512"]


@pytest.fixture
def on_gpu() -> Iterator[None]:
    use_device("gpu")
    yield
    use_device("cpu")


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("hidden_sizes", [(64, 64), (512, 512)], ids=str)
def test_numpy_and_a_gpu_compute_the_same_policy(hidden_sizes: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    spaces = continuous(numbers(24), 4)
    assert_agree(spaces, Experiment(hidden_sizes=hidden_sizes), random_observations(spaces, random, BLOCK), random)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(("network", "shape"), IMAGES.values(), ids=IMAGES)
def test_networks_for_images_are_the_same_on_a_gpu(network: str, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    spaces = discrete(ObservationPart("image", BoxSpace(shape, "uint8"), ()), 3)
    assert_agree(spaces, Experiment(network=network), random_observations(spaces, random, BLOCK), random)


PRODUCT = """
import sys
import numpy as np
from learner.device import prepare_device

prepare_device("gpu", 1, tf32=sys.argv[1] == "tf32")
import mlx.core as mx

a, b = np.random.default_rng(0).standard_normal((2, 256, 256), np.float32)
print(np.abs(np.array(mx.array(a) @ mx.array(b)) - a.astype("d") @ b.astype("d")).max() / 16)
"""


def test_products_are_not_rounded_unless_that_is_wanted() -> None:
    """By default, MLX rounds to TF32 on M5 and on NVIDIA's GPUs from Ampere on."""
    error = {}
    for kind in ("float32", "tf32"):
        done = subprocess.run(
            [sys.executable, "-c", PRODUCT, kind], capture_output=True, text=True, check=True, cwd=ROOT
        )
        error[kind] = float(done.stdout)
    assert error["float32"] < 1e-5
    assert error["tf32"] < 1e-2


@pytest.mark.parametrize("flags", [SMALL, FRAMES], ids=["numbers", "images"])
def test_a_gpu_says_deterministic_only_of_what_repeats_itself(tmp_path: Path, flags: list[str]) -> None:
    summaries = [train(tmp_path / str(actors), *flags, "--device", "gpu", "--actors", actors) for actors in (1, 3)]
    last = metrics_of(tmp_path / "1")[-1]
    assert 0 < last[GPU_PEAK] < last[GPU_SIZE]
    equal = len({summary["weights_digest"] for summary in summaries}) == 1
    assert equal or not all(summary["deterministic"] for summary in summaries), json.dumps(summaries)
    assert all(summary["witness"]["updates"] > 0 for summary in summaries)


def test_auto_takes_the_gpu_for_images_alone(tmp_path: Path) -> None:
    assert train(tmp_path / "numbers", *SMALL, "--device", "auto")["device"] == "cpu"
    assert train(tmp_path / "images", *FRAMES, "--device", "auto")["device"] == "gpu"
