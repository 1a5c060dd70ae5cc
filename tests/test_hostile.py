"""Strangers at an open port change nothing, and invalid files written by strangers give one clear line."""

import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import zmq
from gate import Gate, iterations
from hostile import FLAGS, GROWTH, attack, connect_raw, own_fingerprint, plain, raw_dealer, send_raw, undisturbed
from launching import (
    ROOT,
    SMALL,
    TIMEOUT,
    children,
    free_port,
    launch,
    metrics_of,
    output_of,
    running,
    stop,
    summary_of,
    train,
    wait_for,
)
from marks import slow

from protocol.keys import make_keys, read_actor
from protocol.messages import Hello
from protocol.transport import ActorSocket
from rundir.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, write_checkpoint


@pytest.mark.slow
def test_strangers_at_an_open_port_change_nothing(tmp_path: Path) -> None:
    """A short version of `python -m tests.hostile`."""
    outcome = attack(tmp_path / "run", messages=3000, connections=100, holders=3, seed=0)
    assert outcome.summary["weights_digest"] == undisturbed(tmp_path / "undisturbed", outcome.summary)
    assert outcome.summary["refused"].keys() >= {"malformed", "wrong kind", "name", "handshake"}
    assert outcome.summary["samples"]["dropped"]["stale"] > 0
    assert outcome.growth < GROWTH


# glibc's numbers, from which the identities given by the first two sockets would be counted.
NUMBERS_OF_AN_UNSEEDED_RAND = (0x6B8B4567, 0xE43C9869)
LISTEN = """
import sys
from protocol.remote import RemoteAccess
from protocol.transport import LearnerSocket
socket = LearnerSocket(f"ipc://{sys.argv[1]}", RemoteAccess(f"tcp://127.0.0.1:{sys.argv[2]}", None))
while True:
    if received := socket.receive(1):
        print(received.message, flush=True)
"""


def test_nobody_can_choose_the_identity_that_the_next_peer_is_given() -> None:
    """ZeroMQ aborts the process of a ROUTER that is about to assign an identity which a peer has chosen before."""
    port, folder = free_port(), tempfile.mkdtemp(dir="/tmp")
    words = [sys.executable, "-c", LISTEN, f"{folder}/s", str(port)]
    with ExitStack() as stack:
        learner = stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        stack.callback(learner.kill)
        stack.callback(shutil.rmtree, folder)
        assert learner.stdout is not None

        def say(identity: bytes = b"") -> None:
            connection = stack.enter_context(connected(port))
            send_raw(connection, raw_dealer(identity) + b"\x00\x03abc")
            assert learner.stdout is not None
            assert learner.stdout.readline(), "the learner was aborted"

        for start in NUMBERS_OF_AN_UNSEEDED_RAND:
            for number in range(start, start + 8):
                say(b"\0" + number.to_bytes(4))
        for _ in range(4):
            say()


def connected(port: int) -> socket.socket:
    """A connection to this port of this machine; waits until a process listens."""
    found: list[socket.socket] = []

    def connect() -> bool:
        with suppress(ConnectionRefusedError):
            found.append(socket.create_connection(("127.0.0.1", port), TIMEOUT))
        return bool(found)

    wait_for(connect)
    return found[0]


@pytest.mark.slow
def test_without_a_key_nobody_is_heard(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o700)
    make_keys(tmp_path / "keys", ["one"])
    (other,) = make_keys(tmp_path / "others", ["one"])
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    run_dir = tmp_path / "run"
    listening = ["--listen", address, "--keys", tmp_path / "keys", "--actors", 2, "--total-steps", 10**9]
    with running(run_dir, *FLAGS, *listening) as process:
        wait_for(lambda: iterations(run_dir) >= 2, process)
        strangers = [closing(ActorSocket(address, key)) for key in (None, read_actor(other)) for _ in range(10)]
        with ExitStack() as stack:
            for stranger in strangers:
                stack.enter_context(stranger)
            connect_raw(port, 300, random.Random(0))
            wait_for(lambda: metrics_of(run_dir)[-1]["refused"].get("handshake", 0) >= 100, process)
        stop(process)
    summary = summary_of(run_dir)
    assert summary["refused"].keys() == {"handshake"} and summary["refused"]["handshake"] >= 100
    assert summary["weights_digest"] == undisturbed(tmp_path / "undisturbed", summary)


