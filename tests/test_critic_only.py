"""What only the critic sees trains the value. Actors, their weights and exported policies have nothing of it."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from disturbing import in_every_execution
from launching import launch, metrics_of, train
from making import snapshot_of, trained_model
from marks import slow

from actors.environment import make_environment
from actors.exported import load_policy, save_policy
from actors.graph import TOLERANCE, save_graph
from actors.policy import Policy
from actors.simulation import Simulation
from actors.spaces import describe_observations, describe_spaces
from commands.export import largest_difference
from commands.helpers.policies import describe
from learner.differentiated import Differentiated
from learner.model import ActorCritic, model_inputs
from learner.ppo import computation_of
from learner.stacked_mlp import StackedMLP
from protocol.errors import ProtocolError, UserError
from protocol.experiment import Experiment
from protocol.observations import critic_numbers_of, normalized_size
from protocol.spaces import Spaces
from rundir.checkpoint import list_checkpoints, load_checkpoint, spaces_of
from rundir.config import PPOConfig
from tests.environments_agent import Fog

ENV = "tests.environments_agent:Fog-v0"
FOG: list[object] = ["--env", ENV, "--num-envs", 16, "--lane-size", 4, "--rollout-length", 16, "--minibatches", 4]
FOG += ["--epochs", 2, "--hidden-sizes", 16, "--critic-only", "scene"]
CAMERA: list[object] = ["--env-kwargs", "camera=True"]
KINDS: dict[str, list[object]] = {
    "vectors": [],
    "vectors in sync": ["--schedule", "sync"],
    "images": CAMERA,
    "images for the critic": [*CAMERA, "--critic-only", "scene", "camera"],
    "a memory": ["--recurrent", "lstm", "--recurrent-size", 8],
    "images and a memory": [*CAMERA, "--recurrent-size", 8],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_actors_transport_kills_and_resumes_change_nothing(tmp_path: Path, kind: str) -> None:
    flags = [*FOG, *KINDS[kind], "--total-steps", 256 * 24, "--checkpoint-every", 3]
    summaries = in_every_execution(tmp_path, flags)
    assert len({summary["weights_digest"] for summary in summaries.values()}) == 1, summaries
    assert all(summary["deterministic"] for summary in summaries.values()), summaries


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vectors", "images", "a memory"])
def test_the_value_knows_what_the_policy_does_not_see(tmp_path: Path, kind: str) -> None:
    """An episode's luck decides its rewards. Only the scene tells it, or else the rewards seen before."""
    flags = [*FOG, *KINDS[kind], "--learning-rate", 3e-3, "--total-steps", 256 * 120, "--in-process"]
    train(tmp_path / "run", *flags)
    assert metrics_of(tmp_path / "run")[-1]["train/explained_variance"] > 0.9
    if kind == "vectors":
        blind = [flag for flag in flags if flag not in ("--critic-only", "scene")]
        train(tmp_path / "blind", *blind, "--env-kwargs", "scene=False")
        assert metrics_of(tmp_path / "blind")[-1]["train/explained_variance"] < 0.5


def experiment_of(*keys: str, **settings: Any) -> Experiment:
    return Experiment(env=ENV, hidden_sizes=(16,), critic_only=keys or ("scene",), **settings)


def stored(experiment: Experiment, count: int, seed: int = 0) -> tuple[Spaces, np.ndarray]:
    """(spaces, observations [count, *observation] of an episode's steps, as stored)."""
    simulation = Simulation(experiment)
    found = [simulation.reset(seed).copy()]
    while len(found) < count:
        observation, _, _, truncated = simulation.step(0)
        found.append((simulation.reset(seed + len(found)) if truncated else observation).copy())
    simulation.close()
    return simulation.spaces, np.stack(found)


def with_other_scenes(spaces: Spaces, observations: np.ndarray) -> np.ndarray:
    """The same for the policy, and for the critic another luck and another sign in each row."""
    lucks, signs = spaces.unpack_critic(observations)[-2:]
    changed = [lucks / 2 + 1, 1 - signs]
    columns = [array.reshape(len(observations), -1).view(np.uint8) for array in changed]
    kept = observations[:, : -sum(column.shape[1] for column in columns)]
    return np.concatenate([kept, *columns], axis=1)


