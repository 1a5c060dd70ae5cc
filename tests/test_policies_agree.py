"""The policy in NumPy and the policy in MLX give the same outputs."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import binary, continuous, discrete, numbers, snapshot_of, spoken, trained_model

import actors.networks as on_actor
import learner.networks as on_learner
from actors.environment import make_environment
from actors.interface import ObservationConverter
from actors.networks import GRU, LSTM
from actors.policy import Policy
from actors.spaces import describe_spaces, observation_form
from learner.activations import rational_tanh, tanh_for
from learner.model import ActorCritic
from learner.normalization import RunningStatistics
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.networks import network_class, network_name
from protocol.observations import InputShapes, network_inputs, normalized_size
from protocol.spaces import BoxSpace, ObservationPart, Spaces

BLOCK = 8
NO_MEMORY = np.zeros((BLOCK, 0), np.float32)


def normalization_of(spaces: Spaces, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The mean and scale of observations whose mean is not 0 and whose scale is not 1."""
    statistics = RunningStatistics((normalized_size(spaces.parts),))
    statistics.update(3 * random.standard_normal((50, normalized_size(spaces.parts))) + 2)
    return statistics.normalization()


def random_observations(spaces: Spaces, random: np.random.Generator, *lead: int) -> np.ndarray:
    """Random observations [*lead, *observation] of spaces with one part."""
    (part,) = spaces.parts
    if part.kind == "image":
        return random.integers(256, size=(*lead, *part.box.shape), dtype=np.uint8)
    return (2 * random.standard_normal((*lead, *part.box.shape))).astype(part.box.dtype)


def assert_agree(spaces: Spaces, experiment: Experiment, observations: np.ndarray, random: np.random.Generator) -> None:
    """NumPy and MLX give the same outputs, and log-probabilities of the actions, for one block of observations."""
    model = trained_model(spaces, experiment, random)
    normalization = normalization_of(spaces, random)
    policy = Policy(snapshot_of(model, normalization), spaces, experiment)
    actions, parameters, _ = policy.act(observations, NO_MEMORY, policy.draw_noise(random, (BLOCK,)))

    inputs = network_inputs(observations, spaces, normalization if experiment.normalize_observations else None)
    outputs = np.array(model.policy_head(model.encoder([mx.array(x) for x in inputs])))
    distribution, _ = spoken(model, inputs)
    assert parameters.dtype == np.float32
    np.testing.assert_allclose(parameters, outputs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        policy.log_prob(parameters, actions),
        np.array(distribution.log_prob(mx.array(actions.reshape(BLOCK, -1)))),
        rtol=1e-5,
        atol=1e-5,
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    hidden_sizes=st.lists(st.integers(1, 32), max_size=3).map(tuple),
    observation_shape=st.sampled_from([(), (1,), (5,), (2, 3)]),
    make=st.sampled_from([discrete, continuous, binary]),
    size=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    normalized=st.booleans(),
)
def test_numpy_and_mlx_compute_the_same_policy(
    seed: int,
    hidden_sizes: tuple[int, ...],
    observation_shape: tuple[int, ...],
    make: Callable[..., Spaces],
    size: list[int],
    normalized: bool,
) -> None:
    random = np.random.default_rng(seed)
    spaces = make(numbers(*observation_shape), *size)
    experiment = Experiment(hidden_sizes=hidden_sizes, normalize_observations=normalized)
    assert_agree(spaces, experiment, random_observations(spaces, random, BLOCK), random)


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
@pytest.mark.parametrize("hidden_sizes", [(), (8,), (64, 64)], ids=str)
def test_every_activation_is_the_same_on_both_sides(
    activation: Literal["tanh", "relu", "silu"], hidden_sizes: tuple[int, ...]
) -> None:
    random = np.random.default_rng(0)
    spaces = continuous(numbers(5), 3)
    experiment = Experiment(hidden_sizes=hidden_sizes, activation=activation)
    assert_agree(spaces, experiment, random_observations(spaces, random, BLOCK), random)


