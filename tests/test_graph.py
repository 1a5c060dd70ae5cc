"""Operations of a compiled step, from MLX's drawing of each network's graph."""

import io
import re
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from making import continuous, discrete, numbers
from test_policies_agree import random_observations
from test_ppo import random_actions

from learner import differentiated
from learner.model import ActorCritic
from learner.ppo import PPO
from protocol.experiment import Experiment
from protocol.observations import network_inputs
from protocol.spaces import BoxSpace, ObservationPart, Spaces
from rundir.config import PPOConfig
from rundir.schedules import Horizon

SAMPLES, T = 8, 4
IMAGE = discrete(ObservationPart("image", BoxSpace((36, 36, 4), "uint8"), ()), 3)
# (spaces, experiment, limit of launches in a step on a CPU), which is a few more than a step takes today.
NETWORKS = {
    "mlp, discrete": (discrete(numbers(3), 2), Experiment(), 30),
    "mlp, action masks": (replace(discrete(numbers(3), 4), has_action_masks=True), Experiment(), 32),
    "mlp, continuous": (continuous(numbers(3), 2), Experiment(), 30),
    "nature_cnn": (IMAGE, Experiment(network="nature_cnn"), 95),
    "impala_cnn": (IMAGE, Experiment(network="impala_cnn"), 420),
    "gru": (discrete(numbers(3), 2), Experiment(recurrent_size=8), 110),
    "lstm": (discrete(numbers(3), 2), Experiment(recurrent="lstm", recurrent_size=8), 125),
}
VIEWS = {"Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unflatten"}
ON_CPUS_ALONE = {"Cholesky", "Eig", "Eigh", "Inverse", "LUF", "QRF", "SVD"}  # MLX has these only for CPUs.
MOST_ARRAYS = 28  # Metal lets a kernel have 31 buffers, and MLX takes some for shapes and strides.


def minibatch_of(spaces: Spaces, hidden_state_size: int) -> dict[str, Any]:
    """A minibatch in the form that `PPO` has on the device."""
    random = np.random.default_rng(0)
    lead = (SAMPLES, T) if hidden_state_size else (SAMPLES,)
    observations = random_observations(spaces, random, int(np.prod(lead)))
    names = ("proximal_log_probs", "weights", "advantages", "values", "value_targets")
    minibatch: dict[str, Any] = {name: mx.array(random.standard_normal(lead, np.float32)) for name in names}
    minibatch |= {
        "inputs": [mx.array(x.reshape(*lead, *x.shape[1:])) for x in network_inputs(observations, spaces, None)],
        "actions": mx.array(random_actions(spaces, random, *lead).reshape(*lead, -1)),
    }
    if spaces.has_action_masks:
        minibatch["allowed"] = mx.ones((*lead, spaces.distribution_size), mx.bool_)
    if hidden_state_size:
        minibatch |= {"starts": mx.zeros(lead), "hidden_state": mx.zeros((SAMPLES, hidden_state_size))}
    return minibatch


def operations_of(spaces: Spaces, experiment: Experiment) -> dict[str, tuple[str, int]]:
    """{id: (name, number of input and output arrays)} of the operations of a step."""
    ppo = PPO(ActorCritic(spaces, experiment), PPOConfig(value_clip_range=0.2), 0, Horizon((4,)))
    ppo._optimizer.take_parameters()
    state = ppo._optimizer.state
    minibatch = minibatch_of(spaces, experiment.hidden_state_size)
    minibatch["inputs"] = ppo._computation.prepare(minibatch["inputs"])
    mx.eval(minibatch, state)
    factors = ppo._optimizer.begin_step(1e-3)
    drawing = io.StringIO()
    mx.export_to_dot(drawing, ppo._step(minibatch, mx.array(0.2), mx.array(0.01), factors), *state)
    text = drawing.getvalue()
    names = dict(re.findall(r'(\d+) \[label ="([^"]+)"', text))
    assert names
    taken = re.findall(r'"[^"]+" -> (\d+)', text)
    given = re.findall(r'(\d+) -> "[^"]+"', text)
    return {key: (name, taken.count(key) + given.count(key)) for key, name in names.items()}


@pytest.fixture(autouse=True)
def in_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU computes images."""
    monkeypatch.setattr(differentiated, "PARTS", 1)


@pytest.mark.parametrize(("spaces", "experiment", "most"), NETWORKS.values(), ids=NETWORKS)
def test_a_step_has_what_a_gpu_can_launch_and_not_too_much_of_it(
    spaces: Spaces, experiment: Experiment, most: int
) -> None:
    operations = operations_of(spaces, experiment)
    names = [name for name, _ in operations.values()]
    assert not ON_CPUS_ALONE & set(names)
    assert any(name.startswith("Compiled") for name in names)
    assert max(arrays for name, arrays in operations.values() if name.startswith("Compiled")) <= MOST_ARRAYS
    launches = [name for name in names if name not in VIEWS]
    assert len(launches) <= most, len(launches)


@pytest.mark.parametrize(("spaces", "experiment", "most"), NETWORKS.values(), ids=NETWORKS)
def test_nothing_is_computed_in_float64(spaces: Spaces, experiment: Experiment, most: int) -> None:
    """MLX has no float64 on GPUs."""
    ppo = PPO(ActorCritic(spaces, experiment), PPOConfig(), 0, Horizon((4,)))
    ppo._optimizer.take_parameters()
    factors = ppo._optimizer.begin_step(1e-3)
    minibatch = minibatch_of(spaces, experiment.hidden_state_size)
    minibatch["inputs"] = ppo._computation.prepare(minibatch["inputs"])
    outcome = ppo._step(minibatch, mx.array(0.2), mx.array(0.01), factors)
    assert {array.dtype for array in (*outcome, *ppo._optimizer.state, *ppo.model.parameters())} == {mx.float32}