# Spaces


def test_a_key_takes_all_that_it_holds_and_its_parts_are_stored_last() -> None:
    env = Fog(camera=True)
    spaces = describe_spaces(env, experiment_of("scene"))
    assert [part.kind for part in spaces.parts] == ["image", "binary", "numbers"]
    assert [part.kind for part in spaces.critic_parts] == ["numbers", "choices"]
    assert spaces.observation.shape == (432 + 2 + 8 + 4 + 8,)
    text = describe_observations(env, experiment_of("scene"))
    assert text.endswith(
        "scene.luck float32 [1] as numbers, for the critic only, scene.sign int64 [] as choices, one-hot,"
        " for the critic only"
    )
    spaces.check()
    assert spaces.of_policy.observation.shape == (432 + 2 + 8,) and not spaces.of_policy.critic_parts
    nested = describe_spaces(env, experiment_of("scene.luck", "camera"))
    assert [part.kind for part in nested.critic_parts] == ["image", "numbers"]
    assert [part.kind for part in nested.parts] == ["binary", "choices", "numbers"]


def test_what_is_stored_is_what_was_shown() -> None:
    experiment = experiment_of()
    spaces, observations = stored(experiment, 5)
    env = make_environment(experiment)
    shown = env.reset(seed=0)[0]
    contacts, sensor = (array[0] for array in spaces.unpack(observations))
    luck, sign = (array[0] for array in spaces.unpack_critic(observations))
    np.testing.assert_array_equal(contacts, shown["contacts"])
    np.testing.assert_array_equal(sensor, shown["sensor"].astype(np.float32))
    np.testing.assert_array_equal(luck, shown["scene"]["luck"])
    assert sign == shown["scene"]["sign"] - 1
    np.testing.assert_array_equal(critic_numbers_of(observations, spaces)[0], luck)


def test_one_part_of_numbers_that_is_left_for_the_policy_is_read_as_numbers() -> None:
    experiment = experiment_of("scene", "contacts")
    spaces, observations = stored(experiment, 3)
    (sensor,) = spaces.unpack(observations)
    assert sensor.dtype == np.float32 and sensor.shape == (3, 2)
    assert spaces.of_policy.observation == spaces.parts[0].box


def test_a_scene_that_cannot_be_is_refused() -> None:
    spaces, observations = stored(experiment_of(), 3)
    spaces.check_observations(observations)
    luck = observations.copy()
    luck[1, 10:14] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    with pytest.raises(ProtocolError, match="not finite"):
        spaces.check_observations(luck)
    sign = observations.copy()
    sign[1, 14:] = 3
    with pytest.raises(ProtocolError, match="an observation lies outside"):
        spaces.check_observations(sign)


@pytest.mark.parametrize(
    ("env", "keys", "said"),
    [
        (
            ENV,
            ("scen",),
            r"--critic-only scen: .* no such part .*; its parts are contacts, scene.luck, scene.sign, sensor",
        ),
        slow(ENV, ("scene", "a", "b"), r"--critic-only a b: "),
        slow(ENV, ("scene", "sensor", "contacts"), "leaves the policy nothing to see"),
        slow("CartPole-v1", ("scene",), "it is no Dict"),
    ],
)
def test_a_key_that_cannot_be_is_named(tmp_path: Path, env: str, keys: tuple[str, ...], said: str) -> None:
    experiment = Experiment(env=env, critic_only=keys)
    with pytest.raises(UserError, match=said):
        describe_spaces(make_environment(experiment), experiment)
    done = launch("--env", env, "--critic-only", *keys, "--run-dir", tmp_path / "run")
    assert done.returncode != 0 and "--critic-only" in done.stderr and "Traceback" not in done.stderr


# Models

MODELS: dict[str, dict[str, Any]] = {
    "vectors": {},
    "relu": {"activation": "relu"},
    "images": {"env_kwargs": ("camera=True",)},
    "images for the critic": {"env_kwargs": ("camera=True",), "critic_only": ("scene", "camera")},
    "a memory": {"recurrent_size": 8},
    "images and a memory": {"env_kwargs": ("camera=True",), "recurrent_size": 8, "recurrent": "lstm"},
}


