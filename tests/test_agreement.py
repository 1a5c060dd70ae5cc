"""Allowed differences between the log-probabilities of actors and learner, and messages about larger ones."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT, SMALL
from test_ppo import SPACES, as_is, host_weights, make_batch, make_ppo

from learner.agreement import Agreement
from protocol.errors import UserError
from protocol.spaces import Spaces


def sums(terms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities added up in two orders, and log-probabilities for slightly different means."""
    random = np.random.default_rng(0)
    deviations = random.standard_normal((256, terms)).astype(np.float32)
    parts = -0.5 * (deviations * deviations + np.float32(1.8378771))
    elsewhere = deviations + random.normal(0, 0.01, terms).astype(np.float32)  # As far off as before training.
    others = (-0.5 * (elsewhere * elsewhere + np.float32(1.8378771))).sum(axis=1)
    return np.add.accumulate(parts, axis=1)[:, -1], parts.sum(axis=1), others


@pytest.mark.parametrize("terms", [64, 500, 10_000])
def test_rounding_of_long_sums_is_no_disagreement_and_another_network_is(terms: int) -> None:
    one_by_one, in_parts, others = sums(terms)
    warnings: list[str] = []
    agreement = Agreement(terms, False, warnings.append)
    for iteration in (0, 2):
        agreement.look_at(iteration, float(np.abs(in_parts - one_by_one).mean()), one_by_one)
    assert not warnings
    with pytest.raises(UserError, match="do not compute the same"):
        agreement.look_at(0, float(np.abs(others - one_by_one).mean()), one_by_one)


def test_a_run_under_way_goes_on_and_says_once_that_they_differ() -> None:
    warnings: list[str] = []
    agreement = Agreement(64, False, warnings.append)
    for iteration in (2, 8):
        agreement.look_at(iteration, 1e-3, np.full(256, -1, np.float32))
    (said,) = warnings
    assert "in iteration 2, " in said and "0.001" in said


def test_a_device_that_rounds_may_differ_more() -> None:
    warnings: list[str] = []
    Agreement(64, True, warnings.append).look_at(2, 1e-3, np.full(256, -1, np.float32))
    assert not warnings


@pytest.mark.parametrize("spaces", SPACES.values(), ids=SPACES)
def test_the_difference_is_that_of_the_weights_that_the_actors_had(spaces: Spaces) -> None:
    """The learner may have newer weights, and still has them after the comparison."""
    ppo, other = make_ppo(spaces=spaces), make_ppo(spaces=spaces, seed=1)
    acted = host_weights(other.model)
    before = {name: array.copy() for name, array in ppo.state_dict().items()}
    assert ppo.disagreement(make_batch(other.model, 0, 0), acted, as_is) < 1e-6
    assert ppo.disagreement(make_batch(ppo.model, 0, 0), acted, as_is) > 1e-3
    assert ppo.disagreement(make_batch(other.model, 0, 0, drift=1e-3), acted, as_is) > 1e-4
    after = ppo.state_dict()
    assert all((after[name] == array).all() for name, array in before.items())


OFF = """
import sys
from learner.device import prepare_device

prepare_device("cpu", 1)
from learner import learner

class Off(learner.PPO):
    def disagreement(self, batch, weights, to_inputs):
        difference = super().disagreement(batch, weights, to_inputs)
        print("looked", set(batch.policy_versions.tolist()), difference < 1e-6, flush=True)
        return 0.01 if batch.policy_versions.any() else difference

learner.PPO = Off
from launch import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["sync", "pipelined"])
def test_actors_and_learner_are_compared_again_and_again(tmp_path: Path, schedule: str) -> None:
    """In `pipelined`, actors use the weights and the statistics of the previous iteration."""
    flags = ["--in-process", "--schedule", schedule, "--normalize-observations", *SMALL]
    command = [sys.executable, "-c", OFF, *map(str, flags), "--run-dir", str(tmp_path / "run")]
    environ = os.environ | {"PYTHONHASHSEED": "0"}
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environ).stdout
    lag = int(schedule == "pipelined")
    assert [line for line in said.splitlines() if line.startswith("looked")] == [
        f"looked {{{version}}} True" for version in (0, 2 - lag)
    ]
    assert said.count("differ by 0.01 on average") == 1
