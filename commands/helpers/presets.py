"""The settings where a command line says nothing: those of a resumed run, of a file, or of `presets/`."""

import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from commands.helpers.command_line import value_of
from protocol.experiment import Experiment
from rundir.config import PPOConfig, RunConfig, TrainingConfig, load_settings
from rundir.run import Run

PRESETS = Path(__file__).parent.parent.parent / "presets"


def defaults_for(arguments: list[str], env: str | None = None) -> RunConfig:
    """What holds where `arguments` say nothing else: the settings of the run that they resume, or of their file before
    those of the preset for their environment, or for `env`. Raises `UserError`."""
    resumed, file = value_of("--resume", arguments), value_of("--config", arguments)
    if resumed is not None:
        return Run.open(Path(resumed)).config
    settings = load_settings(Path(file)) if file is not None else {}
    env = env or value_of("--env", arguments) or str(settings.get("env", Experiment.env))
    return preset_for(env).with_settings(settings, str(file))


def preset_for(env: str) -> RunConfig:
    """The defaults, with what `presets/` holds for an environment: its family's settings (`ALE/*`), then its own.

    `module:EnvId` has those of `EnvId`.
    """
    env_id = env.rpartition(":")[2]
    config = RunConfig(Experiment(env=env), PPOConfig(), TrainingConfig())
    found = [(pattern, *preset) for pattern, preset in _presets().items() if fnmatchcase(env_id, pattern)]
    for pattern, path, settings in sorted(found, key=lambda item: len(item[0])):
        config = config.with_settings(settings, f"{path}: {pattern}")
    return config


def preset_names() -> list[str]:
    """The environments and the patterns of environments that have settings in `presets/`."""
    return list(_presets())


def _presets() -> dict[str, tuple[Path, dict[str, Any]]]:
    """{environment or pattern: (file, settings)}"""
    return {
        pattern: (path, settings)
        for path in PRESETS.glob("*.toml")
        for pattern, settings in tomllib.loads(path.read_text()).items()
    }
