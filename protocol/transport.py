"""Messages over ZeroMQ: one ROUTER in the learner, one DEALER in each actor, over ipc://, tcp:// or inproc://.

Flow is controlled by grants (an actor has only what it was granted), so the queues need no high-water mark.
"""

import zmq

from protocol.errors import ProtocolError, UserError
from protocol.messages import Message, from_frames, to_frames


def _socket(kind: int) -> zmq.Socket:
    socket = zmq.Context.instance().socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    return socket


class LearnerSocket:
    """The learner's end: receives from any actor, sends to one by its identity."""

    def __init__(self, address: str) -> None:
        self._socket = _socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to an actor that has gone is an error, not silence
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._socket.close()
            raise UserError(f"cannot listen on {address}: {error.strerror}; is another run using it?") from None

    def receive(self, timeout: float) -> tuple[bytes, Message | ProtocolError] | None:
        """(identity of the actor, its message, or what is wrong with it); None after `timeout` seconds of silence."""
        if not self._socket.poll(round(timeout * 1000)):
            return None
        identity, *frames = self._socket.recv_multipart(copy=False)
        try:
            return identity.bytes, from_frames([frame.buffer for frame in frames])
        except ProtocolError as error:
            return identity.bytes, error

    def send(self, identity: bytes, message: Message) -> bool:
        """Queue `message` for the actor; False if it is no longer connected."""
        try:
            self._socket.send_multipart([identity, *to_frames(message)], copy=False)
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def close(self) -> None:
        """Close; what was sent last (the word to stop) has 200 ms to leave."""
        self._socket.close(linger=200)


class ActorSocket:
    """An actor's end. ZeroMQ connects, and connects again, by itself."""

    def __init__(self, address: str) -> None:
        self._socket = _socket(zmq.DEALER)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._socket.close()
            raise UserError(f"cannot connect to {address}: {error.strerror}") from None

    def receive(self, timeout: float) -> Message | None:
        """The learner's next message; None after `timeout` seconds of silence. Raises `ProtocolError`."""
        if not self._socket.poll(round(timeout * 1000)):
            return None
        return from_frames([frame.buffer for frame in self._socket.recv_multipart(copy=False)])

    def send(self, message: Message) -> None:
        self._socket.send_multipart(to_frames(message), copy=False)

    def close(self) -> None:
        self._socket.close()
