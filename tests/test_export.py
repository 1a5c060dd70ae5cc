"""Exported policies: the file that needs only NumPy, and the ONNX graph, compared with `eval`."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import safetensors.numpy
from launching import ROOT, SMALL, launch, train
from making import snapshot_of, trained_model

from actors.environment import make_environment, reset_environment
from actors.episodes import playing
from actors.exported import Description, ExportedPolicy, load_policy, save_policy
from actors.graph import TOLERANCE, inputs_of, save_graph
from actors.spaces import action_form, describe_spaces, observation_form
from commands.export import largest_difference
from learner.normalization import RunningStatistics
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.observations import normalized_size
from protocol.randomness import Purpose, environment_seed
from tests.environments import EverySpace

EVERY = "tests.environments:EverySpace-v0"
EPISODES = 3


def every(observation: str, action: str = "box", **settings: Any) -> Experiment:
    return Experiment(env=EVERY, env_kwargs=(f"observation={observation}", f"action={action}"), **settings)


EXPERIMENTS = {
    **{f"shows {name}": every(name) for name in EverySpace.OBSERVATIONS if name != "text"},
    **{f"takes {name}": every("matrix", name) for name in EverySpace.ACTIONS if name != "dict"},
    "frames through an impala": every("frames", "discrete", network="impala_cnn"),
    "images as numbers": every("image", "discrete", network="mlp"),
    "relu": every("matrix", activation="relu", hidden_sizes=(8,)),
    "silu": every("matrix", activation="silu"),
    "no layers": every("matrix", hidden_sizes=()),
    "not normalised": every("matrix", normalize_observations=False),
    "gru": every("matrix", recurrent_size=5),
    "lstm": every("matrix", recurrent="lstm", recurrent_size=5),
    "gru of everything": every("dict", "multi_discrete", recurrent_size=5),
    "gru behind a nature": every("frames", "multi_binary", recurrent_size=5, hidden_sizes=(16,)),
    "T-maze": Experiment(env="tests.environments:TMaze-v0", recurrent_size=8),
    "CartPole": Experiment(),
}


def policy_of(experiment: Experiment) -> ExportedPolicy:
    """A policy for the experiment, with random weights and statistics."""
    random = np.random.default_rng(0)
    env = make_environment(experiment)
    spaces = describe_spaces(env, experiment)
    statistics = RunningStatistics((normalized_size(spaces.parts),))
    statistics.update(3 * random.standard_normal((50, normalized_size(spaces.parts))) + 2)
    snapshot = snapshot_of(trained_model(spaces, experiment, random), statistics.normalization(), version=7)
    forms = observation_form(env.observation_space, experiment), action_form(env.action_space)
    return ExportedPolicy(Description(7, experiment, spaces, *forms), snapshot)


def actions_in(experiment: Experiment, act: Any, begin: Any) -> Iterator[Any]:
    """The actions of `act` over whole episodes, each with the seed that `eval` uses for it."""
    env = make_environment(experiment)
    for episode in range(EPISODES):
        observation, _ = reset_environment(env, environment_seed(experiment.seed, Purpose.EVALUATION_SEED, 0, episode))
        begin()
        over = False
        while not over:
            action = act(observation)
            assert env.action_space.contains(action)
            yield action
            observation, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated


def session_of(policy: ExportedPolicy, path: Path) -> Any:
    """Save the policy's graph, and load it; returns the session."""
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    save_graph(path, policy)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


