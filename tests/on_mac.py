"""What only a machine with a GPU, or a Mac, can show: `python -m tests.on_mac` tries it all and writes one report.

Paste the report into an issue. It takes about half an hour; `python -m tests.on_mac agreement device` does two parts.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent))
from launching import LAUNCH, ROOT, SMALL, summary_of

from learner.device import gpu_fault

LIMIT = 3600  # Seconds that a part may take.
KEPT = 40  # Last lines of a part's output that are kept.
FRAMES = ["--env", "tests.environments:EverySpace-v0", "--env-kwargs", "observation='frames'"]
FRAMES += ["--network", "nature_cnn", "--num-envs", "16", "--lane-size", "4", "--rollout-length", "64"]
FRAMES += ["--total-steps", "8192"]
LONG = ["--total-steps", "2000000", "--checkpoint-every", "500"]
LOOK_SECONDS = 5.0  # Seconds between two measurements of a run's memory.

AGREEMENT = """
import sys
import numpy as np
from learner.device import prepare_device

device, tf32 = sys.argv[1:]
prepare_device(device, 1, tf32 == "tf32")
sys.path.insert(0, "tests")
import mlx.core as mx
from actors.policy import Policy
from making import continuous, numbers, snapshot_of, trained_model
from protocol.experiment import Experiment

random = np.random.default_rng(0)
for width in (64, 512):
    spaces = continuous(numbers(24), 4)
    experiment = Experiment(hidden_sizes=(width, width), normalize_observations=False)
    model = trained_model(spaces, experiment, random)
    policy = Policy(snapshot_of(model), spaces, experiment)
    inputs = random.standard_normal((4096, 24), np.float32)
    actions, parameters, _ = policy.act(inputs, np.zeros((4096, 0), np.float32), policy.draw_noise(random, (4096,)))
    distribution, _, _ = model([mx.array(inputs)], mx.zeros((1, 0)), mx.zeros((1, 0)))
    difference = np.array(distribution.log_prob(mx.array(actions))) - policy.log_prob(parameters, actions)
    print(f"{device}, {tf32}, {width} units: mean |difference of log-probabilities| {np.abs(difference).mean():.2g}")
"""

BLAS = """
import numpy as np
from learner.device import prepare_device

prepare_device("cpu", 1)
import mlx.core as mx

random = np.random.default_rng(0)
vector = mx.array(random.standard_normal(70_000, np.float32))
x = random.standard_normal((256, 64), np.float32)

def product(start, rows):
    weight = vector[start : start + 64 * 64].reshape(64, 64)
    return np.array(mx.array(rows) @ weight)

bits = {product(start, x).tobytes() for start in (0, 0)}
print("the same product twice:", "equal" if len(bits) == 1 else "DIFFERENT")
one = np.array(mx.array(x) @ mx.array(np.array(vector[3 : 3 + 64 * 64])).reshape(64, 64))
same = product(3, x).tobytes() == one.tobytes()
print("a weight at an odd address and a copy of it:", "equal" if same else "DIFFERENT")
whole, parts = product(0, x), np.concatenate([product(0, x[i : i + 1]) for i in range(len(x))])
print("rows together and one by one:", "equal" if whole.tobytes() == parts.tobytes() else "DIFFERENT")
print("all finite:", bool(np.isfinite(parts).all()))
"""
BLAS_THREADS = """
import sys, time
from learner.device import prepare_device

prepare_device("cpu", int(sys.argv[1]))
import mlx.core as mx

x = mx.random.normal((2048, 2048))
mx.eval(x, x @ x)
began = time.perf_counter()
mx.eval([x @ (x + i) for i in range(8)])
print(f"eight products of 2048 x 2048 with {sys.argv[1]} threads: {time.perf_counter() - began:.2f} s")
"""


def run(*command: object, **environ: str) -> tuple[bool, str]:
    """Run a command; returns (whether its exit code was 0, the end of its output)."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            cwd=ROOT,
            env=os.environ | environ,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"not done after {LIMIT} s"
    said = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode == 0, "\n".join(said[-KEPT:])


def python(*arguments: object, **environ: str) -> tuple[bool, str]:
    return run(sys.executable, *arguments, **environ)


def doctor() -> tuple[bool, str]:
    return run(*LAUNCH, "doctor")


def suite() -> tuple[bool, str]:
    """Run the quick tests, which use the CPU."""
    return python("-m", "pytest", "-q", "-m", "not slow and not gpu")


def gpu() -> tuple[bool, str]:
    """Run the tests that need a GPU."""
    return python("-m", "pytest", "-q", "-m", "gpu", "-n", "0")


