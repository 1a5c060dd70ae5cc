"""What people call the metrics in metrics.jsonl, and which number of an evaluation belongs to one."""

from collections.abc import Iterable

from protocol.trajectory import EPISODE
from rundir.episode_metrics import name_of

RETURN = "rollout/episode_return_mean"
STEPS, SECONDS, VERSION = "env_steps", "time/seconds", "policy_version"
GPU_PEAK, GPU_SIZE = "memory/gpu_peak", "memory/gpu_size"  # Bytes. In the rows of a learner that computes on a GPU.
WORDS = {  # The dashboard offers these, in this order.
    RETURN: "episode return",
    "rollout/episode_length_mean": "episode length",
    "train/policy_loss": "policy loss",
    "train/value_loss": "value loss",
    "train/entropy": "entropy",
    "train/approx_kl": "approximate KL divergence",
    "train/clip_fraction": "clip fraction",
    "train/explained_variance": "explained variance",
    "train/learning_rate": "learning rate",
    "time/env_steps_per_second": "env-steps per second",
    "time/learner_wait_share": "share of time the learner waits",
}


def words_of(metric: str) -> str:
    """What people call a metric: `episode return`, `success rate`, `grad norm`."""
    if metric.startswith(EPISODE):
        return name_of(metric)
    return WORDS.get(metric) or metric.rpartition("/")[2].replace("_", " ")


def metric_named(text: str, metrics: Iterable[str]) -> str | None:
    """The one of `metrics` that `text` names, by its full name or a person's word; None if there is none."""
    return next((metric for metric in metrics if text in (metric, words_of(metric))), None)


def evaluated_as(metric: str) -> str:
    """The field of an evaluation that tells the same as a metric; one of that name is not in every evaluation."""
    return "return_mean" if metric == RETURN else metric