class Recorder(gymnasium.Wrapper):
    """Records the actions that the environment receives."""

    def __init__(self, env: gymnasium.Env, actions: list[Any]) -> None:
        super().__init__(env)
        self._actions = actions

    def step(self, action: Any) -> Any:
        self._actions.append(action)
        return super().step(action)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_exported_policy_acts_as_eval_does_bit_for_bit(name: str, tmp_path: Path) -> None:
    experiment, original = EXPERIMENTS[name], policy_of(EXPERIMENTS[name])
    save_policy(tmp_path / "policy", original.description, original.snapshot)
    exported = load_policy(tmp_path / "policy")
    assert exported.description == original.description
    found = list(actions_in(experiment, exported, exported.reset))
    wanted: list[Any] = []
    with playing(experiment, original.snapshot, EPISODES, lambda e: Recorder(make_environment(e), wanted)) as scores:
        assert len(list(scores)) == EPISODES
    assert len(found) > EPISODES
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_graph_computes_what_the_policy_does(name: str, tmp_path: Path) -> None:
    policy = policy_of(EXPERIMENTS[name])
    session = session_of(policy, tmp_path / "policy.onnx")
    assert largest_difference(session, policy) <= TOLERANCE

    hidden_state = np.zeros((1, EXPERIMENTS[name].hidden_state_size), np.float32)

    def begin() -> None:
        policy.reset()
        hidden_state.fill(0)

    def act(observation: Any) -> Any:
        outputs = dict(
            zip(
                [output.name for output in session.get_outputs()],
                session.run(None, inputs_of(policy, observation, hidden_state)),
                strict=True,
            )
        )
        action = policy(observation)
        ours = outputs["action"][0]
        assert ours.dtype == np.asarray(action).dtype
        np.testing.assert_allclose(ours, action, rtol=1e-5, atol=1e-5)
        if hidden_state.size:
            hidden_state[:] = outputs["next_hidden_state"]
        if policy.description.spaces.distribution == "gaussian":
            np.testing.assert_array_equal(outputs["log_std"], policy.snapshot.weights["log_std"])
        return action

    assert len(list(actions_in(EXPERIMENTS[name], act, begin))) > EPISODES


def test_a_graph_takes_a_batch_of_any_size(tmp_path: Path) -> None:
    policy = policy_of(EXPERIMENTS["gru of everything"])
    session = session_of(policy, tmp_path / "policy.onnx")
    space = EverySpace.OBSERVATIONS["dict"]
    space.seed(0)
    feeds = [inputs_of(policy, space.sample(), np.full((1, 5), i / 5, np.float32)) for i in range(5)]
    alone = [session.run(None, feed) for feed in feeds]
    together = session.run(None, {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})
    for i, output in enumerate(session.get_outputs()):
        if output.name != "log_std":
            np.testing.assert_allclose(together[i], np.concatenate([a[i] for a in alone]), rtol=1e-5, atol=1e-6)


def test_a_sampled_action_follows_the_distribution() -> None:
    policy = policy_of(Experiment())
    generator = np.random.default_rng(0)
    observation = np.zeros(4, np.float32)
    parameters, _ = policy.forward(observation)
    p = np.exp(parameters[0, 1]) / np.exp(parameters[0]).sum()
    drawn = [int(policy.sample(observation, generator)) for _ in range(2000)]
    assert abs(np.mean(drawn) - p) < 4 * np.sqrt(p * (1 - p) / 2000)
    assert 0 < np.mean(drawn) < 1


def test_a_policy_with_a_memory_forgets_only_when_it_is_told_to() -> None:
    policy = policy_of(EXPERIMENTS["T-maze"])
    observation = np.ones(2, np.float32)
    first, _ = policy.forward(observation)
    policy(observation)
    second, _ = policy.forward(observation)
    policy.reset()
    np.testing.assert_array_equal(policy.forward(observation)[0], first)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("observation", [np.array([0, np.nan, 0, 0], np.float32), np.zeros(3, np.float32), "nonsense"])
def test_an_observation_that_cannot_be_is_an_error(observation: Any) -> None:
    with pytest.raises(ValueError):
        policy_of(Experiment())(observation)


