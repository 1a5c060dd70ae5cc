"""A real actor's reactions to the learner's messages; the test plays the learner."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from launching import TIMEOUT as SECONDS
from making import snapshot_of, trained_model

from actors.actor import Actor
from actors.lane import Lane
from actors.rollout import collect_rollout
from protocol.errors import ProtocolError
from protocol.experiment import Experiment
from protocol.messages import Grant, Hello, Message, Progress, Ready, Release, Stop, Welcome
from protocol.trajectory import Trajectory
from protocol.transport import LearnerSocket

EXPERIMENT = Experiment(num_envs=8, lane_size=2, rollout_length=64)


class Learner:
    """The learner of one actor, which has joined and has a policy."""

    def __init__(self, socket: LearnerSocket, may_act: Event) -> None:
        self._socket = socket
        self._may_act = may_act
        received = socket.receive(SECONDS)
        assert received is not None and isinstance(received.message, Hello)
        self._actor = received.identity
        self.say(Welcome("run", EXPERIMENT))
        ready = self.hear()
        assert isinstance(ready, Ready)
        self.say(snapshot_of(trained_model(ready.spaces, EXPERIMENT, np.random.default_rng(0))))

    def say(self, *messages: Message) -> None:
        """Send all `messages`; the first grant among them holds the actor until all are sent."""
        self._may_act.clear()
        for message in messages:
            assert self._socket.send(self._actor, message)
        self._may_act.set()

    def hear(self) -> Message | ProtocolError:
        """The next message that is neither a `Hello` nor a `Progress`."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            received = self._socket.receive(SECONDS)
            if received is not None and not isinstance(received.message, Hello | Progress):
                return received.message
        pytest.fail("the actor has nothing new to say")

    def hear_trajectory(self) -> tuple[int, int]:
        """(lane, fencing_token) of the next trajectory."""
        trajectory = self.hear()
        assert isinstance(trajectory, Trajectory), trajectory
        return trajectory.lane, trajectory.fencing_token


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Learner]:
    may_act = Event()

    def collect_when_allowed(*arguments: Any) -> Trajectory:
        assert may_act.wait(SECONDS)
        return collect_rollout(*arguments)

    monkeypatch.setattr("actors.actor.collect_rollout", collect_when_allowed)
    address = f"inproc://{uuid.uuid4().hex}"
    with closing(LearnerSocket(address)) as socket:
        actor = Actor("0", address)
        thread = Thread(target=actor.run)
        thread.start()
        talk = Learner(socket, may_act)
        yield talk
        talk.say(Stop("over"))
        thread.join(SECONDS)
        assert not thread.is_alive()


def grant(lane: int, fencing_token: int = 1) -> Grant:
    return Grant("run", lane, 0, 0, fencing_token, None)


def test_grants_are_taken_in_the_order_of_version_rollout_and_lane(learner: Learner) -> None:
    learner.say(grant(0), grant(3), grant(1), grant(2))
    assert [learner.hear_trajectory()[0] for _ in range(4)] == [0, 1, 2, 3]


def test_a_released_lane_is_left_out_until_it_is_granted_again(learner: Learner) -> None:
    learner.say(grant(0), grant(1), grant(2), Release(1, 1))
    assert [learner.hear_trajectory() for _ in range(2)] == [(0, 1), (2, 1)]
    learner.say(grant(1, fencing_token=3))
    assert learner.hear_trajectory() == (1, 3)


def test_a_release_that_came_late_voids_nothing_newer(learner: Learner) -> None:
    learner.say(grant(0), grant(1, fencing_token=4), Release(1, 3))
    assert [learner.hear_trajectory() for _ in range(2)] == [(0, 1), (1, 4)]


def test_a_lane_that_was_stepped_is_closed_when_it_is_released(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []
    close: Callable[[Lane], None] = Lane.close
    monkeypatch.setattr(Lane, "close", lambda lane: (closed.append(lane.index), close(lane))[-1])
    learner.say(grant(0), grant(1))
    assert [learner.hear_trajectory()[0] for _ in range(2)] == [0, 1]
    learner.say(Release(1, 1), grant(2))
    assert learner.hear_trajectory() == (2, 1)
    assert closed == [1]
