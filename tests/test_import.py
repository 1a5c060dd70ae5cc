"""Policies of Stable-Baselines3: its zip files are read, and nothing in them is unpickled."""

import io
import itertools
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import launch

from actors.exported import load_policy
from commands.helpers.torch_files import MAX_NUMBERS, MAX_TEXT_FILE, read_member, read_pickle, read_tensors

torch = pytest.importorskip("torch")

RELU = {
    ":type:": "<class 'dict'>",
    ":serialized:": "gAWV",
    "activation_fn": "<class 'torch.nn.modules.activation.ReLU'>",
}


def actor_critic(inputs: int, hidden: list[int], outputs: int, gaussian: bool = False) -> Any:
    """The modules of an ActorCriticPolicy, with its names, and activations between the layers."""
    torch.manual_seed(0)

    def tower() -> Any:
        sizes = [inputs, *hidden]
        pairs = itertools.pairwise(sizes)
        return torch.nn.Sequential(*(layer for a, b in pairs for layer in (torch.nn.Linear(a, b), torch.nn.ReLU())))

    model = torch.nn.Module()
    if gaussian:
        model.log_std = torch.nn.Parameter(torch.full((outputs,), -0.5))
    model.mlp_extractor = torch.nn.Module()
    model.mlp_extractor.policy_net, model.mlp_extractor.value_net = tower(), tower()
    model.action_net = torch.nn.Linear([inputs, *hidden][-1], outputs)
    model.value_net = torch.nn.Linear([inputs, *hidden][-1], 1)
    return model


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def write_model(path: Path, policy: bytes, **settings: Any) -> Path:
    """Write a zip with those files of `model.save` that the import reads."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"policy_kwargs": {}, "use_sde": False} | settings))
        archive.writestr("pytorch_variables.pth", saved({}))
        archive.writestr("policy.pth", policy)
        archive.writestr("_stable_baselines3_version", "2.9.2")
    return path


def act(model: Any, observation: np.ndarray, activation: Any) -> np.ndarray:
    """The logits or means computed by PyTorch."""
    x = torch.as_tensor(observation, dtype=torch.float32).flatten()[None]
    for layer in model.mlp_extractor.policy_net:
        x = layer(x) if isinstance(layer, torch.nn.Linear) else activation(x)
    return model.action_net(x).detach().numpy()


@pytest.mark.parametrize(
    ("env", "sizes", "kwargs"),
    [
        ("CartPole-v1", (4, [64, 64], 2), {}),
        ("Pendulum-v1", (3, [32, 16], 1), RELU),
        ("FrozenLake-v1", (16, [], 4), {}),
    ],
)
def test_an_imported_policy_computes_what_pytorch_does(
    env: str, sizes: tuple[int, list[int], int], kwargs: dict[str, Any], tmp_path: Path
) -> None:
    model = actor_critic(*sizes, gaussian=env == "Pendulum-v1")
    path = write_model(tmp_path / "model.zip", saved(model.state_dict()), policy_kwargs=kwargs)
    done = launch("import-sb3", path, tmp_path / "policy", "--env", env)
    assert (done.returncode, done.stderr) == (0, "")
    policy = load_policy(tmp_path / "policy")
    random = np.random.default_rng(0)
    for i in range(20):
        shown: Any = i % 16 if env == "FrozenLake-v1" else random.standard_normal(sizes[0]).astype(np.float32)
        seen = np.eye(16)[shown] if env == "FrozenLake-v1" else shown
        wanted = act(model, seen, torch.relu if kwargs else torch.tanh)
        np.testing.assert_allclose(policy.forward(shown)[0], wanted, rtol=1e-5, atol=1e-6)
    assert "over 2 episodes" in launch("eval", tmp_path / "policy", "--episodes", 2).stdout


def refusal(tmp_path: Path, path: Path, env: str = "CartPole-v1") -> str:
    done = launch("import-sb3", path, tmp_path / "policy", "--env", env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert not (tmp_path / "policy").exists()
    return done.stderr


def test_a_pickle_that_would_run_something_runs_nothing(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    policy = saved({"action_net.weight": Malicious()})
    line = refusal(tmp_path, write_model(tmp_path / "model.zip", policy))
    assert "its pickle would call" in line
    assert "which is not allowed" in line
    assert not (tmp_path / "ran").exists()
    torch.load(io.BytesIO(policy), weights_only=False)  # Unpickling the file would have run the code.
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [print, {"a": print}, [1], {1, 2}, object(), Path("x"), {"a": 1.5}, {"a": np.zeros(3)}, b"bytes"],
    ids=lambda value: str(value)[:20],
)
def test_nothing_else_than_tensors_is_read_from_a_pickle(value: Any, protocol: int) -> None:
    with pytest.raises(ValueError, match="its pickle"):
        read_pickle(pickle.dumps(value, protocol))


def test_a_damaged_file_of_tensors_is_refused_or_read(tmp_path: Path) -> None:
    data = saved(actor_critic(4, [8], 2).state_dict())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        listing = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    random = np.random.default_rng(0)
    refused = 0
    for position in random.integers(len(listing), size=400):
        flipped = bytearray(listing)
        flipped[position] ^= 1 << random.integers(8)
        try:
            read_pickle(bytes(flipped))
        except ValueError:
            refused += 1
    assert refused > 100
    for cut in range(0, len(data), 97):
        with pytest.raises(ValueError):
            read_tensors(data[:cut])


def test_tensors_that_are_not_float32_or_lie_elsewhere_are_refused() -> None:
    assert read_tensors(saved({"a": torch.arange(6.0)[2:].reshape(2, 2)}))["a"].tolist() == [[2, 3], [4, 5]]
    with pytest.raises(ValueError, match=r"would call torch\.LongStorage"):
        read_tensors(saved({"a": torch.arange(3)}))
    with pytest.raises(ValueError, match="not contiguous"):
        read_tensors(saved({"a": torch.zeros(3, 2).T}))
    with pytest.raises(ValueError, match="something else than tensors"):
        read_tensors(saved({"a": 1}))


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\xff" + value.to_bytes(255, "little")


def listing(key: bytes, shape: bytes, strides: bytes = b")", size: int = 1, count: int = 1) -> bytes:
    """A pickle of tensors with one storage, written opcode by opcode."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(size) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + shape + strides + b"tR"
    others = b"".join(text(f"{i}") + tensor + b"s" for i in range(count - 1))
    return b"\x80\x02}" + others + key + tensor + b"s."


