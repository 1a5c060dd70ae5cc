"""How speed follows from the parts: equations only, no measurement.

E environments in L = E / n lanes of n, T steps a rollout, so B = E · T env-steps an iteration; N actors, each with a
core of its own. A step of an environment takes s seconds, the policy and the records of a lane's step f. The learner
takes B / r to learn, and m for each message that is not tiny. A link carries w bytes a second, each way at once.

    k = ⌈L / N⌉                     lanes of the busiest actor, for which all wait; with N > L some actors are idle
    acting   A = k · T · (n · s + f)
    learning G = B / r + m · (L + min(N, L))      trajectories, and a snapshot for each actor that acts
    up       U = L · trajectory_bytes / w
    down     D = min(N, L) · snapshot_bytes / w

An iteration passes through all of them in turn: weights go down, lanes act, trajectories go up, the learner learns. Of
an actor's k rollouts all but the last travel while it acts on, so that acting and travelling take, as k equal jobs do
on two machines in a row,

    A and U together   a + (k − 1) · max(a, u) + u,  with a = A / k and u = U / k
    latency            W = D + that + G

`sync` has one iteration under way in that loop, and `pipelined` two, of which each part serves one at a time:

    sync       seconds an iteration = W
    pipelined  seconds an iteration = max(A, G, U, D, W / 2)

and B divided by that is the speed. Left out: lanes of unequal speed (the slowest counts), actors that share a core, the
time that a message travels however short it is, and encryption.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from protocol.trajectory import DIGEST_SIZE

TRAJECTORY_HEADER, SNAPSHOT_HEADER = 960, 550  # bytes: names, shapes and types, and what is small
STEP_BYTES = 4 + 4 + 1 + 1  # log-probability, reward, terminated, truncated


@dataclass(frozen=True)
class Inputs:
    """What is known of environments, learner and network before anything is run."""

    step_seconds: float
    """Seconds of a step of one environment."""
    num_envs: int
    """Environments in all."""
    lane_size: int
    """Environments of a lane, which an actor steps one after another."""
    rollout_length: int
    """Steps of each environment in one iteration."""
    observation_bytes: int
    """Bytes of one observation."""
    action_bytes: int
    """Bytes of one action."""
    parameters: int
    """Weights of the policy, of 4 bytes each; the critic stays with the learner."""
    bandwidth: float
    """Bytes per second that the learner's link carries, each way."""
    learner_rate: float
    """Env-steps per second that the learner can learn from."""
    forward_seconds: float
    """Seconds that policy and records take for a step of a lane, however long its environments step."""
    message_seconds: float
    """Seconds that a trajectory costs the learner to receive and check, or a snapshot to encode and send."""
    schedule: Literal["sync", "pipelined"]
    """Whether acting waits for learning."""

    @property
    def lanes(self) -> int:
        return self.num_envs // self.lane_size

    @property
    def batch(self) -> int:
        """Env-steps of an iteration."""
        return self.num_envs * self.rollout_length

    @property
    def trajectory_bytes(self) -> int:
        """Of one lane's rollout on the wire, where no episode was truncated."""
        steps = self.rollout_length * self.lane_size
        ends = self.lane_size * (
            self.observation_bytes + 8 + 1 + DIGEST_SIZE
        )  # last observation, episode, restarted, digest
        return steps * (self.observation_bytes + self.action_bytes + STEP_BYTES) + ends + TRAJECTORY_HEADER

    @property
    def snapshot_bytes(self) -> int:
        """Of one version of the policy, for one actor."""
        return 4 * self.parameters + SNAPSHOT_HEADER


@dataclass(frozen=True)
class Prediction:
    """An iteration with so many actors, in seconds, and the speed that follows."""

    actors: int
    batch: int  # env-steps
    acting: float
    learning: float
    up: float
    down: float
    iteration: float
    traffic_up: float  # bytes per second, of trajectories
    traffic_down: float  # bytes per second, of weights

    @property
    def rate(self) -> float:
        """Env-steps per second."""
        return self.batch / self.iteration

    @property
    def limits(self) -> dict[str, float]:
        """Env-steps per second, if there were nothing else."""
        wire = max(self.up, self.down)
        return {
            name: self.batch / t for name, t in (("acting", self.acting), ("learner", self.learning), ("wire", wire))
        }


def predict(inputs: Inputs, actors: int) -> Prediction:
    """An iteration with that many actors; the equations are at the top of this file."""
    lanes, acting_actors = inputs.lanes, min(actors, inputs.lanes)
    rounds = -(-lanes // actors)
    acting = rounds * inputs.rollout_length * (inputs.lane_size * inputs.step_seconds + inputs.forward_seconds)
    learning = inputs.batch / inputs.learner_rate + inputs.message_seconds * (lanes + acting_actors)
    bytes_up, bytes_down = lanes * inputs.trajectory_bytes, acting_actors * inputs.snapshot_bytes
    up, down = bytes_up / inputs.bandwidth, bytes_down / inputs.bandwidth
    latency = down + (acting + up + (rounds - 1) * max(acting, up)) / rounds + learning
    iteration = latency if inputs.schedule == "sync" else max(acting, learning, up, down, latency / 2)
    return Prediction(
        actors, inputs.batch, acting, learning, up, down, iteration, bytes_up / iteration, bytes_down / iteration
    )


def different(inputs: Inputs) -> Iterable[Prediction]:
    """Every number of actors that is worth a thought: the fewest for each ⌈L / N⌉, in rising order."""
    return (predict(inputs, n) for n in sorted({-(-inputs.lanes // k) for k in range(1, inputs.lanes + 1)}))


def best(inputs: Inputs) -> Prediction:
    """With the highest speed that any number of actors gives, and the fewest of them."""
    return max(different(inputs), key=lambda prediction: prediction.rate)


def saturation(inputs: Inputs) -> Prediction | None:
    """With the fewest actors that act as fast as the learner learns; None where lanes run out before."""
    return next((p for p in different(inputs) if p.acting <= p.learning), None)


def worth_starting(inputs: Inputs, share: float) -> Prediction:
    """With the fewest actors that give that share of the highest speed."""
    enough = share * best(inputs).rate
    return next(p for p in different(inputs) if p.rate >= enough)