IMAGES = {
    "nature, smallest": ("nature_cnn", (36, 36)),
    "nature, channels first": ("nature_cnn", (2, 40, 37)),
    "nature, Atari": ("nature_cnn", (4, 84, 84)),
    "impala, odd": ("impala_cnn", (7, 7, 3)),
    "impala, oblong": ("impala_cnn", (12, 10, 3)),
    "impala, one pixel": ("impala_cnn", (1, 1, 1)),
    "mlp": ("mlp", (5, 4, 3)),
}


@pytest.mark.parametrize(("network", "shape"), IMAGES.values(), ids=IMAGES)
def test_networks_for_images_are_the_same_on_both_sides(network: str, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    spaces = discrete(ObservationPart("image", BoxSpace(shape, "uint8"), ()), 3)
    observations = random_observations(spaces, random, BLOCK)
    assert_agree(spaces, Experiment(network=network), observations, random)


def observe(experiment: Experiment, count: int) -> tuple[Spaces, np.ndarray]:
    """An environment's spaces, and the stored form of its first observations for `count` seeds."""
    env = make_environment(experiment)
    spaces = describe_spaces(env, experiment)
    store = ObservationConverter(observation_form(env.observation_space, experiment), spaces)
    return spaces, np.stack([store(env.reset(seed=seed)[0]) for seed in range(count)])


@pytest.mark.parametrize("network", ["auto", "mlp"])
@pytest.mark.parametrize("action", ["box", "multi_discrete", "multi_binary"])
@pytest.mark.parametrize("observation", ["dict", "discrete", "multi_discrete", "multi_binary", "ram"])
def test_observations_of_every_space_are_the_same_on_both_sides(observation: str, action: str, network: str) -> None:
    kwargs = (f"observation={observation}", f"action={action}")
    experiment = Experiment(env="tests.environments:EverySpace-v0", env_kwargs=kwargs, network=network)
    spaces, observations = observe(experiment, BLOCK)
    assert_agree(spaces, experiment, observations, np.random.default_rng(0))


T, MEMORY = 7, 5


@pytest.mark.parametrize("recurrent", ["gru", "lstm"])
@pytest.mark.parametrize("observation", ["matrix", "dict"])
def test_a_layer_step_by_step_is_the_layer_over_a_sequence_with_episodes_that_begin_in_its_middle(
    observation: str, recurrent: Any
) -> None:
    random = np.random.default_rng(0)
    kwargs = (f"observation={observation}", "action=box")
    memory: Any = {"recurrent_size": MEMORY, "recurrent": recurrent}
    experiment = Experiment(env="tests.environments:EverySpace-v0", env_kwargs=kwargs, **memory)
    spaces, stored = observe(experiment, BLOCK * T)
    model, normalization = trained_model(spaces, experiment, random), normalization_of(spaces, random)
    policy = Policy(snapshot_of(model, normalization), spaces, experiment)
    starts = random.random((BLOCK, T)) < 0.3
    starts[0], starts[1], starts[2, 0] = False, True, True
    first_hidden_state = random.standard_normal((BLOCK, experiment.hidden_state_size)).astype(np.float32)
    observations = stored.reshape(BLOCK, T, *stored.shape[1:])

    outputs, hidden_states, hidden_state = [], [], first_hidden_state.copy()
    for t in range(T):
        hidden_state[starts[:, t]] = 0
        parameters, hidden_state = policy.forward(np.ascontiguousarray(observations[:, t]), hidden_state)
        outputs.append(parameters)
        hidden_states.append(hidden_state.copy())

    inputs = [mx.array(x.reshape(BLOCK, T, *x.shape[1:])) for x in network_inputs(stored, spaces, normalization)]
    distribution, values, theirs = model(inputs, mx.array(first_hidden_state), mx.array(starts.astype(np.float32)))
    ours = np.stack(hidden_states, axis=1)
    np.testing.assert_allclose(ours, np.array(theirs), rtol=1e-5, atol=1e-5)
    shown = model.policy_head(theirs[..., :MEMORY])
    np.testing.assert_allclose(np.stack(outputs, axis=1), np.array(shown), rtol=1e-5, atol=1e-5)
    assert values.shape == (BLOCK, T)
    actions = random.standard_normal((BLOCK, T, spaces.action.size)).astype(np.float32)
    np.testing.assert_allclose(
        policy.log_prob(np.stack(outputs, axis=1), actions),
        np.array(distribution.log_prob(mx.array(actions))),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.slow
def test_an_lstm_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    theirs = torch.nn.LSTMCell(3, 4)
    weights = {
        f"lstm.{ours}.{kind}": getattr(theirs, f"{kind}_{name}").detach().numpy()
        for ours, name in (("inputs", "ih"), ("recurrent", "hh"))
        for kind in ("weight", "bias")
    }
    x, h, c = torch.randn(5, 3), torch.randn(5, 4), torch.randn(5, 4)
    expected = np.concatenate([part.detach().numpy() for part in theirs(x, (h, c))], axis=1)
    found = LSTM(weights, "lstm")(x.numpy(), np.concatenate([h.numpy(), c.numpy()], axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_gru_is_the_formula_of_cho() -> None:
    random = np.random.default_rng(0)
    names = {"inputs": 3, "recurrent": 2}
    weights = {f"gru.{name}.weight": random.standard_normal((6, columns)) for name, columns in names.items()}
    weights |= {f"gru.{name}.bias": random.standard_normal(6) for name in names}
    x, before = random.standard_normal(3), random.standard_normal(2)

    def sigmoid(number: float) -> float:
        return 1 / (1 + math.exp(-number))

    a = weights["gru.inputs.weight"] @ x + weights["gru.inputs.bias"]
    b = weights["gru.recurrent.weight"] @ before + weights["gru.recurrent.bias"]
    expected = []
    for i in range(2):
        reset, update = sigmoid(a[i] + b[i]), sigmoid(a[2 + i] + b[2 + i])
        candidate = math.tanh(a[4 + i] + reset * b[4 + i])
        expected.append((1 - update) * candidate + update * before[i])
    found = GRU({name: array.astype(np.float32) for name, array in weights.items()}, "gru")(
        x[None].astype(np.float32), before[None].astype(np.float32)
    )
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [discrete, continuous, binary])
@pytest.mark.parametrize("recurrent_size", [0, 5])
def test_the_same_block_gives_the_same_bits_twice(make: Callable[..., Spaces], recurrent_size: int) -> None:
    random = np.random.default_rng(0)
    spaces, experiment = make(numbers(5), 3), Experiment(recurrent_size=recurrent_size)
    snapshot = snapshot_of(trained_model(spaces, experiment, random), normalization_of(spaces, random))
    observations = random.standard_normal((BLOCK, 5), np.float32)
    hidden_state = random.standard_normal((BLOCK, recurrent_size), np.float32)
    one, other = (Policy(snapshot, spaces, experiment).forward(observations, hidden_state) for _ in range(2))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("network", ["mlp", "nature_cnn", "impala_cnn"])
def test_acting_leaves_the_observations_and_the_memory_alone(network: str) -> None:
    random = np.random.default_rng(0)
    part = numbers(5) if network == "mlp" else ObservationPart("image", BoxSpace((36, 36), "uint8"), ())
    spaces, experiment = discrete(part, 3), Experiment(network=network, hidden_sizes=(4,), recurrent_size=3)
    snapshot = snapshot_of(trained_model(spaces, experiment, random), normalization_of(spaces, random))
    observations = random_observations(spaces, random, BLOCK)
    hidden_state = random.standard_normal((BLOCK, 3), np.float32)
    before = observations.copy(), hidden_state.copy()
    Policy(snapshot, spaces, experiment).forward(observations, hidden_state)
    np.testing.assert_array_equal(observations, before[0])
    np.testing.assert_array_equal(hidden_state, before[1])


@pytest.mark.parametrize("make", [discrete, continuous, binary])
def test_the_mode_is_the_action_without_noise(make: Callable[..., Spaces]) -> None:
    random = np.random.default_rng(0)
    spaces, experiment = make(numbers(5), 3), Experiment(hidden_sizes=(4,), normalize_observations=False)
    policy = Policy(snapshot_of(trained_model(spaces, experiment, random)), spaces, experiment)
    observations = random.standard_normal((BLOCK, 5), np.float32)
    actions, _, _ = policy.act(observations, NO_MEMORY, np.zeros((BLOCK, 3), np.float32))
    np.testing.assert_array_equal(policy.mode(observations, NO_MEMORY)[0], actions)


# Choice of the network


CAMERA = ObservationPart("image", BoxSpace((36, 40), "uint8"), ())
SMALL_CAMERA = ObservationPart("image", BoxSpace((35, 400, 3), "uint8"), ())


@pytest.mark.parametrize(
    ("part", "name", "classes"),
    [
        (numbers(5), "mlp", (on_actor.MLP, on_learner.MLP)),
        (CAMERA, "nature_cnn", (on_actor.NatureCNN, on_learner.NatureCNN)),
        (SMALL_CAMERA, "impala_cnn", (on_actor.ImpalaCNN, on_learner.ImpalaCNN)),
    ],
)
def test_auto_takes_the_network_that_suits_the_observations(
    part: ObservationPart, name: str, classes: tuple[type, type]
) -> None:
    shapes = InputShapes.of((part,))
    assert network_name(Experiment(), shapes) == name
    for experiment in (Experiment(), Experiment(network=name)):
        assert network_class(experiment, shapes, "actor") is classes[0]
        assert network_class(experiment, shapes, "learner") is classes[1]


def test_images_too_small_for_the_nature_cnn_are_refused() -> None:
    with pytest.raises(UserError, match="36 × 36; try impala_cnn"):
        network_class(Experiment(network="nature_cnn"), InputShapes.of((SMALL_CAMERA,)), "actor")


@pytest.mark.parametrize("network", ["transformer", "MLP", ":Net", "package:", ""])
def test_a_name_that_no_network_has_is_refused(network: str) -> None:
    with pytest.raises(UserError, match=f"--network {network} is none of auto, mlp, nature_cnn, impala_cnn and"):
        Experiment(network=network).check()


@pytest.mark.parametrize(
    ("settings", "flag"),
    [({"recurrent_size": -1}, "--recurrent-size"), ({"hidden_sizes": (8, 0)}, "--hidden-sizes")]
    + [({"initial_std": value}, "--initial-std") for value in (0.0, -1.0, math.inf, math.nan)],
)
def test_a_network_of_impossible_numbers_is_refused(settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        Experiment(**settings).check()


@pytest.mark.parametrize("network", ["nowhere:Net", "own_network:Nothing"])
@pytest.mark.parametrize("side", ["actor", "learner"])
def test_a_network_that_is_not_there_is_named(
    network: str, side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_network(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=f"--network {network}"):
        network_class(Experiment(network=network), InputShapes.of((numbers(5),)), side)


def own_network(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a user's package with a network for both sides."""
    package = path / "own_network"
    package.mkdir()
    for side, module in (("actor", "actors"), ("learner", "learner")):
        (package / f"{side}.py").write_text(f"from {module}.networks import MLP\n\nclass Net(MLP):\n    pass\n")
    monkeypatch.syspath_prepend(path)
    for name in ("own_network", "own_network.actor", "own_network.learner"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_network_of_ones_own_is_used_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_network(tmp_path, monkeypatch)
    random = np.random.default_rng(0)
    spaces, experiment = continuous(numbers(5), 2), Experiment(network="own_network:Net")
    assert type(ActorCritic(spaces, experiment).encoder).__module__ == "own_network.learner"
    assert_agree(spaces, experiment, random_observations(spaces, random, BLOCK), random)


# tanh


def test_the_rational_tanh_is_off_by_less_than_4e_7() -> None:
    x = np.linspace(-20, 20, 200_001, dtype=np.float32)
    error = np.abs(np.array(rational_tanh(mx.array(x)), np.float64) - np.tanh(x.astype(np.float64)))
    assert error.max() < 4e-7


def test_the_rational_tanhs_gradient_is_one_minus_its_square() -> None:
    x = np.linspace(-20, 20, 2001, dtype=np.float32)
    tanh = tanh_for(mx.Device(mx.cpu))
    gradient = mx.grad(lambda a: tanh(a).sum())(mx.array(x))
    np.testing.assert_allclose(np.array(gradient), 1 - np.tanh(x.astype(np.float64)) ** 2, atol=1e-6)


def test_the_cpu_takes_the_rational_tanh_and_the_gpu_its_own() -> None:
    assert tanh_for(mx.Device(mx.cpu)) is rational_tanh
    assert tanh_for(mx.Device(mx.gpu)) is mx.tanh