def archived(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(f"x/{name.replace('__', '.').replace('_', '/')}", data)
    return buffer.getvalue()


LARGE, ONE = number(MAX_NUMBERS), number(1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        # Hashing this key would take 2**100 hashes.
        (listing(b")" + b"q\x00h\x00\x86" * 100, b")"), "a tuple in the place of a str"),
        (listing(text("a"), b"(" + number(2**2000) * 4 + b"t"), "impossible shape"),
        (listing(text("a"), b"(" + ONE + b"q\x00" + b"h\x00" * 100_000 + b"t"), "impossible shape"),
        (listing(text("a"), LARGE + LARGE + b"\x86", LARGE + ONE + b"\x86"), "more than"),
        (listing(text("a"), LARGE + b"\x85", ONE + b"\x85", size=MAX_NUMBERS + 1), "more than"),
        (listing(text("a"), LARGE + b"\x85", ONE + b"\x85", size=MAX_NUMBERS, count=2), "more than"),
        (bytes(MAX_TEXT_FILE + 1), "larger than"),
        (listing(text("a"), b")", size=2), "shorter than its pickle says"),
    ],
)
def test_a_small_file_of_tensors_that_would_take_much_is_refused_at_once(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_tensors(archived(data__pkl=data, data_0=bytes(4)))


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_no_more_is_unpacked_than_was_announced(tmp_path: Path, kind: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", kind) as archive:
        archive.writestr("data", bytes(100_000))
    honest = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(honest.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with zipfile.ZipFile(tmp_path / "x.zip") as archive, pytest.raises(ValueError):
        read_member(archive, "data", 100)
    (tmp_path / "x.zip").write_bytes(honest)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive, pytest.raises(ValueError, match="larger than"):
        read_member(archive, "data", 100)


def test_what_cannot_be_imported_is_said_in_one_line(tmp_path: Path) -> None:
    cartpole = saved(actor_critic(4, [8], 2).state_dict())
    model = tmp_path / "model.zip"
    assert "cannot be read: No such file" in refusal(tmp_path, model)
    model.write_bytes(b"not a zip")
    assert "it is no zip file" in refusal(tmp_path, model)
    with zipfile.ZipFile(model, "w") as archive:
        archive.writestr("data", "{}")
    assert "it has no policy.pth" in refusal(tmp_path, model)
    for policy, settings, env, reason in (
        (cartpole, {}, "Acrobot-v1", "it was made for other spaces than Acrobot-v1 has"),
        (cartpole, {}, "Pendulum-v1", "log_std nothing instead of [1]"),
        (cartpole, {"use_sde": True}, "CartPole-v1", "gSDE"),
        (cartpole, {"policy_kwargs": {"activation_fn": "<class 'x.GELU'>"}}, "CartPole-v1", "its activation is GELU"),
        (saved({"q_net.0.weight": torch.zeros(2, 2)}), {}, "CartPole-v1", "it is no MlpPolicy of PPO or A2C"),
        (b"PK", {}, "CartPole-v1", "it is no zip archive"),
    ):
        assert reason in refusal(tmp_path, write_model(model, policy, **settings), env)
