"""Beginning from another policy: `--init-from`, and what VecNormalize has saved."""

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import launch, summary_of, train
from marks import slow

from actors.exported import load_policy
from commands.helpers.initial import read_initial
from commands.helpers.vecnormalize import read_statistics
from protocol.errors import UserError
from rundir.checkpoint import load_checkpoint

SMALL: list[object] = ["--num-envs", 16, "--lane-size", 2, "--rollout-length", 32, "--minibatches", 4, "--epochs", 2]
LAYERS: list[object] = ["--hidden-sizes", 16, 8]
PENDULUM = [*SMALL, "--env", "Pendulum-v1", "--total-steps", 512 * 4, "--normalize-observations", *LAYERS]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("source") / "run"
    train(run_dir, *PENDULUM, "--in-process")
    assert launch("export", run_dir, run_dir.parent / "policy.safetensors").returncode == 0
    return run_dir


def first_arrays(run_dir: Path) -> dict[str, np.ndarray]:
    """What a run began with."""
    return load_checkpoint(run_dir / "checkpoints" / "00000000").arrays


@pytest.mark.slow
def test_a_run_begins_with_the_weights_and_statistics_of_another(tmp_path: Path, source: Path) -> None:
    flags = [*PENDULUM, "--init-from", source, "--seed", 5]
    digests = [train(tmp_path / str(n), *flags, "--actors", n)["weights_digest"] for n in (1, 3)]
    assert len(set(digests)) == 1
    begun, given = first_arrays(tmp_path / "1"), load_checkpoint(source / "checkpoints" / "00000004").arrays
    for name, array in given.items():
        if name.startswith(("model.", "statistics.")):
            np.testing.assert_array_equal(begun[name], array, err_msg=name)
    assert begun["optimizer.step"] == 0 and given["optimizer.step"] == 32
    still = train(tmp_path / "still", *flags, "--learning-rate", 0)
    assert still["weights_digest"] == summary_of(source)["weights_digest"]


def test_an_exported_policy_is_begun_from_without_a_critic(tmp_path: Path, source: Path) -> None:
    file = source.parent / "policy.safetensors"
    done = launch("--run-dir", tmp_path / "run", "--device", "cpu", *PENDULUM, "--init-from", file)
    assert "it has no critic, which begins anew" in done.stdout, done.stdout + done.stderr
    begun, given = first_arrays(tmp_path / "run"), load_checkpoint(source / "checkpoints" / "00000004").arrays
    for name in (name for name in given if name.startswith("model.") and "value" not in name):
        np.testing.assert_array_equal(begun[name], given[name], err_msg=name)
    assert begun["statistics.count"] == given["statistics.count"]
    for name in ("statistics.mean", "statistics.squares"):
        np.testing.assert_allclose(begun[name], given[name], rtol=1e-5)


MISFITS = {
    "other layers": (["--hidden-sizes", 16, 9], "encoder.layers.1.weight is [8, 16] there and [9, 16] here"),
    "more layers": (["--hidden-sizes", 16, 8, 8], "encoder.layers.2.weight is missing there"),
    "another activation": (["--activation", "relu"], "its activation is tanh, and here relu"),
    "not normalised": (["--no-normalize-observations"], "observations were normalised there, and are not here"),
    "a memory": (["--recurrent-size", 4], "gru.inputs.weight is missing there"),
    "another environment": (["--env", "CartPole-v1"], "an observation has 3 numbers there and 4 here"),
}


QUICK = "another environment"


@pytest.mark.parametrize("misfit", [misfit if misfit == QUICK else slow(misfit) for misfit in MISFITS])
def test_what_does_not_fit_is_named_in_a_line_or_left(tmp_path: Path, source: Path, misfit: str) -> None:
    flags, said = MISFITS[misfit]
    given = PENDULUM[: -len(LAYERS)] if "--hidden-sizes" in flags else PENDULUM
    flags = [*given, "--total-steps", 512, "--init-from", source, *flags]
    done = launch("--run-dir", tmp_path / "run", *flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and said in done.stderr, done.stderr
    assert "--init-partial leaves that as initialised" in done.stderr and not (tmp_path / "run").exists()
    if misfit in ("other layers", "a memory"):
        done = launch("--run-dir", tmp_path / "run", "--device", "cpu", *flags, "--init-partial")
        assert done.returncode == 0 and "left as initialised: " in done.stdout and said in done.stdout
        begun = first_arrays(tmp_path / "run")["model.encoder.layers.0.weight"]
        given = load_checkpoint(source / "checkpoints" / "00000004").arrays["model.encoder.layers.0.weight"]
        np.testing.assert_array_equal(begun, given)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--init-from", "nowhere"], "nowhere: there is no run here"),
        (["--init-from", "README.md"], "README.md is not an exported policy"),
        (["--init-partial"], "are for --init-from, which is missing"),
        (["--init-from", "README.md", "--init-vecnormalize", "x"], "--init-vecnormalize is for a model of Stable"),
    ],
)
def test_what_is_none_is_refused_in_a_line(tmp_path: Path, flags: list[object], said: str) -> None:
    done = launch("--run-dir", tmp_path / "run", *PENDULUM, *flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and said in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


# VecNormalize


class RunningMeanStd:
    """With the attributes of that of Stable-Baselines3."""

    def __init__(self, count: Any = 128.0) -> None:
        self.mean, self.var = np.array([1.0, -2.0, 3.0]), np.array([4.0, 0.25, 9.0])
        self.count = count


class VecNormalize:
    """With the attributes of that of Stable-Baselines3."""

    def __init__(self, **settings: Any) -> None:
        self.norm_obs, self.clip_obs, self.epsilon, self.gamma = True, 10.0, 1e-8, 0.99
        self.obs_rms, self.ret_rms = RunningMeanStd(), RunningMeanStd(np.float64(3))
        self.metadata, self._seeds = {"render_modes": []}, [None, 1]
        self.__dict__ |= settings


def saved(path: Path, value: Any, monkeypatch: pytest.MonkeyPatch, protocol: int = 4) -> Path:
    """Pickle with the names that the classes have in Stable-Baselines3."""
    for parent in ("stable_baselines3", "stable_baselines3.common", "stable_baselines3.common.vec_env"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    for kind, name in ((RunningMeanStd, "running_mean_std"), (VecNormalize, "vec_env.vec_normalize")):
        module = types.ModuleType(f"stable_baselines3.common.{name}")
        setattr(module, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(kind, "__module__", module.__name__)
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_statistics_of_vecnormalize_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    found = read_statistics(saved(tmp_path / "file", VecNormalize(), monkeypatch, protocol))
    np.testing.assert_array_equal(found.mean, [1, -2, 3])
    np.testing.assert_allclose(found.variance, [4, 0.25, 9], rtol=1e-6)
    assert found.count == 128


def test_a_count_may_be_a_number_of_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    normalize = VecNormalize(obs_rms=RunningMeanStd(np.float64(7.0001)), epsilon=0.5)
    found = read_statistics(saved(tmp_path / "file", normalize, monkeypatch))
    assert found.count == 7 and found.variance.tolist() == [4.5, 0.75, 9.5]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"norm_obs": False}, "does not normalise observations"),
        ({"clip_obs": 5.0}, "clips observations to 5.0"),
        ({"obs_rms": {"a": RunningMeanStd()}}, "each part of a Dict"),
        ({"obs_rms": RunningMeanStd("many")}, "a number is something else"),
        ({"epsilon": [1]}, "a number is something else"),
    ],
)
def test_other_statistics_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], said: str
) -> None:
    path = saved(tmp_path / "file", VecNormalize(**settings), monkeypatch)
    with pytest.raises(UserError, match=said):
        read_statistics(path)


