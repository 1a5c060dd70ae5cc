"""One actor's rollouts, and gymnasium's vector environment with random actions."""

import os

from protocol.threads import use_one_thread

use_one_thread(os.environ)  # as an actor does

import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import gymnasium  # noqa: E402
import numpy as np  # noqa: E402

from actors.environment import describe_spaces, make_environment  # noqa: E402
from actors.lane import Lane  # noqa: E402
from actors.policy import Policy  # noqa: E402
from actors.rollout import collect_rollout  # noqa: E402
from benchmarks.workers.serving import serve  # noqa: E402
from protocol.experiment import Experiment  # noqa: E402
from protocol.messages import Grant  # noqa: E402
from protocol.snapshot import PolicySnapshot  # noqa: E402

EXPERIMENT = Experiment(num_envs=8, rollout_length=128)


def lane_rollouts() -> Callable[[], int]:
    """What collects a rollout of the first lane and returns its env-steps."""
    from learner.model import ActorCritic  # for weights; the learner is not here otherwise

    env = make_environment(EXPERIMENT)
    spaces = describe_spaces(env, EXPERIMENT)
    env.close()
    model = ActorCritic(spaces, EXPERIMENT)
    weights = {name: np.array(array) for name, array in model.named_parameters() if not name.startswith("value_")}
    statistics = np.zeros(spaces.observation.size, np.float32), np.ones(spaces.observation.size, np.float32)
    policy = Policy(PolicySnapshot(0, weights, *statistics), spaces, EXPERIMENT)
    lane = Lane(0, EXPERIMENT, spaces, progress=lambda: None)
    lane.begin()
    rollout_index = 0

    def collect() -> int:
        nonlocal rollout_index
        collect_rollout(lane, policy, Grant("benchmark", 0, rollout_index, 0, 0, None), EXPERIMENT, spaces)
        rollout_index += 1
        return EXPERIMENT.env_steps_per_iteration

    return collect


def vector_environment() -> Callable[[], int]:
    """What steps as many environments as often, with actions that were drawn before, and returns the env-steps."""
    makers = [lambda: gymnasium.make(EXPERIMENT.env)] * EXPERIMENT.num_envs
    env = gymnasium.vector.SyncVectorEnv(makers)
    env.reset(seed=EXPERIMENT.seed)
    actions = np.random.default_rng(0).integers(2, size=(EXPERIMENT.rollout_length, EXPERIMENT.num_envs))

    def step() -> int:
        for row in actions:
            env.step(row)
        return actions.size

    return step


def prepare() -> Callable[..., dict[str, Any]]:
    """Returns what answers requests."""
    contenders = {"lane": lane_rollouts(), "vector": vector_environment()}

    def answer(contender: str, seconds: float) -> dict[str, Any]:
        """Env-steps per second, over at least one rollout."""
        run, steps, started = contenders[contender], 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds or not steps:
            steps += run()
        return {"rate": steps / elapsed}

    return answer


if __name__ == "__main__":
    serve(prepare)
