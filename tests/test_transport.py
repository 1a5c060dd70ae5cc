"""Messages between sockets over every transport, keys, and the handling of invalid messages."""

import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import zmq
from launching import TIMEOUT as SECONDS
from launching import free_port
from making import assert_same_bits

from protocol import transport
from protocol.errors import ProtocolError, UserError
from protocol.experiment import Experiment
from protocol.keys import ActorKey, KeyPair, RunKeys, actor_key, learner_key, make_keys, read_actor
from protocol.messages import Hello, Message, Refusal, Stop, Welcome, to_frames
from protocol.remote import RemoteAccess
from protocol.snapshot import PolicySnapshot
from protocol.trajectory import DIGEST_SIZE, Trajectory
from protocol.transport import ActorSocket, LearnerSocket, Received

TRANSPORTS = ["inproc", "ipc", "tcp"]


@pytest.fixture(params=TRANSPORTS)
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "inproc":
        yield f"inproc://{uuid.uuid4().hex}"
    elif request.param == "tcp":
        yield free_tcp_address()
    else:
        folder = tempfile.mkdtemp(dir="/tmp")
        yield f"ipc://{folder}/s"
        shutil.rmtree(folder)


@pytest.fixture
def learner(address: str) -> Iterator[LearnerSocket]:
    with closing(LearnerSocket(address)) as learner:
        yield learner


@pytest.fixture
def actor(address: str, learner: LearnerSocket) -> Iterator[ActorSocket]:
    with closing(ActorSocket(address)) as actor:
        yield actor


@pytest.fixture
def stranger(address: str, learner: LearnerSocket) -> Iterator[zmq.Socket]:
    with closing(zmq.Context.instance().socket(zmq.DEALER)) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(address)
        yield stranger


def free_tcp_address() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


def hello(actor: int = 0) -> Hello:
    return Hello(str(actor), 1234, {"numpy": "2.0"})


def connect(actor: ActorSocket) -> None:
    """Wait until `actor` is connected: without a connection, TCP sends nothing."""
    deadline = time.monotonic() + SECONDS
    while not actor.connected:
        assert time.monotonic() < deadline
        assert actor.receive(0.1) is None


def send(actor: ActorSocket, message: Message) -> None:
    connect(actor)
    actor.send(message)


def receive(learner: LearnerSocket) -> Received:
    received = learner.receive(SECONDS)
    assert received is not None
    return received


def test_a_hello_arrives_with_an_identity_and_the_answer_reaches_that_actor(
    address: str, learner: LearnerSocket, actor: ActorSocket
) -> None:
    with closing(ActorSocket(address)) as other:
        send(actor, hello(0))
        send(other, hello(1))
        identities = {}
        for _ in range(2):
            received = receive(learner)
            assert isinstance(received.message, Hello)
            identities[received.message.actor] = received.identity
        assert len(set(identities.values())) == 2
        assert learner.send(identities["1"], Refusal("you are one"))
        assert learner.send(identities["0"], Welcome("run", Experiment()))
        assert actor.receive(SECONDS) == Welcome("run", Experiment())
        assert other.receive(SECONDS) == Refusal("you are one")
        assert actor.receive(0.01) is None and other.receive(0.01) is None


def test_a_trajectory_of_four_megabytes_arrives_equal(learner: LearnerSocket, actor: ActorSocket) -> None:
    t, n = 8, 4
    random = np.random.default_rng(0)
    sent = Trajectory(
        run_id="run",
        lane=1,
        rollout_index=2,
        policy_version=1,
        fencing_token=3,
        observations=random.standard_normal((t, n, 2**15), np.float32),
        last_observations=random.standard_normal((n, 2**15), np.float32),
        actions=random.integers(0, 3, (t, n)),
        behaviour_log_probs=random.standard_normal((t, n), np.float32),
        rewards=random.standard_normal((t, n), np.float32),
        terminated=np.zeros((t, n), bool),
        truncated=np.zeros((t, n), bool),
        final_observations=np.zeros((0, 2**15), np.float32),
        episode_returns=np.zeros(0),
        episode_lengths=np.zeros(0, np.int64),
        episode_indices=np.zeros(n, np.int64),
        restarted=np.zeros(n, bool),
        failed_resets=np.zeros(n, np.int64),
        digests=np.zeros((n, DIGEST_SIZE), np.uint8),
        extras={
            "initial_hidden_state": random.standard_normal((n, 3), np.float32),
            "last_hidden_state": random.standard_normal((n, 3), np.float32),
        },
        faults=(),
        fault_count=0,
        moved_global_random=False,
    )
    assert sent.observations.nbytes == 4 * 2**20
    send(actor, sent)
    received = receive(learner).message
    assert isinstance(received, Trajectory)
    assert_same_bits(received, sent)


