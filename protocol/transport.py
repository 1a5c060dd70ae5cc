"""Messages over ZeroMQ. The learner has a ROUTER for its own actors and one for remote actors; an actor has a DEALER.

Grants control the flow: an actor has only what it was granted. So the queues between processes of one machine need no
high-water mark. The queues of remote actors have a mark that only a peer which ignores its grants can reach.
"""

import ctypes
import errno
import os
import uuid
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import zmq
from zmq.utils.monitor import recv_monitor_message

from protocol.errors import ProtocolError, UserError
from protocol.keys import ActorKey, AllowedKeys, KeyPair, LearnerKey, read_learner
from protocol.messages import Message, from_frames, to_frames
from protocol.remote import RemoteAccess

MAX_FRAME = 2**30  # Most bytes of an array. A rollout of images may take tens of MB.
SEND_QUEUE = 1024  # Most messages that wait for a remote actor: 256 lanes have two rollouts each under way.
RECEIVE_QUEUE = 64  # Most messages of a remote actor that wait here. More wait on the actor's machine.
HANDSHAKE_SECONDS = 5.0  # Seconds after which a connection that says nothing is closed.
PROBE_SECONDS = 10  # Seconds between two checks that the other machine is still there.
PROBES = 2  # Unanswered checks after which the other machine counts as gone.
ABSENCE_SECONDS = 30  # Seconds without an answer after which a machine is gone. Linux then drops what was sent to it.
CONNECTING_SECONDS = 5.0  # Seconds after which an attempt to connect is given up and repeated.
FAILED_HANDSHAKES = 5  # Failures in a row that are no accident if no handshake has ever succeeded.

_LOCAL, _REMOTE = b"l", b"r"  # The learner puts one of these before a peer's identity.
_FAILURES = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_DENIED = 400  # FAILED_AUTH has this value for a key that is not allowed.


def _socket(kind: int) -> zmq.Socket:
    socket = zmq.Context.instance().socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
    return socket


def _prepare_for_tcp(socket: zmq.Socket, address: str) -> None:
    """Set the options of the connections made from now on.

    The system checks whether the other machine is there. ZeroMQ's heartbeats would do so too, but version 4.3.5 aborts
    the process when a heartbeat is due for a peer that has filled its queue and gone (`!_io_error`, in out_event).
    """
    socket.setsockopt(zmq.IPV6, int(address.startswith("tcp://[")))
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, PROBE_SECONDS)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, PROBE_SECONDS)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, PROBES)
    socket.setsockopt(zmq.TCP_MAXRT, 1000 * ABSENCE_SECONDS)


class ConnectionEvent(NamedTuple):
    """An event of one of a socket's connections."""

    kind: int
    value: int


def _monitor_of(socket: zmq.Socket, kinds: int) -> zmq.Socket:
    """A socket that receives these kinds of events. It has no high-water mark, at which ZeroMQ's thread would wait and
    block all connections."""
    address = f"inproc://events-{uuid.uuid4().hex}"
    socket.monitor(address, kinds)
    monitor = _socket(zmq.PAIR)
    monitor.connect(address)
    return monitor


def _events(monitor: zmq.Socket) -> Iterator[ConnectionEvent]:
    """The events since the last call."""
    while monitor.poll(0):
        event = recv_monitor_message(monitor)
        yield ConnectionEvent(int(event["event"]), int(event["value"]))


@dataclass(frozen=True)
class Received:
    """A message and its sender."""

    identity: bytes  # Names the connection.
    user: str | None  # The public key of the connection; None if no key is asked for.
    message: Message | ProtocolError  # An error if the frames hold no message.
    local: bool = True  # Whether the message came from one of the launcher's own actors.


@dataclass(frozen=True)
class Disturbances:
    """How many failures a learner's connections had."""

    failed_handshakes: int = 0
    disconnections: int = 0