def equality() -> tuple[bool, str]:
    """Run the tests that one experiment's results are equal over actor counts, transports and kills, on the CPU."""
    tests = ["tests/test_equality.py", "tests/test_recovery.py"]
    return python("-m", "pytest", "-q", "-m", "slow or not slow", *tests)


def agreement() -> tuple[bool, str]:
    """Measure how far actors, which use NumPy, and a learner with the same weights differ."""
    kinds = [("cpu", "float32"), *([] if gpu_fault() else [("gpu", "float32"), ("gpu", "tf32")])]
    found = [python("-c", AGREEMENT, *kind) for kind in kinds]
    return all(well for well, _ in found), "\n".join(said for _, said in found)


def repeats() -> tuple[bool, str]:
    """Check whether runs on the GPU give equal weights, and whether they claim to."""
    lines, well = [], True
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in (("numbers", SMALL), ("images", FRAMES)):
            digests, claims = [], []
            for count in (1, 2, 3):
                run_dir = Path(folder) / f"{name}-{count}"
                flags_of_run = [*flags, "--device", "gpu", "--actors", count, "--run-dir", run_dir, "--quiet"]
                ended_well, said = run(*LAUNCH, *flags_of_run)
                if not ended_well:
                    return False, said
                summary = summary_of(run_dir)
                digests.append(summary["weights_digest"])
                claims.append(summary["deterministic"])
                lines.append(f"{name}, {count} actors: {digests[-1][:16]}, deterministic {claims[-1]}")
            well = well and (len(set(digests)) == 1 or not all(claims))
    return well, "\n".join(lines)


def device() -> tuple[bool, str]:
    """Measure how long an iteration takes on the CPU and on the GPU."""
    with tempfile.TemporaryDirectory() as folder:
        return python("-m", "benchmarks", "device", "--repeats", 3, "--out", folder)


def torch() -> tuple[bool, str]:
    """Measure how long a step takes on the GPU, here and in PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--device", "gpu", "--repeats", 5, "--minibatch", 256, "--out", folder]
        return python("-m", "benchmarks", "update", *flags)


def memory() -> tuple[bool, str]:
    """Measure the memory of the learner in a long run, which should not grow."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*LAUNCH, "--run-dir", f"{folder}/run", "--quiet", *LONG]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as launcher:
            seen: list[float] = []
            while launcher.poll() is None:
                time.sleep(LOOK_SECONDS)
                status = Path(folder) / "run" / "status.json"
                if status.exists():
                    learner = json.loads(status.read_text())["memory"]["learner"]
                    seen += [learner / 2**20] if learner else []
            said = launcher.communicate()[0]
    middle = len(seen) // 2
    return launcher.returncode == 0, f"{said}learner, MiB, at half time and at the end: {seen[middle:][:1]} {seen[-1:]}"


def blas() -> tuple[bool, str]:
    """Check whether matrix products on the CPU depend on a matrix's address or on the number of rows, and whether they
    use as many threads as --learner-threads says."""
    answers = [python("-c", BLAS), *(python("-c", BLAS_THREADS, count) for count in (1, os.cpu_count() or 1))]
    return all(well for well, _ in answers), "\n".join(said for _, said in answers)


NEED_GPU = ("gpu", "repeats", "torch")
PARTS: dict[str, Callable[[], tuple[bool, str]]] = {
    part.__name__: part for part in (doctor, suite, gpu, equality, agreement, repeats, device, torch, memory, blas)
}


def machine() -> dict[str, Any]:
    """The system, Python version, cores and memory of this machine."""
    names = {"system": platform.platform(), "python": sys.version.split()[0], "cores": os.cpu_count()}
    return names | {"memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB"}


def main() -> int:
    """Run the parts, and write the report; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.on_mac", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all unless some are named")
    parser.add_argument("--out", type=Path, default=Path("on_mac.md"), help="the report (default: on_mac.md)")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    failed, fault = [], gpu_fault()
    report = ["# On this machine", "", *(f"- {name}: {value}" for name, value in machine().items())]
    for name in arguments.parts or PARTS:
        print(f"{name} … ", end="", flush=True)
        began = time.monotonic()
        if name in NEED_GPU and fault:
            well, said, verdict = True, fault, "left out"
        else:
            well, said = PARTS[name]()
            verdict = f"{'well' if well else 'FAILED'}, {time.monotonic() - began:.0f} s"
        print(verdict, flush=True)
        failed += [] if well else [name]
        report += ["", f"## {name}: {verdict}", "", "```", said, "```"]
        arguments.out.write_text("\n".join(report) + "\n")  # Written after each part, in case a part ends this process.
    print(f"written: {arguments.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