def test_messages_of_one_actor_arrive_in_order(learner: LearnerSocket, actor: ActorSocket) -> None:
    connect(actor)
    for i in range(100):
        actor.send(hello(i))
    assert [receive(learner).message for _ in range(100)] == [hello(i) for i in range(100)]


GARBAGE = [[b""], [b"GET / HTTP/1.1"], [b"\x80"], [b"\x81", b"\x01"], [b"", b"", b""], [bytes(10_000)] * 40]


def test_garbage_is_handed_over_as_a_fault_of_its_sender_and_the_socket_goes_on(
    learner: LearnerSocket, actor: ActorSocket, stranger: zmq.Socket
) -> None:
    senders = set()
    for frames in GARBAGE:
        stranger.send_multipart(frames)
        received = receive(learner)
        assert isinstance(received.message, ProtocolError)
        senders.add(received.identity)
    (identity,) = senders
    send(actor, hello())
    other = receive(learner)
    assert other.message == hello() and other.identity != identity
    assert learner.send(identity, Refusal("garbage"))
    assert stranger.poll(round(SECONDS * 1000))
    assert stranger.recv_multipart() == [bytes(frame) for frame in to_frames(Refusal("garbage"))]


def test_garbage_from_a_learner_is_a_protocol_error(address: str) -> None:
    with closing(zmq.Context.instance().socket(zmq.DEALER)) as impostor:
        impostor.setsockopt(zmq.LINGER, 0)
        impostor.bind(address)
        with closing(ActorSocket(address)) as actor:
            connect(actor)
            impostor.send_multipart([b"\x80"])
            with pytest.raises(ProtocolError):
                actor.receive(SECONDS)
            impostor.send_multipart([bytes(frame) for frame in to_frames(Stop("over"))])
            assert actor.receive(SECONDS) == Stop("over")


def test_sending_to_an_unknown_actor_is_no_error_but_false(learner: LearnerSocket) -> None:
    assert learner.send(b"lnobody", Stop("over")) is False


def test_what_the_learners_own_actors_say_comes_first_and_is_known_as_theirs() -> None:
    """This holds no matter how much others have sent before."""
    address, open_to_all = f"inproc://{uuid.uuid4().hex}", free_tcp_address()
    with (
        closing(LearnerSocket(address, RemoteAccess(open_to_all, None))) as learner,
        closing(zmq.Context.instance().socket(zmq.DEALER)) as stranger,
        closing(ActorSocket(address)) as actor,
    ):
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.setsockopt(zmq.ROUTING_ID, b"chosen")
        stranger.connect(open_to_all)
        for _ in range(500):
            stranger.send(b"garbage")
        first = receive(learner)
        assert not first.local and learner.send(first.identity, Refusal("garbage"))
        for _ in range(10):
            send(actor, hello())  # Over inproc, the message has arrived when this returns.
            received = receive(learner)
            assert received.message == hello() and received.local


def test_an_actor_that_has_gone_becomes_unknown(address: str, learner: LearnerSocket) -> None:
    with closing(ActorSocket(address)) as actor:
        send(actor, hello())
        identity = receive(learner).identity
        assert learner.send(identity, Stop("over"))
    deadline = time.monotonic() + SECONDS
    while learner.send(identity, Stop("over")):
        assert time.monotonic() < deadline
        learner.receive(0.01)


