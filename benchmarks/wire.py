"""`wire`: trajectories from an actor's socket into the learner's batch, against bare pyzmq with the same bytes."""

import argparse
import dataclasses
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import zmq

from benchmarks.arguments import positive
from benchmarks.measurements import Row, Samples, at_least, interleave
from benchmarks.processes import REST_SECONDS, Worker
from benchmarks.report import Report
from benchmarks.workloads import spaces_of, trajectory
from learner.batch import Batch
from learner.device import prepare_device
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.messages import Grant, Hello, Stop, to_frames
from protocol.spaces import Spaces
from protocol.trajectory import Trajectory
from protocol.transport import LearnerSocket
from supervisor.address import listening

STACKED, CHECKED, RIVAL = "receive and stack", "receive, check and stack", "bare pyzmq"
ROLLOUT_LENGTH, LANES = 128, 8
WINDOW = 2 * LANES  # Trajectories under way: two rollouts of each lane, as the schedule `pipelined` grants them.
TARGET_SIZE = 4 * 2**20  # Approximate bytes of a trajectory.
WAIT_SECONDS = 60.0  # Timeout for each expected message.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = [2**16, 2**18, 2**20, TARGET_SIZE, 2**24]
    parser.add_argument("--size", nargs="+", type=positive(int), default=sizes, help="bytes of observations")
    parser.add_argument("--megabytes", type=positive(float), default=500.0, help="in each measurement")


def experiment_of() -> Experiment:
    return Experiment(num_envs=8 * LANES, lane_size=8, rollout_length=ROLLOUT_LENGTH)


def spaces_for(nbytes: int) -> Spaces:
    """Spaces in which a rollout's observations have about `nbytes` bytes."""
    steps = ROLLOUT_LENGTH * experiment_of().lane_size
    return spaces_of((max(1, nbytes // (4 * steps)),), "float32")


@dataclass(frozen=True)
class Load:
    """The trajectories sent in one measurement."""

    nbytes: int  # Bytes of the observations of one trajectory.
    batches: int

    @property
    def message_bytes(self) -> int:
        frames = to_frames(trajectory(spaces_for(self.nbytes), experiment_of(), lane=0, rollout_index=0))
        return sum(len(frame) for frame in frames)

    @property
    def messages(self) -> int:
        return self.batches * LANES

    @property
    def size(self) -> str:
        """The size of a trajectory, formatted for display."""
        return f"{self.nbytes / 2**20:g} MB" if self.nbytes >= 2**20 else f"{self.nbytes / 2**10:g} KB"

    @classmethod
    def of(cls, nbytes: int, megabytes: float) -> "Load":
        """A load of about `megabytes` MB of trajectories, but at least two batches."""
        return cls(nbytes, max(2, round(megabytes * 1e6 / (nbytes * LANES))))

    def rows(self, results: dict[str, list[float]]) -> dict[str, Row]:
        """A row for each contender; `results` are the seconds of its runs."""
        megabytes = self.messages * self.message_bytes / 1e6
        return {
            name: Row(
                "by size of a trajectory", "MB/s", self.size, name, Samples.of(megabytes / value for value in seconds)
            )
            for name, seconds in results.items()
        }


def run(arguments: argparse.Namespace) -> Report:
    prepare_device("cpu", threads=1)  # The learner calls this, too; among other things it lets malloc keep its memory.
    report = Report("wire")
    report.note(f"one sender, over ipc; {LANES} trajectories make a batch, {WINDOW} are under way")
    with Worker("sending") as sender:
        for nbytes in sorted(arguments.size):
            report.rows += measure(Load.of(nbytes, arguments.megabytes), sender, arguments.repeats)
    return report


def measure(load: Load, sender: Worker, repeats: int) -> list[Row]:
    """A row for each way of receiving messages of one size."""
    contenders = {
        STACKED: lambda _: receive_batches(load, sender, check=False),
        CHECKED: lambda _: receive_batches(load, sender, check=True),
        RIVAL: lambda _: receive_bytes(load, sender),
    }
    rows = load.rows(interleave(contenders, repeats, load.size))
    target = at_least(0.8) if load.nbytes == TARGET_SIZE else None
    compared = {STACKED: (rows[STACKED].against(rows[RIVAL], target),), CHECKED: (rows[CHECKED].against(rows[RIVAL]),)}
    return [dataclasses.replace(row, comparisons=compared.get(name, ())) for name, row in rows.items()]


def receive_batches(load: Load, sender: Worker, check: bool) -> float:
    """Seconds to receive the load over ipc."""
    with listening("ipc") as place, closing(LearnerSocket(place.address)) as socket:
        sender.tell(bare=False, address=place.address, nbytes=load.nbytes)
        return receive_over(socket, load, sender, check)


def receive_over(socket: LearnerSocket, load: Load, sender: Worker, check: bool) -> float:
    """Seconds from the first grants until the last batch is stacked; each received rollout is followed by a grant."""
    experiment, spaces = experiment_of(), spaces_for(load.nbytes)
    identity = _received(socket, Hello).identity
    time.sleep(REST_SECONDS)
    granted, batch_memory = 0, {}

    def grant() -> None:
        nonlocal granted
        if granted < load.messages:
            rollout_index, lane = divmod(granted, LANES)
            socket.send(identity, Grant("benchmark", lane, rollout_index, rollout_index, 0, None))
            granted += 1

    started = time.perf_counter()
    for _ in range(WINDOW):
        grant()
    for _ in range(load.batches):
        trajectories = []
        for _ in range(LANES):
            received: Trajectory = _received(socket, Trajectory).message
            if check:
                received.check(experiment, spaces)
            trajectories.append(received)
            grant()
        Batch.stack(trajectories, batch_memory)
    seconds = time.perf_counter() - started
    socket.send(identity, Stop("measured"))
    sender.answer()
    return seconds


def receive_bytes(load: Load, sender: Worker) -> float:
    """Seconds from the message `begin` until the last frame has arrived; no frame is decoded."""
    with listening("ipc") as place, closing(zmq.Context.instance().socket(zmq.PAIR)) as socket:
        socket.setsockopt(zmq.LINGER, round(1000 * WAIT_SECONDS))
        socket.setsockopt(zmq.RCVHWM, WINDOW)
        socket.setsockopt(zmq.RCVTIMEO, round(1000 * WAIT_SECONDS))
        socket.bind(place.address)
        sender.tell(bare=True, address=place.address, nbytes=load.nbytes, count=load.messages, window=WINDOW)
        time.sleep(REST_SECONDS)
        started = time.perf_counter()
        socket.send(b"begin")
        for _ in range(load.messages):
            socket.recv(copy=False)
        seconds = time.perf_counter() - started
        socket.send(b"end")
        sender.answer()
    return seconds


def _received(socket: LearnerSocket, kind: type) -> Any:
    """Wait for the next message, as `Received`. Raises `UserError` if none of this kind arrives."""
    received = socket.receive(WAIT_SECONDS)
    if received is None or not isinstance(received.message, kind):
        raise UserError(f"the sender sent {received and received.message!r:.80} instead of a {kind.__name__}")
    return received
