"""Configuration files: they load as they were saved, and a mistake gives one line that names file and setting."""

import dataclasses
import math
import subprocess
import tomllib
from pathlib import Path

import pytest
from launching import ROOT, SMALL, launch, summary_of, train

from commands.helpers.versions import installed_versions
from protocol.errors import UserError
from protocol.experiment import Experiment
from rundir.config import PPOConfig, RunConfig, TrainingConfig, load_settings

PLAIN = RunConfig(Experiment(), PPOConfig(), TrainingConfig())
UNUSUAL = RunConfig(
    Experiment(env='a"b\\ß', env_kwargs=("x=1", "y='z'"), hidden_sizes=(32, 16), recurrent_size=8, rebuild_env=True),
    PPOConfig(learning_rate=1e-5, max_grad_norm=math.inf, target_kl=0.01),
    TrainingConfig(stop_return=-0.0, total_steps=10**12),
)


@pytest.mark.parametrize("config", [PLAIN, UNUSUAL], ids=["plain", "unusual"])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, config: RunConfig) -> None:
    config.save(tmp_path / "config.toml", {"python": "3"})
    assert RunConfig.load(tmp_path / "config.toml") == config
    assert tomllib.loads((tmp_path / "config.toml").read_text())["versions"] == {"python": "3"}


def test_none_beats_what_a_preset_sets(tmp_path: Path) -> None:
    PLAIN.save(tmp_path / "config.toml", {})
    preset = PLAIN.with_settings({"target_kl": 0.5, "hidden_sizes": [8]}, "preset")
    assert preset.with_settings(load_settings(tmp_path / "config.toml"), "file") == PLAIN


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_env = 8", "unknown settings num_env; did you mean num_envs\\?$"),
        ("num_envs = 8.0", "num_envs is 8.0, and must be a whole number"),
        ("num_envs = true", "num_envs is True, and must be a whole number"),
        ('learning_rate = "fast"', "learning_rate is 'fast', and must be a number"),
        ("hidden_sizes = 64", "hidden_sizes is 64, and must be a list"),
        ('hidden_sizes = ["64"]', "hidden_sizes is '64', and must be a whole number"),
        ('schedule = "now"', "schedule is 'now', and must be one of sync, pipelined, async"),
        ("seed = ", "cannot be read as a file of settings"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_setting(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    done = launch("--config", tmp_path / "mine.toml", "--run-dir", tmp_path / "run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert str(tmp_path / "mine.toml") in done.stderr
    with pytest.raises(UserError, match=said):
        PLAIN.with_settings(load_settings(tmp_path / "mine.toml"), "mine.toml")
    assert not (tmp_path / "run").exists()


def test_a_runs_own_file_must_be_whole(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('env = "CartPole-v1"\n')
    with pytest.raises(UserError, match="lacks activation, checkpoint_every"):
        RunConfig.load(tmp_path / "config.toml")


def test_flags_beat_the_file_and_the_file_beats_the_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("env = 'CartPole-v1'\nseed = 7\nepochs = 3\n")
    train(tmp_path / "run", "--in-process", "--config", tmp_path / "mine.toml", *SMALL, "--seed", 8)
    config = RunConfig.load(tmp_path / "run/config.toml")
    assert (config.experiment.seed, config.ppo.epochs, config.ppo.discount) == (8, 2, 0.98)


@pytest.mark.slow
def test_a_runs_file_runs_it_again_and_names_what_computed_it(tmp_path: Path) -> None:
    train(tmp_path / "one", "--in-process", *SMALL)
    train(tmp_path / "two", "--in-process", "--config", tmp_path / "one/config.toml")
    assert summary_of(tmp_path / "one")["weights_digest"] == summary_of(tmp_path / "two")["weights_digest"]
    versions = tomllib.loads((tmp_path / "one/config.toml").read_text())["versions"]
    assert {"python", "numpy", "mlx", "gymnasium", "pyzmq"} <= versions.keys()


def test_every_setting_has_a_name_of_its_own() -> None:
    names = [field.name for part in vars(PLAIN).values() for field in dataclasses.fields(part)]
    assert len(names) == len(set(names))


def test_a_clone_names_its_revision() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    revision = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    assert installed_versions()["revision"].startswith(revision.strip())
