"""The hand-written gradient of the MLP equals the automatic one, and needs fewer operations."""

import itertools
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from making import continuous, discrete, numbers, trained_model
from marks import slow

from learner.differentiated import Differentiated
from learner.model import ActorCritic
from learner.networks import MLP
from learner.objective import objective, objective_gradients
from learner.ppo import computation_of
from learner.stacked_mlp import StackedMLP
from protocol.experiment import Experiment
from protocol.spaces import BoxSpace, ObservationPart, Spaces
from rundir.config import PPOConfig

SAMPLES = 64
CLIP, ENTROPY_COEF = mx.array(0.2), mx.array(0.1)
SPACES = {
    "two choices": discrete(numbers(4), 2),
    "one choice": discrete(numbers(2), 1),
    "seven choices": discrete(numbers(5), 7),
    "seven choices with masks": replace(discrete(numbers(5), 7), has_action_masks=True),
    "one number": continuous(numbers(3), 1),
    "four numbers": continuous(numbers(3), 4),
}
IMAGE = ObservationPart("image", BoxSpace((36, 36, 4), "uint8"), ())


def samples_of(spaces: Spaces, random: np.random.Generator) -> dict[str, Any]:
    """Samples with random numbers; their inputs are not prepared for a computation yet."""
    size = spaces.distribution_size
    if spaces.distribution == "gaussian":
        actions = random.standard_normal((SAMPLES, size)).astype(np.float32)
    else:
        actions = random.integers(0, size, (SAMPLES, 1))
    names = ("advantages", "values", "value_targets", "weights", "proximal_log_probs")
    samples = {name: mx.array(random.standard_normal(SAMPLES).astype(np.float32)) for name in names}
    inputs = mx.array(random.standard_normal((SAMPLES, *spaces.observation.shape)).astype(np.float32))
    if spaces.has_action_masks:
        allowed = random.random((SAMPLES, size)) < 0.4
        allowed |= np.arange(size) == actions
        samples["allowed"] = mx.array(allowed.tolist())
    return {**samples, "weights": mx.abs(samples["weights"]), "actions": mx.array(actions), "inputs": [inputs]}


def assert_near(ours: mx.array, theirs: mx.array, name: str = "") -> None:
    np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=3e-5, atol=1e-5, err_msg=name)


FIRST = ("two choices", "tanh", (16, 16), None)
CASES = [  # Cases that differ from the first in more than one setting are slow.
    case if sum(one != other for one, other in zip(case, FIRST, strict=True)) < 2 else slow(*case)
    for case in itertools.product(SPACES, ("tanh", "relu", "silu"), ((16, 16), (8,), (8, 16, 4)), (None, 0.2))
]


@pytest.mark.parametrize(("name", "activation", "hidden_sizes", "value_clip_range"), CASES)
def test_values_and_gradients_are_those_of_differentiation(
    name: str, activation: Any, hidden_sizes: tuple[int, ...], value_clip_range: float | None
) -> None:
    spaces, random = SPACES[name], np.random.default_rng(0)
    model = trained_model(spaces, Experiment(activation=activation, hidden_sizes=hidden_sizes), random)
    config = PPOConfig(value_clip_range=value_clip_range)
    ours, theirs = StackedMLP(model, config), Differentiated(model, config)
    vectors = {computation: computation.layout.join(model.state_dict()) for computation in (ours, theirs)}
    samples = samples_of(spaces, random)
    near = theirs.evaluate(vectors[theirs], samples)[1]
    samples["proximal_log_probs"] = near + 0.3 * samples["proximal_log_probs"]  # Some ratios are clipped, and some not.

    given = {c: {**samples, "inputs": c.prepare(samples["inputs"])} for c in vectors}
    for one, other in zip(*(c.evaluate(vectors[c], given[c]) for c in vectors), strict=True):
        assert_near(one, other)
    none = mx.zeros((SAMPLES, 0))
    one, other = (c.values(vectors[c], given[c]["inputs"], none) for c in vectors)
    assert_near(one, other)

    found = {c: c.gradients(vectors[c], given[c], CLIP, ENTROPY_COEF) for c in vectors}
    for one, other in zip(found[ours][1], found[theirs][1], strict=True):
        assert_near(one, other)
    gradients = {c: c.layout.split(found[c][0]) for c in vectors}
    assert gradients[ours].keys() == gradients[theirs].keys()
    for parameter, gradient in gradients[theirs].items():
        assert_near(gradients[ours][parameter], gradient, parameter)
        # With a single choice, the policy has no gradient, but the value function has one.
        assert np.array(gradient).any() or (spaces is SPACES["one choice"] and not parameter.startswith("value"))