def model_of(kind: str) -> tuple[Experiment, ActorCritic, np.ndarray]:
    settings = dict(MODELS[kind])
    experiment = experiment_of(*settings.pop("critic_only", ("scene",)), **settings)
    spaces, observations = stored(experiment, 16)
    lucks = np.linspace(-1, 1, 16, dtype=np.float32)[:, None]  # So small that no activation saturates.
    observations[:, -12:-8] = lucks.view(np.uint8)
    return experiment, trained_model(spaces, experiment, np.random.default_rng(0)), observations


def outputs(experiment: Experiment, model: ActorCritic, observations: np.ndarray) -> list[np.ndarray]:
    """(the values, the policy's log-probabilities of action 0, the hidden states)."""
    lead = (4, 4) if model.recurrent else (16,)
    arrays = model_inputs(observations, model.spaces, None, None)
    inputs = [mx.array(x.reshape(*lead, *x.shape[1:])) for x in arrays]
    hidden_state = mx.zeros((4, experiment.hidden_state_size))
    distribution, values, hidden_states = model(inputs, hidden_state, mx.zeros(lead))
    return [np.array(x) for x in (values, distribution.log_prob(mx.zeros((*lead, 1), mx.int64)), hidden_states)]


@pytest.mark.parametrize("kind", MODELS)
def test_the_value_alone_follows_the_scene(kind: str) -> None:
    experiment, model, observations = model_of(kind)
    mixed = with_other_scenes(model.spaces, observations)
    values, log_probs, hidden_states = outputs(experiment, model, observations)
    others = outputs(experiment, model, mixed)
    assert (values != others[0]).all()
    np.testing.assert_array_equal(log_probs, others[1])
    np.testing.assert_array_equal(hidden_states, others[2])


@pytest.mark.parametrize("kind", MODELS)
def test_actors_have_nothing_of_the_critic_and_act_alike(kind: str) -> None:
    experiment, model, observations = model_of(kind)
    snapshot, spaces = snapshot_of(model), model.spaces
    assert not [name for name in snapshot.weights if name.startswith("value")]
    assert snapshot.observation_mean.shape == (normalized_size(spaces.parts),)
    policy = Policy(snapshot, spaces, experiment)
    hidden_state = np.zeros((16, experiment.hidden_state_size), np.float32)
    parameters, _ = policy.forward(observations, hidden_state)
    np.testing.assert_array_equal(parameters, policy.forward(with_other_scenes(spaces, observations), hidden_state)[0])
    if not model.recurrent:
        log_probs = policy.log_prob(parameters, np.zeros((16,), np.int64))
        np.testing.assert_allclose(log_probs, outputs(experiment, model, observations)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["vectors", "relu"])
def test_the_gradient_by_hand_is_that_of_differentiation(kind: str) -> None:
    _, model, observations = model_of(kind)
    config, random = PPOConfig(value_clip_range=0.2), np.random.default_rng(1)
    stacked, plain = computation_of(model, config), Differentiated(model, config)
    assert isinstance(stacked, StackedMLP)
    inputs = [mx.array(x) for x in model_inputs(observations, model.spaces, None, None)]
    samples: dict[str, Any] = {"actions": mx.array(random.integers(2, size=(16, 1))), "weights": mx.ones(16)}
    for name in ("proximal_log_probs", "advantages", "value_targets", "values"):
        samples[name] = mx.array(random.standard_normal(16, np.float32))
    found, outcomes = [], []
    for computation in (stacked, plain):
        vector = computation.layout.join(model.state_dict())
        given = samples | {"inputs": computation.prepare(inputs)}
        gradient, outcome = computation.gradients(vector, given, mx.array(0.2), mx.array(0.01))
        # What the policy does not see stays 0, also in Adam.
        unused = set(range(computation.layout.size)) - {
            int(i) for a in computation.layout.split(np.arange(computation.layout.size)).values() for i in a.reshape(-1)
        }
        assert not np.array(gradient)[sorted(unused)].any()
        found.append({name: np.array(a) for name, a in computation.layout.split(gradient).items()})
        outcomes.append(
            [
                *outcome,
                *computation.evaluate(vector, given),
                computation.values(vector, given["inputs"], mx.zeros((16, 0))),
            ]
        )
    assert found[0].keys() == found[1].keys() == model.state_dict().keys()
    for name, gradient in found[1].items():
        np.testing.assert_allclose(found[0][name], gradient, rtol=1e-4, atol=1e-5, err_msg=name)
    for ours, theirs in zip(*outcomes, strict=True):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind not in ("vectors", "relu")])
