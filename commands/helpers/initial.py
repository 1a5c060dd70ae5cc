"""The policy that `--init-from` names: a run directory, an exported policy, or a model of Stable-Baselines3."""

import zipfile
from pathlib import Path

import numpy as np

from actors.exported import MEAN, SCALE, WEIGHTS, read_policy
from commands.helpers.sb3_models import activation, critic_weights, policy_weights, read_model
from commands.helpers.vecnormalize import Statistics, read_statistics
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.networks import network_name
from protocol.observations import InputShapes
from protocol.process import as_typed
from protocol.snapshot import part_of
from protocol.spaces import Spaces
from protocol.text import one_line
from rundir.checkpoint import spaces_of, understood
from rundir.initial import About, Initial
from rundir.run import Run


def read_initial(path: Path, vecnormalize: Path | None) -> Initial:
    """What is to be begun from; raises `UserError` where it cannot be read. Imports nothing that it names."""
    is_model = path.is_file() and zipfile.is_zipfile(path)
    if vecnormalize is not None and not is_model:
        raise UserError(f"--init-vecnormalize is for a model of Stable-Baselines3, and {as_typed(path)} is none")
    if is_model:
        return _of_model(path, vecnormalize)
    return _of_file(path) if path.is_file() else _of_run(path)


def _of_run(path: Path) -> Initial:
    run = Run.open(path)
    checkpoint = run.checkpoint()
    with understood(checkpoint):
        spaces = spaces_of(checkpoint)
        statistics, of_critic = (
            part_of(checkpoint.arrays, name) if run.config.experiment.normalize_observations else {}
            for name in ("statistics.", "critic_statistics.")
        )
        about = _about(f"{as_typed(path)}, version {checkpoint.policy_version}", run.config.experiment, spaces)
        return Initial(about, part_of(checkpoint.arrays, "model."), statistics, of_critic)


def _of_file(path: Path) -> Initial:
    description, arrays = read_policy(path)
    experiment, statistics = description.experiment, {}
    if experiment.normalize_observations:
        # The learner has seen every observation of every version once.
        count = description.policy_version * experiment.env_steps_per_iteration
        variance = np.maximum(1 / np.square(arrays[SCALE].astype(np.float64)) - 1e-8, 0)
        statistics = _running(Statistics(arrays[MEAN].astype(np.float64), variance, count))
    about = _about(f"{as_typed(path)}, version {description.policy_version}", experiment, description.spaces)
    return Initial(about, part_of(arrays, WEIGHTS), statistics, {})


def _of_model(path: Path, vecnormalize: Path | None) -> Initial:
    try:
        tensors, settings = read_model(path)
        weights, sizes = policy_weights(tensors)
        about = About(as_typed(path), activation(settings), "mlp")
        weights |= critic_weights(tensors, len(sizes))
    except ValueError as error:
        raise UserError(f"{path} cannot be read as a model of Stable-Baselines3: {one_line(error)}") from None
    statistics = {} if vecnormalize is None else _running(read_statistics(vecnormalize))
    return Initial(about, weights, statistics, {})


def _running(found: Statistics) -> dict[str, np.ndarray]:
    """As `RunningStatistics` has them."""
    return {"count": np.array(found.count), "mean": found.mean, "squares": found.variance * found.count}


def _about(source: str, experiment: Experiment, spaces: Spaces) -> About:
    return About(source, experiment.activation, network_name(experiment, InputShapes.of(spaces.parts)))