@pytest.mark.parametrize("value", [1, [], {}, print, object(), RunningMeanStd(), {"a": print}, np.zeros(3)])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    path = saved(tmp_path / "file", value, monkeypatch)
    with pytest.raises(UserError, match="no file that VecNormalize has saved"):
        read_statistics(path)


def test_nothing_in_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    path = saved(tmp_path / "file", VecNormalize(old_obs=Malicious()), monkeypatch)
    assert read_statistics(path).count == 128 and not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())  # Unpickling the file would have run the code.
    assert (tmp_path / "ran").exists()


def test_a_damaged_file_is_refused_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "file", VecNormalize(), monkeypatch)
    data, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    for position in random.integers(len(data), size=400):
        flipped = bytearray(data)
        flipped[position] ^= 1 << random.integers(8)
        path.write_bytes(flipped)
        try:
            read_statistics(path)
        except UserError:
            refused += 1
    assert refused > 100
    for cut in range(0, len(data) - 1, 7):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError):
            read_statistics(path)


@pytest.mark.slow
def test_a_model_with_its_statistics_is_begun_from_and_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_import = pytest.importorskip("test_import", reason="torch is not installed")
    model = test_import.actor_critic(3, [16, 8], 1, gaussian=True)
    settings = {"activation_fn": "<class 'torch.nn.modules.activation.ReLU'>"}
    zipped = test_import.write_model(tmp_path / "m.zip", test_import.saved(model.state_dict()), policy_kwargs=settings)
    statistics = saved(tmp_path / "vecnormalize.pkl", VecNormalize(), monkeypatch)
    initial = read_initial(zipped, statistics)
    flags = [*PENDULUM, "--activation", "relu", "--init-from", zipped, "--init-vecnormalize", statistics]
    train(tmp_path / "run", *flags, "--total-steps", 512, "--learning-rate", 0)
    begun = first_arrays(tmp_path / "run")
    assert set(initial.weights) == {name.removeprefix("model.") for name in begun if name.startswith("model.")}
    for ours, theirs in {"value_encoder.layers.1.bias": "mlp_extractor.value_net.2.bias", "log_std": "log_std"}.items():
        np.testing.assert_array_equal(begun[f"model.{ours}"], model.state_dict()[theirs].numpy())
    np.testing.assert_array_equal(begun["statistics.mean"], [1, -2, 3])
    assert begun["statistics.count"] == 128

    out = tmp_path / "policy"
    done = launch("import-sb3", zipped, out, "--env", "Pendulum-v1", "--vecnormalize", statistics)
    assert done.returncode == 0, done.stderr
    policy, observation = load_policy(out), np.array([0.5, 0.5, 3], np.float32)
    normalised = (observation - [1, -2, 3]) / np.sqrt([4, 0.25, 9])
    (expected,) = test_import.act(model, normalised.astype(np.float32), test_import.torch.nn.functional.relu)
    np.testing.assert_allclose(policy(observation), np.clip(expected, -2, 2), rtol=1e-5)


def test_what_stable_baselines3_saves_today_is_read(tmp_path: Path) -> None:
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env", reason="stable-baselines3 is not installed")
    import gymnasium

    envs = vec_env.VecNormalize(vec_env.DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]))
    envs.reset()
    for _ in range(50):
        envs.step(np.zeros((1, 1), np.float32))
    envs.save(tmp_path / "file")
    found = read_statistics(tmp_path / "file")
    np.testing.assert_array_equal(found.mean, envs.obs_rms.mean)
    np.testing.assert_allclose(found.variance, envs.obs_rms.var + envs.epsilon)
    assert found.count == round(envs.obs_rms.count)
