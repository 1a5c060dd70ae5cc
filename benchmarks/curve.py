"""`curve`: trajectories over tcp into the learner's batch, encrypted with CURVE keys, against the same without."""

import argparse
import dataclasses
import tempfile
from contextlib import closing
from pathlib import Path

from benchmarks.arguments import positive
from benchmarks.measurements import Row, interleave
from benchmarks.processes import Worker
from benchmarks.report import Report
from benchmarks.wire import LANES, TARGET_SIZE, WINDOW, Load, receive_over
from learner.device import prepare_device
from protocol.keys import make_keys
from protocol.remote import RemoteAccess
from protocol.transport import LearnerSocket
from supervisor.address import listening

ENCRYPTED, PLAIN = "with keys", "without"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = [2**16, TARGET_SIZE]
    parser.add_argument("--size", nargs="+", type=positive(int), default=sizes, help="bytes of observations")
    parser.add_argument("--megabytes", type=positive(float), default=500.0, help="in each measurement")


def run(arguments: argparse.Namespace) -> Report:
    prepare_device("cpu", threads=1)  # The learner calls this, too; among other things it lets malloc keep its memory.
    report = Report("curve")
    report.note(f"one sender, over tcp on 127.0.0.1; {LANES} trajectories make a batch, {WINDOW} are under way")
    with tempfile.TemporaryDirectory() as folder, Worker("sending") as sender:
        (key,) = make_keys(Path(folder) / "keys", ["actor"])
        for nbytes in sorted(arguments.size):
            report.rows += measure(Load.of(nbytes, arguments.megabytes), sender, key, arguments.repeats)
    return report


def measure(load: Load, sender: Worker, key: Path, repeats: int) -> list[Row]:
    """Two rows for messages of one size: with keys, and without."""
    contenders = {
        ENCRYPTED: lambda _: receive_batches(load, sender, key),
        PLAIN: lambda _: receive_batches(load, sender, None),
    }
    rows = load.rows(interleave(contenders, repeats, load.size))
    ratio = rows[ENCRYPTED].against(rows[PLAIN])
    return [dataclasses.replace(rows[ENCRYPTED], comparisons=(ratio,)), rows[PLAIN]]


def receive_batches(load: Load, sender: Worker, key: Path | None) -> float:
    """Seconds to receive the load over tcp. With `key`, the sender uses this key and the learner requires one."""
    with listening("inproc") as local, listening("tcp") as place:
        remote = RemoteAccess(place.address, key.parent if key else None)
        with closing(LearnerSocket(local.address, remote)) as socket:
            sender.tell(bare=False, address=place.address, nbytes=load.nbytes, key=str(key) if key else None)
            return receive_over(socket, load, sender, check=True)
