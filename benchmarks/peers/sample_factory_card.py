"""Sample Factory's APPO: asynchronous, with as many processes as there are cores."""

import os
import sys
import tempfile
import time
from typing import Any

import gymnasium
from sample_factory.algo.runners.runner import AlgoObserver  # pyright: ignore[reportMissingImports]
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args  # pyright: ignore[reportMissingImports]
from sample_factory.envs.env_utils import register_env  # pyright: ignore[reportMissingImports]
from sample_factory.train import make_runner  # pyright: ignore[reportMissingImports]

from benchmarks.peers.card import ADAM_EPSILON, MAX_GRAD_NORM, VALUE_COEF, Answer, Card, answer, mean


class Clock(AlgoObserver):
    """Records when each training iteration ended; after the first, all processes are running."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_training_step(self, runner: Any, training_iteration_since_resume: int) -> None:
        self.times.append(time.perf_counter())


def make_environment(name: str, cfg: Any, env_config: Any, render_mode: str | None = None) -> gymnasium.Env:
    return gymnasium.make(name, render_mode=render_mode)


def settings(card: Card, folder: str) -> list[str]:
    """The card as Sample Factory's flags. Two groups of environments per process let stepping and inference overlap."""
    workers = max(1, min(os.cpu_count() or 1, card.num_envs // 2))
    values = {
        "algo": "APPO",
        "env": card.env,
        "train_dir": folder,
        "device": "cpu",
        "seed": card.seed,
        "num_workers": workers,
        "num_envs_per_worker": card.num_envs // workers,
        "worker_num_splits": 2,
        "rollout": card.rollout_length,
        "batch_size": card.minibatch,
        "num_batches_per_epoch": card.minibatches,
        "num_epochs": card.epochs,
        "learning_rate": card.learning_rate,
        "lr_schedule": "constant",  # Sample Factory has no linear schedule; one would take no longer.
        "ppo_clip_ratio": card.clip_range,
        "gamma": card.discount,
        "gae_lambda": card.gae_lambda,
        "exploration_loss_coeff": card.entropy_coef,
        "value_loss_coeff": VALUE_COEF,
        "max_grad_norm": MAX_GRAD_NORM,
        "adam_eps": ADAM_EPSILON,
        "nonlinearity": "tanh",
        "use_rnn": False,
        "actor_critic_share_weights": False,
        "normalize_input": False,
        "normalize_returns": False,
        "train_for_env_steps": card.total_steps,
        "save_every_sec": 10_000,
        "with_wandb": False,
    }
    layers = map(str, card.hidden_sizes)
    return [*(f"--{name}={value}" for name, value in values.items()), "--encoder_mlp_layers", *layers]


def train(card: Card) -> Answer:
    """Do one run as the card says; the measurement begins with the second iteration, when all processes run."""
    if card.stop_return is not None or card.clip_range_schedule != "constant":
        sys.exit("neither a return to stop at nor a schedule for the clip range is known here")
    register_env(card.env, make_environment)
    with tempfile.TemporaryDirectory() as folder:
        flags = settings(card, folder)
        parser, _ = parse_sf_args(argv=flags)
        _, runner = make_runner(parse_full_cfg(parser, flags))
        clock = Clock()
        runner.register_observer(clock)
        runner.init()
        runner.run()
    returns = runner.policy_avg_stats.get("reward", [[]])[0]
    iterations = len(clock.times) - 1
    if iterations < 1:
        sys.exit("it took too few iterations to be measured")
    return Answer(iterations * card.batch, clock.times[-1] - clock.times[0], mean([float(r) for r in returns]))


if __name__ == "__main__":
    answer(train(Card.parse(sys.argv[1])))
