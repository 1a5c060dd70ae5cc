"""`update`: one minibatch update of PPO here, and the same one in plain PyTorch."""

import argparse
import dataclasses
import importlib.util
from contextlib import ExitStack

from benchmarks.arguments import positive
from benchmarks.measurements import Row, Samples, at_most, interleave
from benchmarks.processes import Worker, cores
from benchmarks.report import Report
from benchmarks.workloads import Workload

OURS, RIVAL = "MLX", "PyTorch"
NETWORKS = {"mlp-64": ("mlp", 64), "mlp-256": ("mlp", 256), "nature-cnn": ("nature_cnn", 512)}
MINIBATCHES = {"mlp": [64, 256, 1024, 4096, 16_384], "nature_cnn": [256]}
TARGETS = {
    **{Workload("mlp", 64, minibatch): at_most(1.0) for minibatch in (64, 256, 1024, 4096)},
    Workload("mlp", 256, 4096): at_most(1.5),
    Workload("nature_cnn", 512, 256): at_most(2.0),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="which to measure")
    parser.add_argument("--minibatch", nargs="+", type=positive(int), help="samples a step, instead of all")
    parser.add_argument("--threads", type=positive(int), default=cores(), help="of each side")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="of both sides")
    parser.add_argument("--seconds", type=positive(float), default=0.5, help="of each measurement")


def run(arguments: argparse.Namespace) -> Report:
    workloads = [
        Workload(network, hidden, minibatch)
        for network, hidden in (NETWORKS[name] for name in arguments.network)
        for minibatch in arguments.minibatch or MINIBATCHES[network]
    ]
    report, threads = Report("update"), ["--device", arguments.device, "--threads", str(arguments.threads)]
    on = "the GPU" if arguments.device == "gpu" else f"{arguments.threads} threads of the CPU"
    report.note(f"both on {on}")
    with ExitStack() as stack:
        ours, rival = stack.enter_context(Worker("mlx_updates", *threads)), None
        if importlib.util.find_spec("torch"):
            rival = stack.enter_context(Worker("torch_updates", *threads))
        else:
            report.note("torch is not installed here (extra `torch`); skipped")
        for workload in workloads:
            report.rows += measure(workload, ours, rival, arguments.repeats, arguments.seconds)
    return report


def measure(workload: Workload, ours: Worker, rival: Worker | None, repeats: int, seconds: float) -> list[Row]:
    """Rows of both sides for one network and minibatch: the time of one Adam step."""
    wanted = dataclasses.asdict(workload)

    def ask_ours(_: int) -> float:
        return ours.ask(measure="step", workload=wanted, seconds=seconds)["seconds"]

    contenders = {OURS: ask_ours}
    if rival is not None:
        contenders[RIVAL] = lambda _: rival.ask(workload=wanted, seconds=seconds)["seconds"]
    panel, case = f"{workload.name}, by minibatch", f"{workload.minibatch:,}"
    results = interleave(contenders, repeats, f"{panel} {case}")
    rows = {name: Row(panel, "ms", case, name, Samples.of(values).times(1e3)) for name, values in results.items()}
    if RIVAL in rows:
        comparison = rows[OURS].against(rows[RIVAL], TARGETS.get(workload))
        rows[OURS] = dataclasses.replace(rows[OURS], comparisons=(comparison,))
    return list(rows.values())