def test_zeros_that_fill_the_head_of_the_value_up_stay_zeros() -> None:
    model = trained_model(SPACES["seven choices"], Experiment(hidden_sizes=(8,)), np.random.default_rng(0))
    computation = StackedMLP(model, PPOConfig())
    vector = computation.layout.join(model.state_dict())
    samples = samples_of(model.spaces, np.random.default_rng(1))
    samples["inputs"] = computation.prepare(samples["inputs"])
    gradient, _ = computation.gradients(vector, samples, CLIP, ENTROPY_COEF)
    everything = computation.layout.join(computation.layout.split(gradient))
    # Numbers that belong to no parameter are zero.
    np.testing.assert_array_equal(np.array(everything), np.array(gradient))
    assert gradient.size > sum(array.size for array in model.parameters())


numbers_near_0 = hnp.arrays(np.float32, 8, elements=st.floats(-2, 2, width=16))


@settings(deadline=None, max_examples=60)
@given(*[numbers_near_0] * 6, st.sampled_from([None, 0.25]))
def test_the_gradient_of_the_objective_is_what_differentiation_makes_of_it(
    log_probs: np.ndarray,
    old_log_probs: np.ndarray,
    advantages: np.ndarray,
    values: np.ndarray,
    old_values: np.ndarray,
    targets: np.ndarray,
    value_clip_range: float | None,
) -> None:
    """Points with a kink are left out, because differentiation may take either side there."""
    config = PPOConfig(value_clip_range=value_clip_range, value_coef=0.7)
    minibatch = {
        "advantages": mx.array(advantages),
        "proximal_log_probs": mx.array(old_log_probs),
        "values": mx.array(old_values),
        "value_targets": mx.array(targets),
        "weights": mx.full(8, 0.5),
    }
    entropies = mx.zeros(8)

    def loss(log_probs: mx.array, values: mx.array) -> mx.array:
        return objective([log_probs, entropies, values], minibatch, CLIP, ENTROPY_COEF, config)[0].sum()

    given = mx.array(log_probs), mx.array(values)
    expected = [np.array(gradient) for gradient in mx.grad(loss, argnums=(0, 1))(*given)]
    outcome = [given[0], entropies, given[1]]
    found = [np.array(gradient) for gradient in objective_gradients(outcome, minibatch, CLIP, config)]
    ratio = np.exp(log_probs - old_log_probs)
    errors = np.abs(values - targets), np.abs(old_values + np.clip(values - old_values, -0.25, 0.25) - targets)
    smooth = [
        (np.abs(np.abs(ratio - 1) - 0.2) > 1e-4),
        (np.abs(errors[0] - errors[1]) > 1e-4) | (np.abs(values - old_values) < 0.2499),
    ]
    for one, other, where in zip(found, expected, smooth, strict=True):
        np.testing.assert_allclose(one[where], other[where], rtol=1e-4, atol=1e-5)


class Own(MLP):
    """A user's network: a class that is not built in."""


@pytest.mark.parametrize(
    ("spaces", "experiment"),
    [
        (discrete(numbers(3), 2), Experiment(recurrent_size=4)),
        (discrete(numbers(3), 2), Experiment(hidden_sizes=())),
        (discrete(numbers(3), 2, 3), Experiment()),
        (discrete(IMAGE, 2), Experiment(network="mlp")),
        (discrete(IMAGE, 2), Experiment()),
    ],
    ids=["recurrent", "no layers", "two choices at once", "MLP of an image", "CNN"],
)
def test_other_networks_are_differentiated(spaces: Spaces, experiment: Experiment) -> None:
    assert type(computation_of(ActorCritic(spaces, experiment), PPOConfig())) is Differentiated


def test_so_is_a_network_of_a_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(computation_of(ActorCritic(SPACES["two choices"], Experiment()), PPOConfig())) is StackedMLP
    monkeypatch.setattr("learner.model.network_class", lambda *_: Own)
    assert type(computation_of(ActorCritic(SPACES["two choices"], Experiment()), PPOConfig())) is Differentiated


@pytest.mark.parametrize("kind", [StackedMLP, Differentiated])
@pytest.mark.parametrize("spaces", [SPACES["seven choices"], SPACES["four numbers"]], ids=["choices", "numbers"])
def test_what_is_multiplied_lies_at_a_multiple_of_64_bytes(spaces: Spaces, kind: Any) -> None:
    model = ActorCritic(spaces, Experiment(hidden_sizes=(32, 16)))
    layout = kind(model, PPOConfig()).layout
    places = layout.split(np.arange(layout.size))
    assert places.keys() == model.state_dict().keys()
    for name, place in places.items():
        aligned = place.flat[0] % 16 == 0
        # For two towers or heads side by side, only the first one's place matters.
        assert aligned or (kind is StackedMLP and (name.startswith("value_") or name == "encoder.layers.0.bias")), name
