"""The learner's own PPO on synthetic batches, through `PPO.update`, so that the timed code is the code that trains."""

import os

from protocol.process import ONE_THREAD

os.environ.update(ONE_THREAD)  # The learner has the same settings.

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.workers.serving import serve
from benchmarks.workloads import MINIBATCHES, Workload, trajectory
from learner.device import prepare_device
from protocol.observations import network_inputs
from rundir.schedules import Horizon

if TYPE_CHECKING:
    from learner.batch import Batch
    from learner.ppo import PPO

ITERATION = 1
LEARNING_RATE = 1e-6  # The batch is repeated, so larger steps would lead to weights that no training has.


@dataclass
class Update:
    """One iteration of PPO, repeated on one batch."""

    ppo: "PPO"
    batch: "Batch"
    workload: Workload

    def seconds(self) -> float:
        started = time.perf_counter()
        self.ppo.update(self.batch, ITERATION, lambda x: network_inputs(x, self.workload.spaces, None), lambda: None)
        return time.perf_counter() - started


def prepare() -> Callable[..., dict[str, Any]]:
    """Prepare MLX; returns the function that answers requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    prepare_device(arguments.device, arguments.threads)  # This must happen before MLX is imported.
    from learner.batch import Batch
    from learner.model import ActorCritic
    from learner.ppo import PPO
    from rundir.config import PPOConfig

    def make(workload: Workload, epochs: int) -> Update:
        """Make an update that has run once, so that everything is compiled."""
        spaces, experiment = workload.spaces, workload.experiment
        config = PPOConfig(
            learning_rate=LEARNING_RATE, learning_rate_schedule="constant", epochs=epochs, minibatches=MINIBATCHES
        )
        batch = Batch.stack([trajectory(spaces, experiment, lane=0, rollout_index=ITERATION)])
        ppo = PPO(ActorCritic(spaces, experiment), config, 0, Horizon((10,)), threads=arguments.threads)
        update = Update(ppo, batch, workload)
        update.seconds()
        return update

    prepared: dict[tuple[Workload, int], Update] = {}
    long_epochs: dict[Workload, int] = {}

    def iteration(workload: Workload, epochs: int) -> float:
        key = workload, epochs
        if key not in prepared:
            prepared[key] = make(workload, epochs)
        return prepared[key].seconds()

    def step(workload: Workload, seconds: float) -> float:
        """Seconds of a minibatch step: the cost of further epochs, because an iteration also prepares its batch."""
        short = iteration(workload, 1)
        epochs = long_epochs.setdefault(workload, 1 + math.ceil(seconds / short))
        return (iteration(workload, epochs) - short) / ((epochs - 1) * MINIBATCHES)

    def answer(measure: str, workload: dict[str, Any], **options: Any) -> dict[str, Any]:
        return {"seconds": {"step": step, "iteration": iteration}[measure](Workload(**workload), **options)}

    return answer


if __name__ == "__main__":
    serve(prepare)