@pytest.mark.parametrize("transport", ["inproc", "tcp"])
def test_a_used_address_is_a_mistake_of_the_user_that_names_it(transport: str) -> None:
    address = free_tcp_address() if transport == "tcp" else "inproc://used"
    with closing(LearnerSocket(address)), pytest.raises(UserError, match=address):
        LearnerSocket(address)
    with closing(LearnerSocket(free_tcp_address())):
        pass


@pytest.mark.parametrize("address", ["nonsense", "nonsense://x", "ipc:///nowhere/at/all"])
def test_an_impossible_address_is_a_mistake_of_the_user_that_names_it(address: str) -> None:
    with pytest.raises(UserError, match=address):
        LearnerSocket(address)


def test_an_actor_cannot_connect_to_nonsense() -> None:
    with pytest.raises(UserError, match="nonsense://x"):
        ActorSocket("nonsense://x")


def test_silence_is_none_after_the_timeout(learner: LearnerSocket, actor: ActorSocket) -> None:
    connect(actor)
    for end in (learner, actor):
        started = time.monotonic()
        assert end.receive(0.05) is None
        assert time.monotonic() - started > 0.04


def test_an_actor_may_connect_before_the_learner_listens(address: str) -> None:
    with closing(ActorSocket(address)) as actor:
        actor.send(hello())
        with closing(LearnerSocket(address)) as learner:
            send(actor, hello())
            assert receive(learner).message == hello()


@contextmanager
def slow_line(address: str, bytes_per_second: float) -> Iterator[str]:
    """Yield an address that forwards to `address` at this rate, and forwards answers without a delay."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = address.removeprefix("tcp://").split(":")

        def carry() -> None:
            with suppress(OSError):  # The test is over.
                while True:
                    near, _ = server.accept()
                    far = socket.create_connection((host, int(port)))
                    Thread(target=pump, args=(near, far, bytes_per_second), daemon=True).start()
                    Thread(target=pump, args=(far, near, float("inf")), daemon=True).start()

        def pump(source: socket.socket, sink: socket.socket, rate: float) -> None:
            with closing(sink), suppress(OSError):
                while data := source.recv(2**14):
                    time.sleep(len(data) / rate)
                    sink.sendall(data)

        carrier = Thread(target=carry, daemon=True)
        carrier.start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
    carrier.join(SECONDS)


@pytest.mark.slow
def test_an_array_may_take_longer_than_an_absence_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other machine's operating system answers probes, even while a large message is on its way."""
    for name in ("PROBE_SECONDS", "PROBES", "ABSENCE_SECONDS"):
        monkeypatch.setattr(transport, name, 1)
    zeros = np.zeros(2**20, np.float32)
    remote = free_tcp_address()
    with (
        closing(LearnerSocket("inproc://local", RemoteAccess(remote, None))) as learner,
        slow_line(remote, bytes_per_second=zeros.nbytes / 3) as address,
        closing(ActorSocket(address)) as actor,
    ):
        send(actor, PolicySnapshot(0, {"w": zeros}, zeros[:1], zeros[:1]))
        received = receive(learner).message
        assert isinstance(received, PolicySnapshot)
        assert learner.disturbances().disconnections == 0


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", ["one", "two"])
    return tmp_path / "keys"


def key_of_another_learner(keys: Path) -> ActorKey:
    (path,) = make_keys(keys.parent / "others", ["one"])
    return read_actor(path)


def unlisted_key(keys: Path) -> ActorKey:
    return replace(read_actor(keys / "one.key"), pair=KeyPair.fresh())


def no_key(keys: Path) -> None:
    return None


def allowed_key(keys: Path) -> ActorKey:
    return read_actor(keys / "one.key")


