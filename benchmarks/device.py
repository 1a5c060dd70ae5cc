"""`device`: one iteration of PPO on the CPU and on the GPU, from small networks to large ones."""

import argparse
import dataclasses
from contextlib import ExitStack
from functools import partial

from benchmarks.arguments import positive
from benchmarks.measurements import Row, Samples, interleave
from benchmarks.processes import Worker, cores
from benchmarks.report import Report
from benchmarks.workloads import MINIBATCHES, Workload
from protocol.errors import UserError

WORKLOADS = (
    Workload("mlp", 64, 512),
    Workload("mlp", 256, 512),
    Workload("mlp", 512, 2048),
    Workload("nature_cnn", 512, 256),
)
EPOCHS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=positive(int), default=cores(), help="on the CPU")


def run(arguments: argparse.Namespace) -> Report:
    report, threads = Report("device"), str(arguments.threads)
    report.note(f"{EPOCHS} epochs of {MINIBATCHES} minibatches; {threads} threads on the CPU")
    with ExitStack() as stack:
        workers = {}
        for device in ("cpu", "gpu"):
            worker = stack.enter_context(Worker("mlx_updates", "--device", device, "--threads", threads))
            try:
                worker.ask(measure="iteration", workload=dataclasses.asdict(WORKLOADS[0]), epochs=1)
                workers[device] = worker
            except UserError as error:
                if device == "cpu":
                    raise
                report.note(f"only the CPU is measured: {error}")
        for workload in WORKLOADS:
            report.rows += measure(workload, workers, arguments.repeats)
    return report


def measure(workload: Workload, workers: dict[str, Worker], repeats: int) -> list[Row]:
    """A row for each device."""
    wanted = dataclasses.asdict(workload)

    def ask(worker: Worker, _: int) -> float:
        return worker.ask(measure="iteration", workload=wanted, epochs=EPOCHS)["seconds"]

    name = f"{workload.name}, batch {workload.batch:,}"
    results = interleave({device: partial(ask, worker) for device, worker in workers.items()}, repeats, name)
    rows = {
        device: Row("one iteration of PPO", "s", name, device, Samples.of(values)) for device, values in results.items()
    }
    if rows.keys() == {"cpu", "gpu"}:
        rows["gpu"] = dataclasses.replace(rows["gpu"], comparisons=(rows["gpu"].against(rows["cpu"]),))
    return list(rows.values())
