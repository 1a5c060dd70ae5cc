"""The sender of `wire` and `curve`: an actor whose rollouts take no time, or a bare ZeroMQ socket."""

import dataclasses
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import zmq

from benchmarks.wire import experiment_of, spaces_for
from benchmarks.workers.serving import serve
from benchmarks.workloads import trajectory
from protocol.keys import read_actor
from protocol.messages import Grant, Hello, Stop, to_frames
from protocol.transport import ActorSocket

WAIT_SECONDS = 60.0  # Timeout for a message from the receiver.


def send_trajectories(address: str, nbytes: int, key: str | None = None) -> None:
    """Answer each grant with a trajectory, until a `Stop` arrives; `key` is the path of a key file."""
    template = trajectory(spaces_for(nbytes), experiment_of(), lane=0, rollout_index=0)
    with closing(ActorSocket(address, read_actor(Path(key)) if key else None)) as socket:
        while not socket.connected:
            socket.receive(WAIT_SECONDS)
        socket.send(Hello("0", 0, {}))
        while not isinstance(message := socket.receive(WAIT_SECONDS), Stop):
            assert isinstance(message, Grant)
            socket.send(dataclasses.replace(template, lane=message.lane, rollout_index=message.rollout_index))


def send_bytes(address: str, nbytes: int, count: int, window: int) -> None:
    """After the first message, send the bytes of such a trajectory `count` times, in one frame, without a copy."""
    frames = to_frames(trajectory(spaces_for(nbytes), experiment_of(), lane=0, rollout_index=0))
    payload = b"".join(frames)
    with closing(zmq.Context.instance().socket(zmq.PAIR)) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, window)
        socket.connect(address)
        socket.recv()
        for _ in range(count):
            socket.send(payload, copy=False)
        socket.recv()  # The receiver has everything.


def prepare() -> Callable[..., dict[str, Any]]:
    """The function that answers requests."""

    def answer(bare: bool, **options: Any) -> dict[str, Any]:
        (send_bytes if bare else send_trajectories)(**options)
        return {}

    return answer


if __name__ == "__main__":
    serve(prepare)
