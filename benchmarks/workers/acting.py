"""One actor's rollouts, and gymnasium's vector environment with random actions."""

import os

from protocol.process import ONE_THREAD

os.environ.update(ONE_THREAD)  # An actor has the same settings.

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from actors.environment import make_environment
from actors.lane import Lane
from actors.policy import Policy
from actors.rollout import collect_rollout
from actors.spaces import describe_spaces
from benchmarks.workers.serving import serve
from commands.helpers.presets import preset_for
from protocol.experiment import Experiment
from protocol.messages import Grant
from protocol.observations import normalized_size
from protocol.snapshot import PolicySnapshot


def lane_rollouts(experiment: Experiment) -> Callable[[], int]:
    """A function that collects a rollout of the first lane and returns its env-steps."""
    from learner.model import ActorCritic  # Only to make weights; this process does not train.

    env = make_environment(experiment)
    spaces = describe_spaces(env, experiment)
    env.close()
    model = ActorCritic(spaces, experiment)
    weights = {name: np.array(dict(model.named_parameters())[name]) for name in model.policy_names}
    size = normalized_size(spaces.parts)
    statistics = np.zeros(size, np.float32), np.ones(size, np.float32)
    policy = Policy(PolicySnapshot(0, weights, *statistics), spaces, experiment)
    lane = Lane(0, experiment, spaces, progress=lambda: None)
    lane.begin()
    rollout_index = 0

    def collect() -> int:
        nonlocal rollout_index
        collect_rollout(lane, policy, Grant("benchmark", 0, rollout_index, 0, 0, None), experiment, spaces)
        rollout_index += 1
        return experiment.env_steps_per_iteration

    return collect


def vector_environment(experiment: Experiment) -> Callable[[], int]:
    """A function that steps as many environments equally often, with actions drawn before; returns the env-steps."""
    env = gymnasium.vector.SyncVectorEnv([lambda: make_environment(experiment)] * experiment.num_envs)
    env.reset(seed=experiment.seed)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(experiment.rollout_length)]

    def step() -> int:
        for row in actions:
            env.step(row)
        return len(actions) * experiment.num_envs

    return step


def prepare() -> Callable[..., dict[str, Any]]:
    """Prepare both contenders; returns the function that answers requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", required=True)
    parser.add_argument("--env-kwargs", nargs="+", default=[])
    parser.add_argument("--lane-size", type=int, default=8)
    arguments = parser.parse_args()
    preset = preset_for(arguments.env).experiment
    experiment = dataclasses.replace(
        preset,
        env_kwargs=tuple(arguments.env_kwargs) or preset.env_kwargs,
        num_envs=arguments.lane_size,
        lane_size=arguments.lane_size,
        rollout_length=128,
    )
    contenders = {"lane": lane_rollouts(experiment), "vector": vector_environment(experiment)}

    def answer(contender: str, seconds: float) -> dict[str, Any]:
        """Measure env-steps per second, over at least one rollout."""
        run, steps, started = contenders[contender], 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds or not steps:
            steps += run()
        return {"rate": steps / elapsed}

    return answer


if __name__ == "__main__":
    serve(prepare)
