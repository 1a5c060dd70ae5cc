"""Messages over ZeroMQ: one ROUTER in the learner, one DEALER in each actor, over ipc://, tcp:// or inproc://.

Flow is controlled by grants (an actor has only what it was granted), so the queues between processes of one machine
need no high-water mark. Those of remote actors have one that only a peer which does not keep to its grants can reach.
"""

import errno
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import zmq
from zmq.utils.monitor import recv_monitor_message

from protocol.errors import ProtocolError, UserError
from protocol.keys import ActorKey, AllowedKeys, read_learner
from protocol.messages import Message, from_frames, to_frames
from protocol.remote import RemoteAccess

MAX_FRAME = 2**30  # bytes, of one array: a rollout of images may take tens of MB
REMOTE_QUEUE = 1024  # messages, each way: an actor that hosts 256 lanes has two rollouts of each under way
HANDSHAKE_SECONDS = 5.0  # after which a connection that says nothing is closed
HEARTBEAT_SECONDS = 10.0  # between two looks whether the other machine is still there
CONNECTING_SECONDS = 5.0  # after which it is tried anew; the system's own patience grows with every attempt
ABSENCE_SECONDS = 30.0  # without a word from its kernel after which it is not, where the system tells (Linux)
SILENCE_SECONDS = (
    300.0  # without a word from its process after which it is not; a large array on a slow line takes long
)
FAILED_HANDSHAKES = 5  # in a row, and none before that succeeded: this is no accident
DOMAIN = "learner"  # of the keys that ZeroMQ asks about

_FAILURES = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_DENIED = 400  # the value of FAILED_AUTH for a key that is not allowed


def _socket(kind: int) -> zmq.Socket:
    socket = zmq.Context.instance().socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
    return socket


def _prepare_for_tcp(socket: zmq.Socket, address: str) -> None:
    """Options of the connections made from now on."""
    socket.setsockopt(zmq.IPV6, int(address.startswith("tcp://[")))
    socket.setsockopt(zmq.HEARTBEAT_IVL, round(1000 * HEARTBEAT_SECONDS))
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(1000 * SILENCE_SECONDS))
    socket.setsockopt(zmq.TCP_MAXRT, round(1000 * ABSENCE_SECONDS))


class ConnectionEvent(NamedTuple):
    """What has happened to one of a socket's connections."""

    kind: int
    value: int


def _monitor_of(socket: zmq.Socket, kinds: int) -> zmq.Socket:
    """Where events of these kinds arrive. No mark limits them: at it, ZeroMQ's thread would wait, and all with it."""
    address = f"inproc://events-{uuid.uuid4().hex}"
    socket.monitor(address, kinds)
    monitor = _socket(zmq.PAIR)
    monitor.connect(address)
    return monitor


def _events(monitor: zmq.Socket) -> Iterator[ConnectionEvent]:
    """What has happened since the last call."""
    while monitor.poll(0):
        event = recv_monitor_message(monitor)
        yield ConnectionEvent(int(event["event"]), int(event["value"]))


@dataclass(frozen=True)
class Received:
    """A message, and who sent it."""

    identity: bytes  # of the connection
    user: str | None  # the public key that the connection was opened with; None where none is asked for
    message: Message | ProtocolError  # or what is wrong with it


@dataclass(frozen=True)
class Disturbances:
    """What has happened to a learner's connections."""

    failed_handshakes: int = 0
    disconnections: int = 0