def test_a_policy_runs_with_numpy_and_safetensors_alone(tmp_path: Path) -> None:
    policy = policy_of(EXPERIMENTS["gru of everything"])
    save_policy(tmp_path / "policy", policy.description, policy.snapshot)
    code = (
        "import sys, numpy.random, safetensors.numpy; before = set(sys.modules)\n"
        "from actors.exported import load_policy\n"
        f"load_policy({str(tmp_path / 'policy')!r})\n"
        "more = {name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names\n"
        "print(sorted(more))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['actors', 'protocol']\n"


# Untrusted files


def arrays_and_metadata(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safetensors.safe_open(path, framework="np") as file:
        return safetensors.numpy.load_file(path), dict(file.metadata())


def refusal(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None) -> str:
    path.write_bytes(safetensors.numpy.save(arrays, metadata))
    with pytest.raises(UserError) as error:
        load_policy(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    policy = policy_of(EXPERIMENTS["gru of everything"])
    save_policy(tmp_path / "policy", policy.description, policy.snapshot)
    return tmp_path / "policy"


def test_every_cut_and_every_flipped_byte_of_the_header_gives_one_line_or_a_policy(saved: Path) -> None:
    data = saved.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    random = np.random.default_rng(0)
    spoilt = [data[:n] for n in (0, 1, 7, 8, 9, header - 1, header, len(data) - 1)]
    for position in random.integers(header, size=300):
        flipped = bytearray(data)
        flipped[position] ^= 1 << random.integers(8)
        spoilt.append(bytes(flipped))
    refused = 0
    for content in spoilt:
        saved.write_bytes(content)
        try:
            load_policy(saved)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 150  # Some files remain valid, for example if a digit of a bound was flipped.


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (["experiment", "recurrent_size"], 2**62, "gru.recurrent.weight"),
        (["experiment", "recurrent_size"], 0, "do not fit"),
        (["experiment", "recurrent_size"], "5", "recurrent_size is a str"),
        (["experiment", "network"], "os:system", "trust=True"),
        (["experiment", "network"], "nature_cnn", "36 × 36"),
        (["experiment", "num_envs"], -1, "--num-envs"),
        (["spaces", "distribution"], "gaussian", "does not fit its distribution"),
        (["spaces", "choices"], [2, 3, 4, 2**40], "outputs"),
        (["spaces", "parts"], [], "0 parts"),
        (["observation", "paths"], [["where"]], "does not fit its parts"),
        (["observation", "paths", 0], [None], "NoneType"),
        (["observation", "starts"], [[], [], [], []], "starts"),
        (["action", "dtype"], "float32", "dtype float32"),
        (["action", "dtype"], "object", "dtype object"),
        (["action", "start"], [0], "starts or bounds"),
        (["policy_version"], 1.5, "policy_version"),
        (["experiment"], {}, "exactly the fields"),
    ],
)
def test_a_description_that_cannot_be_is_refused_in_one_line(
    saved: Path, path: list[Any], value: Any, reason: str
) -> None:
    arrays, metadata = arrays_and_metadata(saved)
    description = json.loads(metadata["policy"])
    inner = description
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert reason in refusal(saved, arrays, metadata | {"policy": json.dumps(description)})


def test_a_file_that_is_none_or_of_another_format_is_refused_in_one_line(saved: Path) -> None:
    arrays, metadata = arrays_and_metadata(saved)
    assert "not a policy that `launch.py export` wrote" in refusal(saved, arrays, None)
    assert "policy format 3" in refusal(saved, arrays, metadata | {"mlx-distributed-ppo": "3"})
    assert "damaged" in refusal(saved, arrays, metadata | {"policy": DEEP})
    assert "damaged" in refusal(saved, arrays, metadata | {"policy": "{"})
    with pytest.raises(UserError, match="cannot be read"):
        load_policy(saved.parent / "nothing")
    with pytest.raises(UserError, match=str(saved.parent)):
        load_policy(saved.parent)


def test_a_file_of_the_first_format_is_read(saved: Path) -> None:
    arrays, metadata = arrays_and_metadata(saved)
    described = json.loads(metadata["policy"])
    del described["experiment"]["episode_metrics"], described["spaces"]["has_action_masks"]
    wanted = load_policy(saved).description
    older = {"mlx-distributed-ppo": "1", "policy": json.dumps(described)}
    safetensors.numpy.save_file(arrays, saved, metadata | older)
    assert load_policy(saved).description == wanted


def test_weights_that_do_not_fit_are_refused_in_one_line(saved: Path) -> None:
    arrays, metadata = arrays_and_metadata(saved)
    for name, array in arrays.items():
        for spoilt in (array[..., :-1], array.astype(np.float64), np.full_like(array, np.nan), None):
            changed = {**arrays, name: np.ascontiguousarray(spoilt)}
            if spoilt is None:
                del changed[name]
            refusal(saved, changed, metadata)


# The command


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "run"
    train(path, "--in-process", *SMALL, "--recurrent-size", 4)
    return path


def test_the_script_of_the_readme_plays_the_first_episode_of_an_exported_policy(run_dir: Path, tmp_path: Path) -> None:
    done = launch("export", run_dir, tmp_path / "policy.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'policy.safetensors'}: policy version 4 for CartPole-v1\n"
    (script,) = re.findall(
        r"```python\n(import gymnasium\n.*?)```", (ROOT / "docs/exporting.md").read_text(), re.DOTALL
    )
    assert len(script.splitlines()) <= 12
    seed = environment_seed(0, Purpose.EVALUATION_SEED, 0, 0)
    script = script.replace("seed=0", f"seed={seed}")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}"
    played = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    evaluated = launch("eval", run_dir, "--episodes", 1)
    assert float(played.stdout) == json.loads((run_dir / "eval.json").read_text())["returns"][0]
    of_file = launch("eval", tmp_path / "policy.safetensors", "--episodes", 1)
    assert of_file.stdout == evaluated.stdout


def test_an_onnx_export_says_how_far_it_is_from_the_policy(run_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = launch("export", run_dir, tmp_path / "policy.onnx", "--format", "onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"differ from the NumPy policy's by at most \d\.\de-\d\d$", done.stdout)


def test_mistakes_of_an_export_are_one_line_each(run_dir: Path, tmp_path: Path) -> None:
    for arguments, line in (
        ((run_dir, tmp_path / "no" / "policy"), f"{tmp_path / 'no' / 'policy'} cannot be written: No such file"),
        ((tmp_path, tmp_path / "policy"), f"{tmp_path}: there is no run here"),
        ((run_dir, tmp_path / "policy", "--best"), f"{run_dir / 'best'} has no checkpoint"),
    ):
        done = launch("export", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith(f"launch.py: {line}")
        assert done.stderr.count("\n") == 1


def test_a_file_names_no_modules_to_import_unless_it_is_trusted(tmp_path: Path) -> None:
    policy = policy_of(EXPERIMENTS["T-maze"])
    save_policy(tmp_path / "policy", policy.description, policy.snapshot)
    done = launch("eval", tmp_path / "policy", "--episodes", 1)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "names modules to import (tests.environments:TMaze-v0): --trust" in done.stderr
    assert launch("eval", tmp_path / "policy", "--episodes", 1, "--trust").returncode == 0


def test_a_network_of_the_users_own_is_exported_as_numpy_and_has_no_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "exported_network"
    package.mkdir()
    for side, module in (("actor", "actors"), ("learner", "learner")):
        (package / f"{side}.py").write_text(f"from {module}.networks import MLP\n\nclass Net(MLP):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    pytest.importorskip("onnx")
    policy = policy_of(Experiment(network="exported_network:Net"))
    with pytest.raises(UserError, match="a network of your own has no ONNX form here"):
        save_graph(tmp_path / "policy.onnx", policy)
    save_policy(tmp_path / "policy", policy.description, policy.snapshot)
    with pytest.raises(UserError, match="has a network of its own, exported_network:Net"):
        load_policy(tmp_path / "policy")
    observation = np.ones(4, np.float32)
    trusted = load_policy(tmp_path / "policy", trust=True)
    np.testing.assert_array_equal(trusted.forward(observation)[0], policy.forward(observation)[0])


def test_a_graph_for_other_runtimes_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    path.write_bytes(b"a graph")
    with pytest.raises(UserError, match="is a graph for ONNX runtimes, which is not read here"):
        load_policy(path)
