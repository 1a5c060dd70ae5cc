"""Beginning from another policy: what of it fits is taken, and what does not is told."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

from learner.model import CRITIC, ActorCritic
from learner.normalization import RunningStatistics
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.networks import network_name
from protocol.observations import InputShapes
from protocol.text import one_line
from rundir.config import RunConfig
from rundir.initial import Initial

LONGEST = 400  # Characters that tell what does not fit.


def begin_from(
    run_dir: Path,
    config: RunConfig,
    model: ActorCritic,
    statistics: RunningStatistics,
    critic_statistics: RunningStatistics,
    tell: Callable[[str], None],
) -> None:
    """Give the model and the statistics what the run directory keeps to begin from. Raises `UserError` where something
    does not fit, unless the run is to leave that as it was initialised."""
    initial, experiment = Initial.load(run_dir), config.experiment
    own = {name: np.array(array) for name, array in model.named_parameters()}
    fitting = {name: a for name, a in initial.weights.items() if name in own and a.shape == own[name].shape}
    misfits = _misfits_of_networks(initial, model, experiment)
    for name, array in initial.weights.items():
        if name not in fitting:
            misfits.append(f"{name} is {_shape(array)} there and {_shape(own.get(name))} here")
    has_critic = any(name.startswith(CRITIC) for name in initial.weights)
    missing = [name for name in own if name not in initial.weights]
    misfits += [f"{name} is missing there" for name in missing if has_critic or not name.startswith(CRITIC)]
    taken = []  # The statistics that fit, and what is kept of them.
    if experiment.normalize_observations and not initial.statistics:
        misfits.append("observations were not normalised there, and are here (--no-normalize-observations)")
    elif initial.statistics and not experiment.normalize_observations:
        misfits.append("observations were normalised there, and are not here (--normalize-observations)")
    else:
        for found, ours, whose in (
            (initial.statistics, statistics, "an observation has"),
            (initial.critic_statistics, critic_statistics, "the critic alone sees"),
        ):
            if found and found["mean"].shape == ours.mean.shape:
                taken.append((ours, found))
            elif found:
                misfits.append(f"{whose} {found['mean'].size} numbers there and {ours.mean.size} here")
    text = one_line("; ".join(misfits), LONGEST)
    if misfits and not config.training.init_partial:
        raise UserError(f"--init-from {initial.about.source}: {text}. --init-partial leaves that as initialised")
    if not fitting:
        raise UserError(f"--init-from {initial.about.source}: nothing of it fits: {text}")
    model.load_state_dict(own | fitting)
    mx.eval(model.parameters())
    for ours, found in taken:
        ours.load_state_dict(found)
    left = "" if has_critic else "; it has no critic, which begins anew"
    tell(f"begun from {initial.about.source}" + (f"; left as initialised: {text}" if misfits else left))


def _misfits_of_networks(initial: Initial, model: ActorCritic, experiment: Experiment) -> list[str]:
    """How the two networks differ, though their weights may be of the same shapes."""
    network = network_name(experiment, InputShapes.of(model.spaces.parts))
    pairs = {"network": (initial.about.network, network)}
    if initial.about.network == network == "mlp":
        pairs["activation"] = (initial.about.activation, experiment.activation)
    return [f"its {name} is {theirs}, and here {ours}" for name, (theirs, ours) in pairs.items() if theirs != ours]


def _shape(array: np.ndarray | None) -> str:
    return "nothing" if array is None else str(list(array.shape))
