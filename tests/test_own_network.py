"""The example of a user's network in docs/your-network.md."""

import re
from pathlib import Path

import pytest
from launching import ROOT, SMALL, launch, train

NETWORK = ["--network", "my_network:Residual"]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's package, in the working directory."""
    blocks = re.findall(
        r"```python\n# (my_network/\w+\.py)\n(.*?)```", (ROOT / "docs/your-network.md").read_text(), re.DOTALL
    )
    assert [name for name, _ in blocks] == ["my_network/learner.py", "my_network/actor.py"]
    (tmp_path / "my_network").mkdir()
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my_network"


def test_a_network_of_the_users_own_trains_and_gives_the_same_weights_in_any_execution(example: Path) -> None:
    digests = {
        train(example.parent / name, *SMALL, *NETWORK, *flags)["weights_digest"]
        for name, flags in {"processes": ["--actors", 2], "threads": ["--actors", 1, "--in-process"]}.items()
    }
    assert len(digests) == 1


def test_a_network_whose_two_sides_differ_is_refused_by_how_much(example: Path) -> None:
    path = example / "actor.py"
    path.write_text(path.read_text().replace("x + np.tanh", "x - np.tanh"))
    done = launch(*SMALL, *NETWORK, "--run-dir", "run", "--in-process")
    assert done.returncode == 2
    assert "the network's two classes do not compute the same" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_network_that_is_not_there_is_named_before_anything_starts(example: Path) -> None:
    done = launch("--network", "no_network:Residual", "--run-dir", "run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "launch.py: --network no_network:Residual: there is no module no_network.actor\n"
