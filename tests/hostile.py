"""A hostile network: strangers attack the port of `--listen --insecure` while a run trains, and its digest is compared.

`python -m tests.hostile --messages 1000000 --seed 0` prints what was sent, what the learner refused and what it took in
memory. Nobody who is granted a lane delivers anything that could pass for experience: that would be believed.
"""

import argparse
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import zmq

sys.path.insert(0, str(Path(__file__).parent))
from gate import iterations
from launching import TIMEOUT, free_port, metrics_of, running, summary_of, train, wait_for

from protocol.messages import PROTOCOL_VERSION, Grant, Hello, Message, Progress, Ready, Stop, Welcome
from protocol.messages import from_frames as received
from protocol.messages import to_frames as sent
from protocol.snapshot import PolicySnapshot
from protocol.trajectory import DIGEST_SIZE, Trajectory

ENV = "benchmarks.environments:Sleep-v0"  # Steps that sleep leave the learner time to handle strangers' messages.
EXPERIMENT = "--num-envs 16 --lane-size 4 --rollout-length 32 --minibatches 2 --epochs 1 --checkpoint-every 50".split()  # noqa: SIM905
STEADY = ["--learning-rate-schedule", "constant"]  # With this, the length of a run does not change its beginning.
FLAGS = ["--env", ENV, "--env-kwargs", "seconds=0.001", *EXPERIMENT, *STEADY]
SOCKETS = 16  # Sockets that send messages at the same time.
CONNECTIONS = 200  # Connections that are open at the same time.
GROWTH = 50  # MB by which the learner's memory may grow during an attack.

Frames = list[bytes]
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)  # ZMTP 3.0


@dataclass(frozen=True)
class Captured:
    """The messages that a stranger receives when it joins and is granted a lane, and those that it might send."""

    welcome: Welcome
    ready: Ready
    grant: Grant
    messages: list[Frames]  # All of these messages, and some others, encoded.


class Stranger:
    """One connection that can send any message."""

    def __init__(self, address: str, seconds: float = TIMEOUT) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, round(1000 * TIMEOUT))  # Messages sent before `close` are still delivered.
        self._socket.setsockopt(zmq.SNDHWM, 100)
        self._socket.setsockopt(zmq.SNDTIMEO, round(1000 * seconds))
        self._socket.connect(address)

    def send(self, frames: Frames) -> None:
        self._socket.send_multipart(frames)

    def say(self, message: Message) -> None:
        self.send(plain(message))

    def hear(self, kind: type) -> Any:
        """Wait for the next message of this kind. Raises `TimeoutError` if none arrives."""
        deadline = time.monotonic() + TIMEOUT
        while self._socket.poll(round(1000 * max(0.0, deadline - time.monotonic()))):
            frames = self._socket.recv_multipart()
            if frames != [b""] and isinstance(message := received(frames), kind):
                return message
        raise TimeoutError(f"no {kind.__name__} came")

    def hush(self) -> None:
        """Discard all messages that have arrived."""
        with suppress(zmq.Again):
            while True:
                self._socket.recv_multipart(zmq.NOBLOCK)

    def close(self) -> None:
        self._socket.close()


def plain(message: Message) -> Frames:
    return [bytes(frame) for frame in sent(message)]


def join(address: str, name: str, fingerprint: dict[str, str], ready: Ready) -> tuple[Stranger, Welcome]:
    """Create a stranger that has joined the run as an honest actor does."""
    stranger = Stranger(address)
    for _ in range(100):  # Repeated until the run's own actors have told the learner the right fingerprint.
        stranger.say(Hello(name, 1, fingerprint))
        if stranger._socket.poll(200):
            break
    welcome = stranger.hear(Welcome)
    stranger.say(ready)
    return stranger, welcome


