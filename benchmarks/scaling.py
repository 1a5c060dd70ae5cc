"""Equations for a run's speed, given the cost of each part; this module measures nothing.

There are E environments in L = E / n lanes of n, and T steps a rollout, so an iteration has B = E · T env-steps. There
are N actors, each with a core of its own. A step of an environment takes s seconds; the policy and the records of a
lane's step take f seconds. The learner takes B / r seconds to learn, and m for each message that is not tiny. A link
carries w bytes a second each way, both ways at once.

    k = ⌈L / N⌉                     lanes of the busiest actor, which all wait for; with N > L some actors are idle
    acting   A = k · T · (n · s + f)
    learning G = B / r + m · (L + min(N, L))      trajectories, and a snapshot for each actor that acts
    up       U = L · trajectory_bytes / w
    down     D = min(N, L) · snapshot_bytes / w

An iteration passes through these parts in turn: weights go down, lanes act, trajectories go up, the learner learns. Of
an actor's k rollouts, all but the last travel while the actor acts on. Acting and travelling therefore take as long as
k equal jobs that pass through two machines in a row:

    A and U together   P = a + (k − 1) · max(a, u) + u,  with a = A / k and u = U / k
    latency            W = D + P + G

`sync` has one iteration under way in this loop. `pipelined` has two, and each part serves one of them at a time:

    sync       seconds an iteration = W
    pipelined  seconds an iteration = max(A, G, U, D, W / 2)

The speed is B divided by these seconds. The equations leave out lanes of unequal speed (the slowest counts), actors
that share a core, the network's latency, and encryption.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from protocol.trajectory import DIGEST_SIZE

TRAJECTORY_HEADER, SNAPSHOT_HEADER = 960, 550  # Bytes of names, shapes, types and small fields.
STEP_BYTES = 4 + 4 + 1 + 1  # log-probability, reward, terminated, truncated


@dataclass(frozen=True)
class Inputs:
    """The properties of environments, learner and network that are known before a run."""

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
        """Bytes of one lane's rollout on the wire, if no episode was truncated."""
        steps = self.rollout_length * self.lane_size
        ends = self.lane_size * (
            self.observation_bytes + 8 + 1 + DIGEST_SIZE
        )  # last observation, episode, restarted, digest
        return steps * (self.observation_bytes + self.action_bytes + STEP_BYTES) + ends + TRAJECTORY_HEADER

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of one policy version, for one actor."""
        return 4 * self.parameters + SNAPSHOT_HEADER


@dataclass(frozen=True)
class Prediction:
    """The seconds of each part of an iteration with `actors` actors, and the speed that follows."""

    actors: int
    batch: int  # env-steps
    acting: float
    learning: float
    up: float
    down: float
    iteration: float
    traffic_up: float  # Bytes per second of trajectories.
    traffic_down: float  # Bytes per second of weights.

    @property
    def rate(self) -> float:
        """Env-steps per second."""
        return self.batch / self.iteration

    @property
    def limits(self) -> dict[str, float]:
        """For each part, the env-steps per second if only this part took time."""
        wire = max(self.up, self.down)
        return {
            name: self.batch / t for name, t in (("acting", self.acting), ("learner", self.learning), ("wire", wire))
        }


def predict(inputs: Inputs, actors: int) -> Prediction:
    """Predict an iteration with `actors` actors; the equations are at the top of this file."""
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
    """Predictions for the numbers of actors worth considering: the fewest for each ⌈L / N⌉, in rising order."""
    return (predict(inputs, n) for n in sorted({-(-inputs.lanes // k) for k in range(1, inputs.lanes + 1)}))


def best(inputs: Inputs) -> Prediction:
    """The prediction with the highest speed, for the fewest actors that give this speed."""
    return max(different(inputs), key=lambda prediction: prediction.rate)


def saturation(inputs: Inputs) -> Prediction | None:
    """The prediction for the fewest actors that act as fast as the learner learns; None if lanes run out before."""
    return next((p for p in different(inputs) if p.acting <= p.learning), None)


def worth_starting(inputs: Inputs, share: float) -> Prediction:
    """The prediction for the fewest actors that give this share of the highest speed."""
    enough = share * best(inputs).rate
    return next(p for p in different(inputs) if p.rate >= enough)
