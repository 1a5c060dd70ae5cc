"""Ray RLlib's PPO, used as intended: with an environment runner for each core except one."""

import os
import sys
import time

import ray  # pyright: ignore[reportMissingImports]
from ray.rllib.algorithms.ppo import PPOConfig  # pyright: ignore[reportMissingImports]
from ray.rllib.core.rl_module.default_model_config import (  # pyright: ignore[reportMissingImports]
    DefaultModelConfig,
)

from benchmarks.peers.card import MAX_GRAD_NORM, VALUE_COEF, Answer, Card, answer


def configuration(card: Card) -> PPOConfig:
    """The card as RLlib's configuration; RLlib's extras, a KL penalty and clipped values, are off."""
    runners = max(1, min((os.cpu_count() or 2) - 1, card.num_envs))
    linear = card.learning_rate_schedule == "linear"
    rate = [[0, card.learning_rate], [card.total_steps, 0.0]] if linear else card.learning_rate
    return (
        PPOConfig()
        .environment(card.env)
        .env_runners(
            num_env_runners=runners,
            num_envs_per_env_runner=card.num_envs // runners,
            rollout_fragment_length=card.rollout_length,
        )
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=card.batch,
            minibatch_size=card.minibatch,
            num_epochs=card.epochs,
            lr=rate,
            gamma=card.discount,
            lambda_=card.gae_lambda,
            clip_param=card.clip_range,
            vf_clip_param=float("inf"),
            vf_loss_coeff=VALUE_COEF,
            entropy_coeff=card.entropy_coef,
            use_kl_loss=False,
            grad_clip=MAX_GRAD_NORM,
            grad_clip_by="global_norm",
        )
        .rl_module(
            model_config=DefaultModelConfig(
                fcnet_hiddens=list(card.hidden_sizes),
                fcnet_activation="tanh",
                head_fcnet_hiddens=[],
                vf_share_layers=False,
            )
        )
        .debugging(seed=card.seed)
    )


def train(card: Card) -> Answer:
    """Do one run as the card says."""
    ray.init(include_dashboard=False, log_to_driver=False)
    algorithm = configuration(card).build_algo()
    env_steps, episode_return = 0, None
    started = time.perf_counter()
    while env_steps < card.total_steps:
        result = algorithm.train()["env_runners"]
        env_steps = int(result["num_env_steps_sampled_lifetime"])
        episode_return = result.get("episode_return_mean")
        if card.stop_return is not None and (episode_return or 0.0) >= card.stop_return:
            break
    seconds = time.perf_counter() - started
    algorithm.stop()
    ray.shutdown()
    return Answer(env_steps, seconds, episode_return)


if __name__ == "__main__":
    answer(train(Card.parse(sys.argv[1])))