def delivered(grant: Grant, welcome: Welcome, ready: Ready, **changes: Any) -> Trajectory:
    """A trajectory for `grant`, with the right shapes and made-up values; `changes` replace some of its fields."""
    t, n = welcome.experiment.rollout_length, welcome.experiment.lane_size
    observation, action = ready.spaces.observation, ready.spaces.action
    trajectory = Trajectory(
        run_id=grant.run_id,
        lane=grant.lane,
        rollout_index=grant.rollout_index,
        policy_version=grant.policy_version,
        fencing_token=grant.fencing_token,
        observations=np.zeros((t, n, *observation.shape), observation.dtype),
        last_observations=np.zeros((n, *observation.shape), observation.dtype),
        actions=np.zeros((t, n, *action.shape), action.dtype),
        behaviour_log_probs=np.zeros((t, n), np.float32),
        rewards=np.zeros((t, n), np.float32),
        terminated=np.zeros((t, n), bool),
        truncated=np.zeros((t, n), bool),
        final_observations=np.zeros((0, *observation.shape), observation.dtype),
        episode_returns=np.zeros(0),
        episode_lengths=np.zeros(0, np.int64),
        episode_indices=grant.state.episode_indices if grant.state else np.zeros(n, np.int64),
        restarted=np.zeros(n, bool),
        failed_resets=np.zeros(n, np.int64),
        digests=np.zeros((n, DIGEST_SIZE), np.uint8),
        extras={},
        faults=(),
        fault_count=0,
        moved_global_random=False,
    )
    return replace(trajectory, **changes)


def capture(address: str, fingerprint: dict[str, str], ready: Ready) -> Captured:
    """Join, receive a grant for a lane, and leave; returns the messages seen."""
    stranger, welcome = join(address, "spy", fingerprint, ready)
    with closing(stranger):
        snapshot = stranger.hear(PolicySnapshot)
        grant = stranger.hear(Grant)
    trajectory = delivered(grant, welcome, ready)
    messages = [
        Hello("spy", 1, fingerprint),
        ready,
        welcome,
        snapshot,
        grant,
        trajectory,
        Progress(7, 0.0, 0.0),
        Stop("over"),
    ]
    return Captured(welcome, ready, grant, [plain(message) for message in messages])


def packed(value: Any) -> bytes:
    data = msgpack.packb(value)
    assert data is not None
    return data


def mutated(chance: random.Random, seen: Captured) -> Frames:
    """A valid message with flipped bits, cut or overwritten frames, and frames in another order or repeated."""
    frames = list(chance.choice(seen.messages))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(frames))
        frame = bytearray(frames[at])
        match chance.randrange(5):
            case 0 if frame:
                frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)
            case 1:
                del frame[chance.randrange(len(frame) + 1) :]
            case 2:
                frame[chance.randrange(len(frame) + 1) :] = chance.randbytes(chance.randrange(20))
            case 3:
                chance.shuffle(frames)
                continue
            case _:
                frames.append(bytes(chance.choice(frames)))
                continue
        frames[at] = bytes(frame)
    return frames


def renamed(chance: random.Random, seen: Captured) -> Frames:
    """A hello that may be accepted: with a local actor's name, a new or an invalid name, or another fingerprint."""
    name = chance.choice(["0", "1", "stranger", f"s{chance.randrange(10_000)}", "", "a b", "x" * 65, "٣"])
    fingerprint = received(seen.messages[0]).fingerprint  # pyright: ignore[reportAttributeAccessIssue]
    if chance.random() < 0.5:
        fingerprint = {**fingerprint, chance.choice([*fingerprint, "more"]): chance.choice(["", "x" * 5000, "\x1b[2J"])}
    return plain(Hello(name, chance.randrange(2**31), fingerprint))


def another_version(chance: random.Random, seen: Captured) -> Frames:
    header = msgpack.unpackb(seen.messages[0][0])
    return [packed(header | {"protocol": chance.choice([0, 1, PROTOCOL_VERSION + 1, -1, 2**63, "2", None, [2]])})]


def wrong_lane(chance: random.Random, seen: Captured) -> Frames:
    """A trajectory for a lane, rollout, fencing token or run that this sender was never granted."""
    changes = {
        "lane": chance.choice([-1, 0, 1, 3, 99, 2**62]),
        "fencing_token": chance.randrange(5),
        "rollout_index": chance.choice([-1, 0, 1, 2**62]),
        "policy_version": chance.choice([-1, 0, 1, 2**62]),
        "run_id": chance.choice([seen.grant.run_id, "other"]),
    }
    return plain(delivered(seen.grant, seen.welcome, seen.ready, **changes))


def not_finite(chance: random.Random, seen: Captured) -> Frames:
    shape = (seen.welcome.experiment.rollout_length, seen.welcome.experiment.lane_size)
    rewards = np.full(shape, chance.choice([np.nan, np.inf, -np.inf]), np.float32)
    return plain(delivered(seen.grant, seen.welcome, seen.ready, rewards=rewards))


