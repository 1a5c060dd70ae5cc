"""A minibatch of images is computed in parts, on a CPU by several threads, which change no bit."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from marks import slow
from mlx.utils import tree_map
from test_graph import IMAGE, minibatch_of

from learner import differentiated
from learner.differentiated import Differentiated
from learner.model import ActorCritic
from learner.ppo import PPO
from protocol.experiment import Experiment
from rundir.config import PPOConfig
from rundir.schedules import Horizon

EXPERIMENTS = {
    "nature_cnn": Experiment(network="nature_cnn"),
    "impala_cnn": Experiment(network="impala_cnn"),
    "recurrent": Experiment(network="nature_cnn", recurrent_size=8),
}
every_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)


def gradients(experiment: Experiment, samples: int, threads: int | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """(the gradient, the outcome) of a minibatch of so many samples."""
    model = ActorCritic(IMAGE, experiment)
    computation = Differentiated(model, PPOConfig(), threads)
    vector = computation.layout.join(model.state_dict())
    minibatch: Any = tree_map(lambda x: x[:samples], minibatch_of(IMAGE, experiment.recurrent_size))
    step = mx.compile(computation.gradients)
    gradient, outcome = step(vector, minibatch, mx.array(0.2), mx.array(0.01))
    return np.array(gradient), [np.array(array) for array in outcome]


def weights_after_steps(experiment: Experiment, threads: int | None) -> np.ndarray:
    ppo = PPO(ActorCritic(IMAGE, experiment), PPOConfig(), 0, Horizon((4,)), threads)
    ppo._optimizer.take_parameters()
    minibatch = minibatch_of(IMAGE, experiment.recurrent_size)
    for _ in range(3):
        outcome = ppo._step(minibatch, mx.array(0.2), mx.array(0.01), ppo._optimizer.begin_step(1e-3))
        mx.async_eval(outcome, ppo._optimizer.state)
    return np.array(ppo._optimizer.state[0])


@every_experiment
@pytest.mark.parametrize("samples", [8, 6, 5, 1])
def test_a_gradient_in_parts_is_the_gradient(
    experiment: Experiment, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient, outcome = gradients(experiment, samples)
    monkeypatch.setattr(differentiated, "PARTS", 1)
    expected, expected_outcome = gradients(experiment, samples)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6 * np.abs(expected).max())
    for array, other in zip(outcome, expected_outcome, strict=True):
        assert array.shape == other.shape and array.shape[0] == samples
        np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["nature_cnn", slow("impala_cnn"), slow("recurrent")])
def test_threads_change_no_bit(name: str) -> None:
    expected = weights_after_steps(EXPERIMENTS[name], 1)
    for threads in (2, 3, 4, 9, None):
        np.testing.assert_array_equal(weights_after_steps(EXPERIMENTS[name], threads), expected)


def test_each_part_has_a_thread_where_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(differentiated, "_stream", lambda number: used.append(number) or mx.default_stream(mx.cpu))
    for threads, expected in ((1, [0, 0, 0, 0]), (3, [0, 1, 2, 0]), (None, [0, 1, 2, 3])):
        used.clear()
        gradients(EXPERIMENTS["nature_cnn"], 8, threads)
        assert used == expected
    used.clear()
    gradients(EXPERIMENTS["nature_cnn"], 5)
    assert used == []