@pytest.mark.slow
def test_strangers_at_the_port_of_the_runs_own_actors_are_not_heard(tmp_path: Path) -> None:
    """With `--transport tcp`, any user of this machine can connect; here without a key, claiming to be actor 0."""
    run_dir = tmp_path / "run"
    gate = Gate(run_dir, 3)
    with running(run_dir, "--transport", "tcp", "--actors", 2, *SMALL, *gate.flags) as process, ExitStack() as stack:
        actor = wait_for(lambda: children(psutil.Process(process.pid), "actors"), process)[0].cmdline()
        address = actor[actor.index("--connect") + 1]
        stack.enter_context(connected(int(address.rpartition(":")[2]))).sendall(raw_dealer() + b"\x00\x03abc")
        stranger = stack.enter_context(closing(zmq.Context.instance().socket(zmq.DEALER)))
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(address)
        stranger.send_multipart(plain(Hello("0", 1000, own_fingerprint(), pid=1)))
        wait_for(lambda: iterations(run_dir) >= 3, process)
        assert not stranger.poll(0)
        gate.open()
        output_of(process)
    summary = summary_of(run_dir)
    assert summary["refused"].keys() == {"handshake"}
    whole = train(tmp_path / "whole", "--in-process", *SMALL)
    assert summary["weights_digest"] == whole["weights_digest"]


def without_arrays(saved: Checkpoint) -> Checkpoint:
    return Checkpoint(99, {}, saved.facts)


def without_facts(saved: Checkpoint) -> Checkpoint:
    return Checkpoint(99, saved.arrays, {})


def of_other_facts(saved: Checkpoint) -> Checkpoint:
    return Checkpoint(99, saved.arrays, {name: [] for name in saved.facts})


def of_another_network(saved: Checkpoint) -> Checkpoint:
    return Checkpoint(99, {name: np.zeros((3, *array.shape), array.dtype) for name, array in saved.arrays.items()}, {})


def is_one_line(*flags: object, says: str) -> None:
    done = launch(*flags)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1 and says in done.stderr


@pytest.mark.parametrize(
    ("forge", "evaluated"),
    [
        slow(without_arrays, True),
        slow(without_facts, False),
        slow(of_other_facts, False),
        slow(of_another_network, True),
    ],
)
def test_a_whole_checkpoint_of_another_making_is_one_line(
    small_run: Path, tmp_path: Path, forge: Callable[[Checkpoint], Checkpoint], evaluated: bool
) -> None:
    run_dir = shutil.copytree(small_run, tmp_path / "run")
    (run_dir / "summary.json").unlink()  # With a summary, the run would count as finished.
    write_checkpoint(run_dir / "checkpoints", forge(load_checkpoint(list_checkpoints(run_dir / "checkpoints")[-1])))
    is_one_line("--resume", run_dir, says="not one of this run's configuration")
    if evaluated:
        is_one_line("eval", run_dir, says="not one of this run's configuration")


def test_checkpoints_that_lie_elsewhere_are_one_line(small_run: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(small_run, tmp_path / "run")
    (run_dir / "summary.json").unlink()
    (run_dir / "checkpoints").rename(tmp_path / "elsewhere")
    (run_dir / "checkpoints").symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    is_one_line("--resume", run_dir, says="is a link")
    is_one_line("eval", run_dir, says="is a link")
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv", "events.jsonl", "logs/learner.log", ".lock"])
def test_a_run_whose_files_lie_elsewhere_is_not_gone_on_with(small_run: Path, tmp_path: Path, name: str) -> None:
    run_dir = shutil.copytree(small_run, tmp_path / "run")
    (run_dir / "summary.json").unlink()
    mine = tmp_path / "mine"
    mine.write_text("precious\n")
    (run_dir / name).unlink(missing_ok=True)
    (run_dir / name).symlink_to(mine)
    is_one_line("--resume", run_dir, says=f"{run_dir / name} is a link")
    assert mine.read_text() == "precious\n"