def assert_kept_out(learner: LearnerSocket, address: str, key: ActorKey | None) -> None:
    """An actor with this key fails in the handshake; the learner receives nothing from it, and sends it nothing."""
    failed = 0
    deadline = time.monotonic() + SECONDS
    with closing(ActorSocket(address, key)) as actor:
        while not failed:
            assert time.monotonic() < deadline
            with suppress(UserError):  # The actor may learn of the refusal, but need not.
                assert actor.receive(0.01) is None
            assert not actor.connected
            actor.connected = True  # Pretend that the actor was refused only after it had connected.
            actor.send(hello())
            actor.connected = False
            assert learner.receive(0.01) is None
            failed = learner.disturbances().failed_handshakes
        assert learner.receive(0.2) is None


@pytest.mark.parametrize("key_from", [key_of_another_learner, no_key, unlisted_key])
def test_with_a_wrong_key_or_none_or_an_unknown_one_nobody_gets_in(
    keys: Path, key_from: Callable[[Path], ActorKey | None]
) -> None:
    address = free_tcp_address()
    with closing(LearnerSocket("inproc://local", RemoteAccess(address, keys))) as learner:
        assert_kept_out(learner, address, key_from(keys))
        with closing(ActorSocket(address, allowed_key(keys))) as actor:
            send(actor, hello())
            assert receive(learner).message == hello()


def test_a_socket_file_that_was_removed_is_made_again_and_connections_stay() -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    address = f"ipc://{folder}/s"
    with closing(LearnerSocket(address)) as learner, closing(ActorSocket(address)) as before:
        send(before, hello(0))
        first = receive(learner)
        shutil.rmtree(folder)
        learner.listen_anew()  # This does nothing yet, because another process has to make the folder.
        folder.mkdir()
        learner.listen_anew()
        assert (folder / "s").exists()
        with closing(ActorSocket(address)) as after:
            send(after, hello(1))
            assert receive(learner).message == hello(1)
        send(before, hello(2))
        again = receive(learner)
        assert (again.identity, again.message) == (first.identity, hello(2))
    shutil.rmtree(folder)


def test_with_a_runs_key_its_own_address_is_open_to_nobody_else() -> None:
    keys, others = RunKeys.fresh(), RunKeys.fresh()
    own, remote = free_tcp_address(), free_tcp_address()
    key, another = (actor_key(each.words_for_actor()) for each in (keys, others))
    unlisted = replace(key, pair=KeyPair.fresh())
    access = RemoteAccess(remote, None, supervised=True)
    with closing(LearnerSocket(own, access, key=learner_key(keys.words_for_learner()))) as learner:
        for address in (own, remote):
            for stranger in (None, another, unlisted):
                assert_kept_out(learner, address, stranger)
            with closing(ActorSocket(address, key)) as actor:
                send(actor, hello())
                received = receive(learner)
                assert (received.message, received.local, received.user) == (hello(), True, None)


def test_without_an_authenticator_nobody_gets_in(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds even for an allowed key. By itself, ZeroMQ accepts any peer that knows the learner's public key."""
    monkeypatch.setattr(LearnerSocket, "_authenticate", lambda *_: None)
    address = free_tcp_address()
    with closing(LearnerSocket("inproc://local", RemoteAccess(address, keys))) as learner:
        assert_kept_out(learner, address, allowed_key(keys))


def test_a_message_comes_with_the_key_of_its_connection(keys: Path) -> None:
    address = free_tcp_address()
    with (
        closing(LearnerSocket("inproc://local", RemoteAccess(address, keys))) as learner,
        closing(ActorSocket("inproc://local")) as local,
    ):
        send(local, hello(0))
        assert receive(learner).user is None
        for name in ("one", "two"):
            key = read_actor(keys / f"{name}.key")
            with closing(ActorSocket(address, key)) as actor:
                send(actor, hello(1))
                assert receive(learner).user == key.pair.public


def test_who_loses_the_key_while_connected_is_no_longer_allowed(keys: Path) -> None:
    address = free_tcp_address()
    with (
        closing(LearnerSocket("inproc://local", RemoteAccess(address, keys))) as learner,
        closing(ActorSocket(address, allowed_key(keys))) as actor,
    ):
        send(actor, hello())
        user = receive(learner).user
        assert learner.allows(user)
        (keys / "allowed.toml").write_text("# nobody\n")
        assert not learner.allows(user) and learner.allows(None)
