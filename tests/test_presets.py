"""The settings in `presets/`, by environment."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from commands.helpers.command_line import parse
from commands.helpers.presets import PRESETS, defaults_for, preset_for
from commands.train import ExecutionConfig, SeveralConfig, TrainCommand
from protocol.errors import UserError
from protocol.experiment import Experiment
from rundir.config import PPOConfig, RunConfig, TrainingConfig

PATTERNS = [pattern for path in sorted(PRESETS.glob("*.toml")) for pattern in tomllib.loads(path.read_text())]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_preset_is_a_configuration_that_works(pattern: str) -> None:
    preset_for(pattern.replace("*", "Some-v0")).check()


def test_an_environment_has_its_familys_settings_and_its_own_before_them() -> None:
    family, own = preset_for("MiniGrid-Some-v0"), preset_for("MiniGrid-DoorKey-5x5-v0")
    assert own.experiment.wrapper == family.experiment.wrapper != ()
    assert own.training.total_steps != family.training.total_steps
    assert preset_for("Unknown-v0") == RunConfig(Experiment(env="Unknown-v0"), PPOConfig(), TrainingConfig())


def test_a_setting_that_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text('["Some-v0"]\nnum_envs = 8\nlearning_rat = 1.0\n')
    monkeypatch.setattr("commands.helpers.presets.PRESETS", tmp_path)
    with pytest.raises(
        UserError, match=r"mine\.toml: Some-v0 has unknown settings learning_rat; did you mean learning_rate\?$"
    ):
        preset_for("Some-v0")


@pytest.mark.parametrize(
    ("env", "like"),
    [
        ("ale_py:ALE/Pong-v5", "ALE/Pong-v5"),
        ("a.module:CartPole-v1", "CartPole-v1"),
        ("BabyAI-GoToRedBall-v0", "MiniGrid-Some-v0"),
    ],
)
def test_a_preset_goes_by_the_id_alone(env: str, like: str) -> None:
    mine, theirs = preset_for(env), preset_for(like)
    assert replace(mine, experiment=replace(mine.experiment, env=like)) == theirs


def test_the_last_env_decides_the_preset() -> None:
    assert defaults_for(["--env", "CartPole-v1", "--env=Acrobot-v1"]) == preset_for("Acrobot-v1")


def test_texts_given_to_one_flag_at_several_places_add_up() -> None:
    words = [
        "--env-kwargs",
        "a=1",
        "--seed",
        "3",
        "--env_kwargs=b=2",
        "c=3",
        "--wrapper",
        "x:Y",
        "--wrapper",
        "--seed",
        "4",
    ]
    default = TrainCommand(Experiment(), PPOConfig(), TrainingConfig(), ExecutionConfig(), SeveralConfig())
    experiment = parse(TrainCommand, "train", words, default=default).experiment
    assert experiment.env_kwargs == ("a=1", "b=2", "c=3")
    assert (experiment.wrapper, experiment.seed) == (("x:Y",), 4)
