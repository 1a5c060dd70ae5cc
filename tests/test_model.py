"""The model's parameters: their names, their initial values, and attributes that are not parameters."""

from typing import Any

import gymnasium
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from making import binary, continuous, discrete, numbers, spoken
from mlx.utils import tree_flatten

from learner.differentiated import ppo_loss
from learner.model import ActorCritic
from protocol.experiment import Experiment
from protocol.spaces import BoxSpace, ObservationPart, Spaces
from rundir.config import PPOConfig

DISCRETE, CONTINUOUS, BITS = discrete(numbers(3), 2), continuous(numbers(3), 2), binary(numbers(3), 2)
LAYERS = ["encoder.layers.0", "encoder.layers.1", "policy_head"]
LAYERS += ["value_encoder.layers.0", "value_encoder.layers.1", "value_head"]
RECURRENT_LAYERS = ["encoder.layers.0", "encoder.layers.1", "gru.inputs", "gru.recurrent", "policy_head", "value_head"]
NAMES = [f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")]


def make_model(spaces: Spaces = DISCRETE, seed: int = 0, **settings: Any) -> ActorCritic:
    return ActorCritic(spaces, Experiment(seed=seed, hidden_sizes=(8, 5), **settings))


def host_weights(model: ActorCritic) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in model.named_parameters()}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def test_named_parameters_names_every_array() -> None:
    named = list(make_model().named_parameters())
    assert sorted(name for name, _ in named) == sorted(NAMES)
    assert all(isinstance(array, mx.array) for _, array in named)
    shapes = {name: array.shape for name, array in named}
    assert shapes["encoder.layers.0.weight"] == (8, 3)
    assert shapes["policy_head.bias"] == (2,)
    assert shapes["value_head.weight"] == (1, 5)


def test_a_gaussian_policy_has_log_standard_deviations_too() -> None:
    state = make_model(CONTINUOUS).state_dict()
    assert sorted(state) == sorted([*NAMES, "log_std"])
    assert state["log_std"].shape == (2,)


def test_parameters_are_the_arrays_of_named_parameters_in_order() -> None:
    model = make_model(CONTINUOUS)
    arrays, named = model.parameters(), list(model.named_parameters())
    assert len(arrays) == len(named)
    assert all(array is other for array, (_, other) in zip(arrays, named, strict=True))


@pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS])
def test_a_loaded_state_dict_is_the_other_models(spaces: Spaces) -> None:
    model, other = make_model(spaces), make_model(spaces, seed=1)
    model.load_state_dict(other.state_dict())
    assert_same(host_weights(model), host_weights(other))
    observations = np.ones((4, 3), np.float32)
    ours, theirs = (np.array(spoken(one, [observations])[1]) for one in (model, other))
    np.testing.assert_array_equal(ours, theirs)


def test_load_state_dict_takes_numpy_arrays() -> None:
    model, other = make_model(), make_model(seed=1)
    model.load_state_dict(host_weights(other))
    assert_same(host_weights(model), host_weights(other))


def broken(state: dict[str, np.ndarray], how: str) -> dict[str, np.ndarray]:
    state = {name: array + 1 for name, array in state.items()}
    last = list(state)[-1]
    if how == "missing":
        del state[last]
    elif how == "unexpected":
        state["encoder.layers.9.bias"] = np.zeros(1, np.float32)
    elif how == "transposed":
        state["encoder.layers.0.weight"] = state["encoder.layers.0.weight"].T
    else:
        state[last] = state[last][..., None]
    return state


@pytest.mark.parametrize("how", ["missing", "unexpected", "transposed", "of another rank"])
def test_a_state_dict_that_does_not_fit_is_refused_and_changes_nothing(how: str) -> None:
    model = make_model()
    before = host_weights(model)
    with pytest.raises(ValueError, match=r"(layers\.\d|head)\.(weight|bias)"):
        model.load_state_dict(broken(before, how))
    assert_same(host_weights(model), before)


def furnish(model: ActorCritic) -> None:
    """Give `model` various attributes that are not parameters."""
    model.optimizer = optim.Adam(1e-3)
    model.optimizer.init(model.trainable_parameters())
    model.environment_space = gymnasium.spaces.Box(-1, 1, (3,))
    model.scale = lambda x: 2 * x
    model.settings = {"gain": 2, "name": "cartpole"}
    model.history = ["started", 1]
    model.title = "a model"


@pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS, BITS])
def test_gradients_are_for_the_named_parameters_whatever_else_the_model_holds(spaces: Spaces) -> None:
    model = make_model(spaces)
    names = [name for name, _ in model.named_parameters()]
    furnish(model)
    assert [name for name, _ in model.named_parameters()] == names

    config = PPOConfig()
    random = np.random.default_rng(0)
    minibatch = {
        name: mx.array(random.standard_normal(4).astype(np.float32))
        for name in ("proximal_log_probs", "weights", "advantages", "values", "value_targets")
    }
    samples: dict[str, Any] = {
        **minibatch,
        "inputs": [mx.array(random.standard_normal((4, 3)).astype(np.float32))],
        "actions": mx.array([[0], [1], [1], [0]]) if spaces is DISCRETE else mx.ones((4, 2)),
    }
    loss_and_gradients = nn.value_and_grad(model, lambda clip: ppo_loss(model, samples, clip, mx.array(0.01), config))
    _, gradients = loss_and_gradients(mx.array(10.0))
    flat = dict(tree_flatten(gradients))
    assert list(flat) == names
    assert all(np.abs(np.array(gradient)).max() > 0 for gradient in flat.values())
    model.load_state_dict(model.state_dict())


CAMERA = ObservationPart("image", BoxSpace((7, 6, 3), "uint8"), ())


@pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS, discrete(CAMERA, 2)], ids=["discrete", "continuous", "image"])
@pytest.mark.parametrize("recurrent_size", [0, 4])
def test_weights_begin_orthogonal_and_biases_zero(spaces: Spaces, recurrent_size: int) -> None:
    gains = {
        "policy_head.weight": 0.01,
        "value_head.weight": 1.0,
        "gru.inputs.weight": 1.0,
        "gru.recurrent.weight": 1.0,
    }
    for name, array in host_weights(make_model(spaces, recurrent_size=recurrent_size)).items():
        if not name.endswith("weight"):
            np.testing.assert_array_equal(array, np.zeros_like(array))
            continue
        array = array.reshape(len(array), -1)
        rows, columns = array.shape
        products = array @ array.T if rows <= columns else array.T @ array
        gain = gains.get(name, 2**0.5)
        np.testing.assert_allclose(products, gain**2 * np.eye(min(rows, columns)), atol=1e-6 * gain**2, rtol=1e-5)


def test_initial_weights_follow_from_the_seed() -> None:
    one, same, other = (host_weights(make_model(seed=seed)) for seed in (3, 3, 4))
    assert_same(one, same)
    for name in NAMES:
        if name.endswith("weight"):
            assert not np.allclose(one[name], other[name])


def test_no_two_layers_begin_alike() -> None:
    weights = host_weights(make_model())
    assert not np.allclose(weights["encoder.layers.0.weight"], weights["value_encoder.layers.0.weight"])
    assert not np.allclose(weights["encoder.layers.1.weight"], weights["value_encoder.layers.1.weight"])


def test_standard_deviations_begin_as_asked() -> None:
    weights = host_weights(make_model(CONTINUOUS, initial_std=0.3))
    np.testing.assert_allclose(np.exp(weights["log_std"]), [0.3, 0.3], rtol=1e-6)


def test_a_recurrent_model_has_a_gru_and_one_encoder() -> None:
    model = make_model(CONTINUOUS, recurrent_size=4)
    shapes = {name: array.shape for name, array in model.named_parameters()}
    assert sorted(shapes) == sorted(
        [*(f"{n}.{kind}" for n in RECURRENT_LAYERS for kind in ("weight", "bias")), "log_std"]
    )
    assert shapes["gru.inputs.weight"] == (12, 5)
    assert shapes["gru.recurrent.weight"] == (12, 4)
    assert shapes["value_head.weight"] == (1, 4)


def test_a_model_with_images_has_one_encoder() -> None:
    model = make_model(discrete(CAMERA, 2))
    assert not any(name.startswith("value_encoder") for name, _ in model.named_parameters())
