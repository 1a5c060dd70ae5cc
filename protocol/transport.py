"""Messages over ZeroMQ: a ROUTER in the learner for its own actors and one for remote ones, a DEALER in each actor.

Flow is controlled by grants (an actor has only what it was granted), so the queues between processes of one machine
need no high-water mark. Those of remote actors have one that only a peer which does not keep to its grants can reach.
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

MAX_FRAME = 2**30  # One array may have so many bytes. A rollout of images may take tens of MB.
SEND_QUEUE = 1024  # So many messages may wait for a remote actor: 256 lanes have two rollouts each under way.
RECEIVE_QUEUE = 64  # So many messages of a remote actor wait here. More wait on its own machine.
HANDSHAKE_SECONDS = 5.0  # A connection that says nothing for so long is closed.
PROBE_SECONDS = 10  # That often one looks whether the other machine is still there.
PROBES = 2  # It is gone when it has not answered so often.
ABSENCE_SECONDS = 30  # A machine that has not answered for so long is gone. Linux gives up what was sent to it then.
CONNECTING_SECONDS = 5.0  # A connection that does not come about is tried anew after so long.
FAILED_HANDSHAKES = 5  # So many failures in a row are no accident, where no handshake has succeeded.

_LOCAL, _REMOTE = b"l", b"r"  # The learner puts one of them before a peer's identity.
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
    """Options of the connections made from now on.

    The system looks whether the other machine is there. ZeroMQ's heartbeats would do so, too, but version 4.3.5 aborts
    the process where one falls due for a peer that has filled its queue and gone (`!_io_error`, in out_event).
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
    """Where events of these kinds arrive. No mark limits them: at it, ZeroMQ's thread would wait, and all with it."""
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
    """A message, and who sent it."""

    identity: bytes  # Names the connection.
    user: str | None  # the public key that the connection was opened with; None where none is asked for
    message: Message | ProtocolError  # The error, where it is no message.
    local: bool = True  # whether it came over the learner's own address, which only its own actors are told


@dataclass(frozen=True)
class Disturbances:
    """The events of a learner's connections."""

    failed_handshakes: int = 0
    disconnections: int = 0


class LearnerSocket:
    """The learner's end: receives from any actor, sends to one by its identity."""

    def __init__(
        self,
        address: str,
        remote: RemoteAccess | None = None,
        warn: Callable[[str], None] = lambda _: None,
        key: LearnerKey | None = None,
    ) -> None:
        """Listen on `address` for the actors of this machine, and for remote ones where `remote` says. With the run's
        `key`, nobody is let in without it whom the launcher should have started."""
        self._allowed: AllowedKeys | None = None
        self._authenticator: Any = None
        self._supervised = remote is not None and remote.supervised  # all then have one key
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
        address = remote.address.replace("//localhost:", "//127.0.0.1:")  # ZeroMQ binds no names
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
        """Let nobody in whose public key is not `allowed`; ZeroMQ asks about keys by their `domain`."""
        self._authenticate(domain, allowed)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
        socket.setsockopt(zmq.ZAP_DOMAIN, domain.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # If the authenticator is missing, refuse everybody.

    def _authenticate(self, domain: str, allowed: Container[str]) -> None:
        from zmq.auth.thread import ThreadAuthenticator  # here: few runs need it, and it brings asyncio

        class Provider:
            def callback(self, domain: str, key: bytes) -> bool:
                return key.decode() in allowed

        if self._authenticator is None:
            self._authenticator = ThreadAuthenticator(zmq.Context.instance())
            self._authenticator.start()
        self._authenticator.configure_curve_callback(domain, Provider())

    def _router(self, prefix: bytes) -> zmq.Socket:
        """A socket whose peers are known by `prefix` and their identity, which a remote one may choose.

        ZeroMQ numbers those that choose none, from a number on that it takes from C's `rand`, and aborts the process
        where one of them has chosen the next number. So nobody else may know how `rand` goes on.
        """
        ctypes.CDLL(None).srand(ctypes.c_uint(int.from_bytes(os.urandom(4))))
        socket = self._sockets[prefix] = _socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to an actor that has gone is an error, not silence
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
        """Make the socket file again if it was removed, and its folder is there; the connections stay as they are."""
        if self._file is not None and not self._file.exists() and self._file.parent.is_dir():
            with suppress(UserError):  # it has just been removed again: the next look finds that
                self._bind(self._sockets[_LOCAL], self._address)

    def receive(self, timeout: float) -> Received | None:
        """The next message, those of the learner's own actors first; None after `timeout` seconds of silence."""
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
            self._sockets[identity[:1]].send_multipart([identity[1:], *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def disturbances(self) -> Disturbances:
        """The events since the last call, for remote actors and for actors that need the run's key."""
        events = [event for monitor in self._monitors.values() for event in _events(monitor)]
        failures = sum(bool(event.kind & _FAILURES) for event in events)
        return Disturbances(failures, len(events) - failures)

    def close(self) -> None:
        """Close; what was sent last (the word to stop) has 200 ms to leave."""
        for prefix, monitor in self._monitors.items():
            self._sockets[prefix].disable_monitor()  # ZeroMQ's thread would wait for the other end.
            monitor.close()
        for socket in self._sockets.values():
            socket.close(linger=200)
        if self._authenticator is not None:
            self._authenticator.stop()


class ActorSocket:
    """An actor's end. ZeroMQ connects, and connects again, by itself."""

    def __init__(self, address: str, key: ActorKey | None = None) -> None:
        self.connected = True  # Only TCP tells whether it is.
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
        key = self._key
        if failure == (zmq.EVENT_HANDSHAKE_FAILED_AUTH, _DENIED):
            raise UserError(f"{learner} does not allow {key}: its line is missing in allowed.toml")
        if failure == (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH):
            remedy = f"takes no keys; leave out --key {key.path}" if key else "asks for a key; give it with --key FILE"
            raise UserError(f"{learner} {remedy}")
        if self._failures >= FAILED_HANDSHAKES and not self._ever_connected:
            cause = f"{key} is one for another learner, it takes no keys" if key else "it asks for a key (--key)"
            raise UserError(f"{learner} ends every connection at once: {cause}, or something else listens there")