class LearnerSocket:
    """The learner's end: receives from any actor, sends to one by its identity."""

    def __init__(
        self, address: str, remote: RemoteAccess | None = None, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        """Listen on `address` for the actors of this machine, and for remote ones where `remote` says."""
        self._allowed: AllowedKeys | None = None
        self._authenticator: Any = None
        self._socket = _socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to an actor that has gone is an error, not silence
        self._monitor = _monitor_of(self._socket, _FAILURES | zmq.EVENT_DISCONNECTED)
        try:
            self._bind(address)
            if remote is not None:
                self._open_to(remote, warn)
        except BaseException:
            self.close()
            raise

    def _open_to(self, remote: RemoteAccess, warn: Callable[[str], None]) -> None:
        """Listen for remote actors as well. ZeroMQ copies options when it binds: the first address keeps its own."""
        address = remote.address.replace("//localhost:", "//127.0.0.1:")  # ZeroMQ binds no names
        _prepare_for_tcp(self._socket, address)
        self._socket.setsockopt(zmq.RCVHWM, REMOTE_QUEUE)
        self._socket.setsockopt(zmq.SNDHWM, REMOTE_QUEUE)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, round(1000 * HANDSHAKE_SECONDS))
        if remote.keys is not None:
            pair = read_learner(remote.keys)
            self._allowed = AllowedKeys(remote.keys, warn)
            self._authenticate(self._allowed)
            self._socket.setsockopt(zmq.CURVE_SERVER, 1)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
            self._socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN.encode())
            self._socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without an authenticator nobody gets in, not everybody
        self._bind(address)

    def _authenticate(self, allowed: AllowedKeys) -> None:
        from zmq.auth.thread import ThreadAuthenticator  # here: few runs need it, and it brings asyncio

        class Provider:
            def callback(self, domain: str, key: bytes) -> bool:
                return key.decode() in allowed

        self._authenticator = ThreadAuthenticator(zmq.Context.instance())
        self._authenticator.configure_curve_callback(DOMAIN, Provider())
        self._authenticator.start()

    def _bind(self, address: str) -> None:
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            remedy = "is another run using it?"
            if error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
                remedy = "give the IP address of one of this machine's interfaces, or 0.0.0.0 for all"
            raise UserError(f"cannot listen on {address}: {error.strerror}; {remedy}") from None

    def receive(self, timeout: float) -> Received | None:
        """The next message; None after `timeout` seconds of silence."""
        if not self._socket.poll(round(timeout * 1000)):
            return None
        identity, *frames = self._socket.recv_multipart(copy=False)
        user = None
        if self._allowed is not None and frames:
            with suppress(zmq.ZMQError):  # a local actor has none
                user = str(frames[0].get("User-Id"))
        try:
            message = from_frames([frame.buffer for frame in frames])
        except ProtocolError as error:
            message = error
        return Received(identity.bytes, user, message)

    def allows(self, user: str | None) -> bool:
        """Whether who connected with that key, or without one, may still take part."""
        return user is None or self._allowed is None or user in self._allowed

    def send(self, identity: bytes, message: Message) -> bool:
        """Queue `message` for the actor; False if it is no longer connected, or takes nothing any more."""
        return self._send(identity, to_frames(message))

    def reaches(self, identity: bytes) -> bool:
        """Whether the actor is still connected; it takes no notice of the question."""
        return self._send(identity, [b""])

    def _send(self, identity: bytes, frames: list) -> bool:
        try:
            self._socket.send_multipart([identity, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def disturbances(self) -> Disturbances:
        """What has happened to connections since the last call."""
        events = list(_events(self._monitor))
        failures = sum(bool(event.kind & _FAILURES) for event in events)
        return Disturbances(failures, len(events) - failures)

    def close(self) -> None:
        """Close; what was sent last (the word to stop) has 200 ms to leave."""
        self._socket.disable_monitor()  # before its other end is gone: ZeroMQ's thread would wait for one
        self._monitor.close()
        self._socket.close(linger=200)
        if self._authenticator is not None:
            self._authenticator.stop()


class ActorSocket:
    """An actor's end. ZeroMQ connects, and connects again, by itself."""

    def __init__(self, address: str, key: ActorKey | None = None) -> None:
        self.connected = True  # as far as one can tell: only of TCP it is known
        self._address = address
        self._key = key
        self._newly_connected = False
        self._ever_connected = False
        self._failures = 0  # of handshakes, in a row
        self._monitor: zmq.Socket | None = None
        self._socket = _socket(zmq.DEALER)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        try:
            if address.startswith("tcp://"):
                self._watch_connection()
            if key is not None:
                self._socket.setsockopt(zmq.CURVE_SERVERKEY, key.learner.encode())
                self._socket.setsockopt(zmq.CURVE_PUBLICKEY, key.pair.public.encode())
                self._socket.setsockopt(zmq.CURVE_SECRETKEY, key.pair.secret.encode())
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise UserError(f"cannot connect to {address}: {error.strerror}") from None

    def _watch_connection(self) -> None:
        _prepare_for_tcp(self._socket, self._address)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, round(1000 * CONNECTING_SECONDS))
        self._monitor = _monitor_of(self._socket, _FAILURES | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._poller.register(self._monitor, zmq.POLLIN)
        self.connected = False

    def receive(self, timeout: float) -> Message | None:
        """The learner's next message; None after `timeout` seconds of silence, or when something else has happened.

        Raises `ProtocolError`, and `UserError` where the learner does not let this actor in.
        """
        ready = dict(self._poller.poll(round(timeout * 1000)))
        if self._monitor in ready:
            self._note_events()
        if self._socket not in ready:
            return None
        frames = [frame.buffer for frame in self._socket.recv_multipart(copy=False)]
        return None if frames == [b""] else from_frames(frames)  # the learner wants to know whether one is there

    def is_newly_connected(self) -> bool:
        """Whether the connection was made since the last call, which may be another one than before."""
        newly, self._newly_connected = self._newly_connected, False
        return newly

    def send(self, message: Message) -> None:
        """Queue `message`, unless there is no connection: a later learner would have no use for it.

        Raises `UserError` where it is too large.
        """
        if not self.connected:
            return
        frames = to_frames(message)
        if (largest := max(map(len, frames))) > MAX_FRAME:
            raise UserError(
                f"an array of {largest:,} bytes is more than the {MAX_FRAME:,} that a message may hold;"
                " choose a smaller --rollout-length or --lane-size"
            )
        with suppress(zmq.Again):  # refused since the last `receive`, as the next will say; waiting would be for ever
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)

    def close(self) -> None:
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
        self._socket.close()

    def _note_events(self) -> None:
        assert self._monitor is not None
        for event in _events(self._monitor):
            if event.kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.connected = self._newly_connected = self._ever_connected = True
                self._failures = 0
            elif event.kind == zmq.EVENT_DISCONNECTED:
                self.connected = False
            else:
                self._failures += 1
                self._raise_if_refused(event)

    def _raise_if_refused(self, failure: ConnectionEvent) -> None:
        """Raise `UserError` if a handshake failed for good; ZeroMQ tries again after any other failure."""
        learner = f"the learner at {self._address}"
        path = self._key.path if self._key else None
        if failure == (zmq.EVENT_HANDSHAKE_FAILED_AUTH, _DENIED):
            raise UserError(f"{learner} does not allow the key {path}: its line is missing in allowed.toml")
        if failure == (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH):
            remedy = f"takes no keys; leave out --key {path}" if path else "asks for a key; give it with --key FILE"
            raise UserError(f"{learner} {remedy}")
        if self._failures >= FAILED_HANDSHAKES and not self._ever_connected:
            cause = (
                f"the key {path} is one for another learner, it takes no keys" if path else "it asks for a key (--key)"
            )
            raise UserError(f"{learner} ends every connection at once: {cause}, or something else listens there")