class LearnerSocket:
    """The learner's socket: receives from any actor, and sends to one actor by its identity."""

    def __init__(
        self,
        address: str,
        remote: RemoteAccess | None = None,
        warn: Callable[[str], None] = lambda _: None,
        key: LearnerKey | None = None,
    ) -> None:
        """Listen on `address` for the actors of this machine, and on the address in `remote` for remote ones. With the
        run's `key`, actors that only the launcher may start cannot connect without it."""
        self._allowed: AllowedKeys | None = None
        self._authenticator: Any = None
        self._supervised = remote is not None and remote.supervised  # All remote actors then have the run's key.
        self._monitors: dict[bytes, zmq.Socket] = {}
        self._sockets: dict[bytes, zmq.Socket] = {}
        self._poller = zmq.Poller()
        self._address = address
        self._file = Path(address.removeprefix("ipc://")) if address.startswith("ipc://") else None
        try:
            socket = self._router(_LOCAL)
            if key is not None:
                self._monitors[_LOCAL] = _monitor_of(socket, _FAILURES)
                self._ask_for_keys(socket, "run", key.pair, {key.actor})
            self._bind(socket, address)
            if remote is not None:
                self._open_to(remote, warn, key)
        except BaseException:
            self.close()
            raise

    def _open_to(self, remote: RemoteAccess, warn: Callable[[str], None], key: LearnerKey | None) -> None:
        """Listen for remote actors as well."""
        address = remote.address.replace("//localhost:", "//127.0.0.1:")  # ZeroMQ binds no host names.
        socket = self._router(_REMOTE)
        self._monitors[_REMOTE] = _monitor_of(socket, _FAILURES | zmq.EVENT_DISCONNECTED)
        _prepare_for_tcp(socket, address)
        socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE)
        socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        socket.setsockopt(zmq.HANDSHAKE_IVL, round(1000 * HANDSHAKE_SECONDS))
        if remote.supervised:
            assert key is not None
            self._ask_for_keys(socket, "run", key.pair, {key.actor})
        elif remote.keys is not None:
            pair = read_learner(remote.keys)
            self._allowed = AllowedKeys(remote.keys, warn)
            self._ask_for_keys(socket, "remote", pair, self._allowed)
        self._bind(socket, address)

    def _ask_for_keys(self, socket: zmq.Socket, domain: str, pair: KeyPair, allowed: Container[str]) -> None:
        """Refuse peers whose public key is not `allowed`. ZeroMQ asks about keys by their `domain`."""
        self._authenticate(domain, allowed)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
        socket.setsockopt(zmq.ZAP_DOMAIN, domain.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # If the authenticator is missing, refuse all peers.

    def _authenticate(self, domain: str, allowed: Container[str]) -> None:
        from zmq.auth.thread import ThreadAuthenticator  # Imported here: few runs need it, and it loads asyncio.

        class Provider:
            def callback(self, domain: str, key: bytes) -> bool:
                return key.decode() in allowed

        if self._authenticator is None:
            self._authenticator = ThreadAuthenticator(zmq.Context.instance())
            self._authenticator.start()
        self._authenticator.configure_curve_callback(domain, Provider())

    def _router(self, prefix: bytes) -> zmq.Socket:
        """A socket whose peers are known by `prefix` and their identity, which a remote peer may choose.

        ZeroMQ numbers the peers that choose no identity, from a first number that it takes from C's `rand`. It aborts
        the process if a peer has chosen the next number. So `rand` gets a secret seed: no peer can guess the number.
        """
        ctypes.CDLL(None).srand(ctypes.c_uint(int.from_bytes(os.urandom(4))))
        socket = self._sockets[prefix] = _socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # Sending to an actor that has gone is an error, not silence.
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def _bind(self, socket: zmq.Socket, address: str) -> None:
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            remedy = "is another run using it?"
            if error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
                remedy = "give the IP address of one of this machine's interfaces, or 0.0.0.0 for all"
            raise UserError(f"cannot listen on {address}: {error.strerror}; {remedy}") from None

    def listen_anew(self) -> None:
        """Make the socket file again if it was removed and its folder exists. The connections stay as they are."""
        if self._file is not None and not self._file.exists() and self._file.parent.is_dir():
            with suppress(UserError):  # The folder was just removed again; the next look finds that.
                self._bind(self._sockets[_LOCAL], self._address)

    def receive(self, timeout: float) -> Received | None:
        """The next message; None after `timeout` seconds of silence. The learner's own actors come first."""
        ready = dict(self._poller.poll(round(timeout * 1000)))
        if not ready:
            return None
        prefix = _LOCAL if self._sockets[_LOCAL] in ready else _REMOTE
        identity, *frames = self._sockets[prefix].recv_multipart(copy=False)
        local = prefix == _LOCAL or self._supervised
        user = None if local or self._allowed is None else str(frames[0].get("User-Id"))
        try:
            message = from_frames([frame.buffer for frame in frames])
        except ProtocolError as error:
            message = error
        return Received(prefix + identity.bytes, user, message, local)

    def allows(self, user: str | None) -> bool:
        """Whether a peer that connected with this key, or without a key, may still take part."""
        return user is None or self._allowed is None or user in self._allowed

    def send(self, identity: bytes, message: Message) -> bool:
        """Queue `message` for the actor. Returns False if the actor is no longer connected, or its queue is full."""
        return self._send(identity, to_frames(message))

    def reaches(self, identity: bytes) -> bool:
        """Whether the actor is still connected. The actor ignores the empty message that is sent to find out."""
        return self._send(identity, [b""])

    def _send(self, identity: bytes, frames: list) -> bool:
        try:
            self._sockets[identity[:1]].send_multipart([identity[1:], *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def disturbances(self) -> Disturbances:
        """The failures since the last call, of remote actors and of actors that need the run's key."""
        events = [event for monitor in self._monitors.values() for event in _events(monitor)]
        failures = sum(bool(event.kind & _FAILURES) for event in events)
        return Disturbances(failures, len(events) - failures)

    def close(self) -> None:
        """Close the sockets. The last messages (`Stop`) have 200 ms to leave."""
        for prefix, monitor in self._monitors.items():
            self._sockets[prefix].disable_monitor()  # Else ZeroMQ's thread would wait for the monitor's other end.
            monitor.close()
        for socket in self._sockets.values():
            socket.close(linger=200)
        if self._authenticator is not None:
            self._authenticator.stop()


class ActorSocket:
    """An actor's socket. ZeroMQ connects, and connects again, by itself."""

    def __init__(self, address: str, key: ActorKey | None = None) -> None:
        self.connected = True  # Stays True except over TCP, where the monitor's events set it.
        self._address = address
        self._key = key
        self._newly_connected = False
        self._ever_connected = False
        self._failures = 0  # Handshakes that failed one after the other.
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
        """The learner's next message; None after `timeout` seconds of silence, or after an event of the connection.

        Raises `ProtocolError`, and `UserError` if the learner does not let this actor in.
        """
        ready = dict(self._poller.poll(round(timeout * 1000)))
        if self._monitor in ready:
            self._note_events()
        if self._socket not in ready:
            return None
        frames = [frame.buffer for frame in self._socket.recv_multipart(copy=False)]
        return None if frames == [b""] else from_frames(frames)  # An empty message only tests the connection.

    def is_newly_connected(self) -> bool:
        """Whether a connection, the first or a new one, was made since the last call."""
        newly, self._newly_connected = self._newly_connected, False
        return newly

    def send(self, message: Message) -> None:
        """Queue `message`. Drop it if there is no connection, since a later learner would have no use for it.

        Raises `UserError` if the message is too large.
        """
        if not self.connected:
            return
        frames = to_frames(message)
        if (largest := max(map(len, frames))) > MAX_FRAME:
            raise UserError(
                f"an array of {largest:,} bytes is more than the {MAX_FRAME:,} that a message may hold;"
                " choose a smaller --rollout-length or --lane-size"
            )
        with suppress(zmq.Again):  # The learner refused us; the next `receive` says so. Waiting would never end.
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
        key = self._key
        if failure == (zmq.EVENT_HANDSHAKE_FAILED_AUTH, _DENIED):
            raise UserError(f"{learner} does not allow {key}: its line is missing in allowed.toml")
        if failure == (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH):
            remedy = f"takes no keys; leave out --key {key.path}" if key else "asks for a key; give it with --key FILE"
            raise UserError(f"{learner} {remedy}")
        if self._failures >= FAILED_HANDSHAKES and not self._ever_connected:
            cause = f"{key} is one for another learner, it takes no keys" if key else "it asks for a key (--key)"
            raise UserError(f"{learner} ends every connection at once: {cause}, or something else listens there")