def array_of(chance: random.Random, seen: Captured) -> Frames:
    """Arrays of objects, with huge shapes, or with references to frames that do not exist."""
    array = {b"nd": True, b"type": "<f8", b"kind": b"", b"shape": [1], b"data": bytes(8)}
    array |= chance.choice(
        [
            {b"type": "|O", b"kind": b"O", b"data": b"\x80\x04N."},
            {b"type": "|O"},
            {b"shape": [2**47, 2**47]},
            {b"shape": [-1]},
            {b"data": chance.randrange(-2, 100)},
            {b"type": "|b1", b"data": b"\x07"},
            {b"shape": [1] * 100},
        ]
    )
    return [packed({"protocol": PROTOCOL_VERSION, "kind": "Trajectory", "rewards": array})]


def bomb(chance: random.Random, seen: Captured) -> Frames:
    """Deeply nested lists and maps, and lengths without the items that should follow."""
    opening = chance.choice([b"\x91", b"\x81\xa1x", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
    return [b"\x81\xa1x" + opening * chance.choice([1, 10, 500, 1000, 1030])]


def heavy(chance: random.Random, seen: Captured) -> Frames:
    """A header with as many empty maps, empty lists or nulls as a header may contain, or more.

    These items take the most memory for their size.
    """
    items = chance.choice([65_000, 65_535, 65_536, 2**20])
    return [b"\x81\xa1x\xdd" + items.to_bytes(4, "big") + chance.choice([b"\x80", b"\x90", b"\xc0"]) * items]


def noise(chance: random.Random, seen: Captured) -> Frames:
    return [chance.randbytes(chance.randrange(200)) for _ in range(chance.randint(1, 5))]


def many_frames(chance: random.Random, seen: Captured) -> Frames:
    return [chance.choice(seen.messages)[0], *[b""] * chance.randrange(100)]


def replayed(chance: random.Random, seen: Captured) -> Frames:
    return chance.choice(seen.messages[2:])  # Without the hello and the ready, which would be valid messages.


KINDS: dict[Callable[[random.Random, Captured], Frames], float] = {
    mutated: 30,
    noise: 20,
    replayed: 15,
    wrong_lane: 10,
    not_finite: 5,
    array_of: 10,
    bomb: 5,
    another_version: 3,
    renamed: 1.5,
    many_frames: 0.5,
    heavy: 0.02,
}


def send_messages(
    strangers: list[Stranger], address: str, seen: Captured, count: int, chance: random.Random
) -> Counter[str]:
    """Send `count` messages over random connections, some of which are replaced; returns the number of each kind."""
    sent = Counter()
    for _ in range(count):
        (make,) = chance.choices(list(KINDS), list(KINDS.values()))
        at = chance.randrange(len(strangers))
        strangers[at].hush()
        strangers[at].send(make(chance, seen))
        sent[make.__name__] += 1
        if chance.random() < 1e-4:
            strangers[at].close()
            strangers[at] = Stranger(address)
    return sent


def hold_lanes(address: str, seen: Captured, times: int, chance: random.Random) -> Counter[str]:
    """Join as an honest actor, take a lane, and answer with an invalid trajectory for it or not at all, then leave."""
    fingerprint = received(seen.messages[0]).fingerprint  # pyright: ignore[reportAttributeAccessIssue]
    t, n = seen.welcome.experiment.rollout_length, seen.welcome.experiment.lane_size
    wrongs: list[dict[str, np.ndarray]] = [
        {"rewards": np.full((t, n), np.nan, np.float32)},
        {"rewards": np.zeros((n, t), np.float32)},
        {"actions": np.full((t, n), 2**40)},
        {"terminated": np.ones((t, n), bool)},
        {"episode_indices": np.full(n, -1)},
        {"digests": np.zeros((n, 1), np.uint8)},
    ]
    done = Counter()
    for i in range(times):
        stranger, welcome = join(address, f"holder{i}", fingerprint, seen.ready)
        with closing(stranger):
            try:
                grant = stranger.hear(Grant)
            except TimeoutError:
                break  # The run is nearly over.
            wrong = chance.choice([*wrongs, None])
            if wrong is not None:
                stranger.say(delivered(grant, welcome, seen.ready, **wrong))
                time.sleep(0.2)  # The lane still belongs to this stranger when the trajectory arrives.
            done["left with a lane" if wrong is None else "nonsense for a lane"] += 1
    return done


def connect_raw(port: int, count: int, chance: random.Random) -> Counter[str]:
    """Open connections that send other protocols, half of ZMTP, nothing, or single bytes slowly.

    At most `CONNECTIONS` of them are open at a time. Returns the number of each kind.
    """
    held: list[socket.socket] = []
    done = Counter()
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        held.append(connection)
        kind, data = chance.choice(
            [
                ("silence", b""),
                ("HTTP", b"GET / HTTP/1.1\r\nHost: learner\r\n\r\n"),
                ("noise", chance.randbytes(200)),
                ("half a greeting", GREETING[: chance.randrange(1, 64)]),
                ("a greeting alone", GREETING),
                ("a handshake of 2^62 bytes", GREETING + b"\x06" + struct.pack(">Q", 2**62)),
                ("a handshake of 1 GB", GREETING + b"\x06" + struct.pack(">Q", 2**30 - 1) + bytes(1000)),
                ("a handshake of noise", GREETING + b"\x04\x20" + chance.randbytes(32)),
                ("a frame of 1 TB", raw_dealer() + b"\x02" + struct.pack(">Q", 2**40)),
                ("a frame of 1 GB", raw_dealer() + b"\x02" + struct.pack(">Q", 2**30 - 1) + bytes(1000)),
                ("a message without an end", raw_dealer() + b"\x01\x01x" * 100),
                ("an identity", raw_dealer(b"\0" + chance.randbytes(4)) + b"\x00\x03abc"),
            ]
        )
        done[kind] += 1
        with suppress(OSError):  # The learner may have closed the connection already.
            send_raw(connection, data)
        while len(held) > CONNECTIONS:
            one = held.pop(chance.randrange(len(held)))
            with suppress(OSError):
                one.send(b"\0")  # One more byte, long after the others.
            one.close()
    for one in held:
        one.close()
    return done


def send_raw(connection: socket.socket, data: bytes) -> None:
    """Send `data` as a peer would: data that arrives together with the greeting is lost by ZeroMQ. Raises `OSError`."""
    if len(data) <= len(GREETING) or not data.startswith(GREETING):
        connection.sendall(data)
        return
    connection.sendall(GREETING)
    for _ in range(len(GREETING)):  # Read the learner's greeting.
        if not connection.recv(1):
            return
    connection.sendall(data[len(GREETING) :])


def raw_dealer(identity: bytes = b"") -> bytes:
    """The first bytes that a DEALER socket sends: greeting and READY command."""
    properties = b"".join(
        bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
        for name, value in ((b"Socket-Type", b"DEALER"), (b"Identity", identity))
    )
    command = b"\x05READY" + properties
    return GREETING + b"\x04" + bytes([len(command)]) + command


@dataclass
class Memory:
    """The learner's resident memory, measured from this process."""

    process: psutil.Process
    first: int = 0  # Bytes, before the attack.
    most: int = 0

    def watch(self, over: threading.Event) -> None:
        self.first = self.most = self.process.memory_info().rss
        while not over.wait(0.1):
            with suppress(psutil.Error):
                self.most = max(self.most, self.process.memory_info().rss)

    @property
    def growth(self) -> float:
        """Growth of the memory in MB."""
        return (self.most - self.first) / 1e6


@dataclass(frozen=True)
class Outcome:
    """The result of a run that was attacked."""

    summary: dict[str, Any]
    sent: Counter[str]
    connections: Counter[str]
    held: Counter[str]
    seconds: float  # Duration of the attack.
    growth: float  # MB by which the learner's memory grew.
    iterations: int  # Iterations completed during the attack.


def attack(run_dir: Path, messages: int, connections: int, holders: int, seed: int) -> Outcome:
    """Train in `run_dir`, attack the run from the tenth iteration on, and stop it once the attack is over."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    listening = ["--actors", 2, "--listen", address, "--insecure", "--step-timeout", 10]
    with running(run_dir, *FLAGS, *listening, "--total-steps", 10**9) as process:
        output: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: output.extend(process.stdout or ()), daemon=True)
        reader.start()
        wait_for(lambda: iterations(run_dir) >= 10, process)
        memory = Memory(learner_of(process))
        over = threading.Event()
        watch = threading.Thread(target=memory.watch, args=(over,), daemon=True)
        watch.start()
        seen = capture(address, own_fingerprint(), own_ready())
        found: dict[str, Counter[str]] = {}
        chance = random.Random(seed)
        works = {
            "connections": lambda: connect_raw(port, connections, random.Random(seed + 1)),
            "held": lambda: hold_lanes(address, seen, holders, random.Random(seed + 2)),
        }
        threads = [
            threading.Thread(target=lambda n=n, w=w: found.update({n: w()}), daemon=True) for n, w in works.items()
        ]
        for thread in threads:
            thread.start()
        began, before = time.monotonic(), iterations(run_dir)
        strangers = [Stranger(address) for _ in range(SOCKETS)]
        sent = send_messages(strangers, address, seen, messages, chance)
        for thread in threads:
            thread.join()
        refused = -1
        while refused < (refused := refused_so_far(run_dir)):  # Until no more queued messages arrive.
            attacked_until = iterations(run_dir)
            wait_for(lambda: iterations(run_dir) >= attacked_until + 10, process)  # noqa: B023 - the run goes on
        seconds, during = time.monotonic() - began, iterations(run_dir) - before
        for stranger in strangers:
            stranger.close()
        over.set()
        watch.join()
        process.terminate()
        code = process.wait(TIMEOUT)
        reader.join()
    assert code == 0, "".join(output)
    assert summary_of(run_dir)["learner_restarts"] == 0, "".join(output)
    assert len(output) < 500 + 10 * seconds, "the terminal was flooded"
    return Outcome(summary_of(run_dir), sent, found["connections"], found["held"], seconds, memory.growth, during)


def own_fingerprint() -> dict[str, str]:
    from actors.fingerprint import fingerprint

    return fingerprint() | {"hashing": "fixed"}  # An actor always has this value; this process may have another.


def own_ready() -> Ready:
    from actors.environment import make_environment
    from actors.fingerprint import libraries_of
    from actors.spaces import describe_spaces
    from protocol.experiment import Experiment

    experiment = Experiment(env=ENV)
    env = make_environment(experiment)
    with closing(env):
        return Ready(describe_spaces(env, experiment), libraries_of(env))


def learner_of(process: subprocess.Popen[str]) -> psutil.Process:
    (learner,) = [child for child in psutil.Process(process.pid).children() if "learner" in child.cmdline()]
    return learner


def refused_so_far(run_dir: Path) -> int:
    """The number of messages refused so far, including trajectories dropped because they were not granted."""
    return refused_in(metrics_of(run_dir)[-1])


def refused_in(row: dict[str, Any]) -> int:
    """The same number from a row of metrics or from the summary."""
    steps = 4 * 32  # Env-steps of a lane in a rollout.
    return sum(row["refused"].values()) + row["samples"]["dropped"].get("stale", 0) // steps


def main() -> int:
    """Attack a run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=10_000, help="connections that send no ZMTP, or half of it")
    parser.add_argument(
        "--holders", type=int, default=200, help="strangers that take a lane and send invalid trajectories"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        counts = arguments.messages, arguments.connections, arguments.holders
        outcome = attack(Path(name) / "run", *counts, arguments.seed)
        equal = outcome.summary["weights_digest"] == undisturbed(Path(name) / "undisturbed", outcome.summary)
    total = outcome.sent.total()
    print(f"messages     {total:,} in {outcome.seconds:.0f} s, {total / outcome.seconds:,.0f} a second")
    print(f"             {dict(outcome.sent)}")
    print(f"connections  {outcome.connections.total():,}  {dict(outcome.connections)}")
    print(f"held lanes   {dict(outcome.held)}")
    print(f"training     {outcome.iterations} iterations meanwhile")
    print(f"refused      {refused_in(outcome.summary):,}  {outcome.summary['refused']}")
    print(f"dropped      {outcome.summary['samples']['dropped']} env-steps")
    print(f"memory       learner grew by {outcome.growth:.1f} MB (at most {GROWTH})")
    print(f"digest       {'equal' if equal else 'NOT EQUAL'}")
    return 0 if equal and outcome.growth < GROWTH else 1


def undisturbed(run_dir: Path, attacked: dict[str, Any]) -> str:
    """Train as many steps as the run with summary `attacked` did, without an attack; returns the digest."""
    return train(run_dir, *FLAGS, "--in-process", "--actors", 4, "--total-steps", attacked["env_steps"])[
        "weights_digest"
    ]


if __name__ == "__main__":
    sys.exit(main())