def test_other_models_are_differentiated(kind: str) -> None:
    assert isinstance(computation_of(model_of(kind)[1], PPOConfig()), Differentiated)


# Exports, and going on


@pytest.mark.parametrize("kind", ["vectors", "images", "a memory"])
def test_an_exported_policy_does_not_ask_for_the_scene(tmp_path: Path, kind: str) -> None:
    experiment = experiment_of(**MODELS[kind])
    description = describe(experiment, 3)
    assert not description.spaces.critic_parts
    snapshot = snapshot_of(
        trained_model(describe_spaces(make_environment(experiment), experiment), experiment, np.random.default_rng(0)),
        version=3,
    )
    save_policy(tmp_path / "policy", description, snapshot)
    policy = load_policy(tmp_path / "policy")
    shown, _ = make_environment(experiment).reset(seed=4)
    parameters, _ = policy.forward(shown)
    without = {name: part for name, part in shown.items() if name != "scene"}
    np.testing.assert_array_equal(policy.forward(without)[0], parameters)
    spaces, observations = stored(experiment, 1, seed=4)
    own, _ = Policy(snapshot, spaces, experiment).forward(
        observations, np.zeros((1, experiment.hidden_state_size), np.float32)
    )
    np.testing.assert_array_equal(own, parameters)
    assert policy(without) in (0, 1)
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        save_graph(tmp_path / "policy.onnx", policy)
        session = importlib.import_module("onnxruntime").InferenceSession(tmp_path / "policy.onnx")
        assert not [each.name for each in session.get_inputs() if "scene." in each.name]
        assert largest_difference(session, policy) < TOLERANCE


@pytest.mark.slow
def test_a_run_is_evaluated_exported_and_begun_from(tmp_path: Path) -> None:
    flags = [*FOG, "--total-steps", 256 * 4]
    train(tmp_path / "run", *flags, "--actors", 2, "--eval-every", 2, "--eval-episodes", 3)
    checkpoint = load_checkpoint(list_checkpoints(tmp_path / "run/checkpoints")[-1])
    assert checkpoint.arrays["statistics.mean"].shape == (2,)
    assert (
        checkpoint.arrays["critic_statistics.mean"].shape == (1,)
        and checkpoint.arrays["critic_statistics.count"] == 1024
    )
    assert abs(checkpoint.arrays["critic_statistics.mean"][0] - 7) < 60
    assert spaces_of(checkpoint).critic_parts
    assert checkpoint.arrays["previous.observation_mean"].shape == (2,)
    done = launch("eval", tmp_path / "run", "--episodes", 3)
    assert done.returncode == 0, done.stderr
    whole = json.loads((tmp_path / "run/eval.json").read_text())["returns"]
    assert launch("export", tmp_path / "run", tmp_path / "policy.safetensors").returncode == 0
    done = launch("eval", tmp_path / "policy.safetensors", "--episodes", 3, "--trust")
    assert done.returncode == 0 and f"return {np.mean(whole):.2f}" in done.stdout, done.stdout + done.stderr
    train(tmp_path / "second", *flags, "--init-from", tmp_path / "run", "--actors", 2)
    first = load_checkpoint(list_checkpoints(tmp_path / "second/checkpoints")[0])
    for name in ("critic_statistics.mean", "statistics.mean", "model.value_encoder.layers.0.weight"):
        np.testing.assert_array_equal(first.arrays[name], checkpoint.arrays[name])
    blind = [flag for flag in flags if flag not in ("--critic-only", "scene")]
    done = launch("--run-dir", tmp_path / "third", *blind, "--init-from", tmp_path / "run")
    assert done.returncode != 0 and "the critic alone sees 1 numbers there and 0 here" in done.stderr, done.stderr
