"""`doctor`: what this machine has, and what would make it better. `doctor ENV`: whether an environment can be trained
on reproducibly, and with how many actors."""

import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Annotated

import psutil
import tyro

from commands.helpers.command_line import parse, value_of
from commands.helpers.cores import default_actors, performance_cores
from commands.helpers.environment_check import check_environment
from commands.helpers.findings import Finding, note, ok, wrong
from commands.helpers.presets import defaults_for
from commands.helpers.versions import ROOT, installed_versions
from commands.train import ExecutionConfig, Flat, check_trusted
from protocol.experiment import Experiment
from protocol.extras import how_to_install
from protocol.lifeline import FAILURE, SUCCESS
from protocol.limits import allow_many_files
from protocol.output import say
from rundir.config import PPOConfig, TrainingConfig
from supervisor.address import socket_parent

EXTRAS = {  # The extras of this project, with the module that each brings.
    "box2d": "Box2D",
    "mujoco": "mujoco",
    "atari": "ale_py",
    "minigrid": "minigrid",
    "sweep": "optuna",
    "plot": "matplotlib",
    "play": "pygame",
    "video": "moviepy",
    "dashboard": "starlette",
    "onnx": "onnx",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "ray": "ray",
}
FILES_PER_ACTOR = 4  # A launcher and a learner hold so many files open for each actor.
FREE_BYTES_WANTED = 2**30
DEVICE = """
import json
from learner.device import gpu_fault, prepare_device
print(json.dumps([*prepare_device("auto", 1), gpu_fault()]))
"""


@dataclass(frozen=True)
class DoctorCommand:
    """Say what this machine has for training, and what to do about what it lacks; with an environment, check that too.

    Examples:
      python launch.py doctor
      python launch.py doctor LunarLander-v3
      python launch.py doctor my_package:MyEnv-v0 --env-kwargs difficulty=3
    """

    environment: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[ENV]")] = None
    """Environment to check, as `--env` takes it. The flags are those of training, with the preset's defaults; what
    does not concern the environment is not looked at."""
    experiment: Flat[Experiment] = field(default_factory=Experiment)
    ppo: Flat[PPOConfig] = field(default_factory=PPOConfig)
    training: Flat[TrainingConfig] = field(default_factory=TrainingConfig)
    execution: Flat[ExecutionConfig] = field(default_factory=ExecutionConfig)


def main(arguments: list[str]) -> int:
    """Print a line for each finding; returns the exit code, 1 where something is wrong."""
    command = _parse(arguments)
    if command.environment is not None:
        command = _parse(arguments, command.environment)  # Its preset may have other defaults.
    env = command.environment or value_of("--env", arguments)
    if command.environment is None and (command.execution.resume or command.execution.config or env):
        env = command.experiment.env
    findings = check_machine()
    if env is not None:
        experiment = dataclasses.replace(command.experiment, env=env)
        check_trusted(experiment, command.execution, arguments)
        findings = chain(findings, check_environment(experiment, command.execution.step_timeout))
    all_is_well = True
    for finding in findings:
        say(str(finding))
        all_is_well &= not finding.is_wrong
    return SUCCESS if all_is_well else FAILURE


def _parse(arguments: list[str], env: str | None = None) -> DoctorCommand:
    defaults = defaults_for(arguments, env)
    parts = (defaults.experiment, defaults.ppo, defaults.training, ExecutionConfig())
    return parse(DoctorCommand, "launch.py doctor", arguments, default=DoctorCommand(None, *parts))


def check_machine() -> Iterator[Finding]:
    """Everything that decides whether, and how fast, this machine can train."""
    yield ok(", ".join(f"{name} {version}" for name, version in installed_versions().items()))
    yield from _check_mlx()
    yield from _check_cores()
    yield _check_memory()
    yield _check_files()
    yield _check_sockets()
    yield from _check_disks()
    yield from _check_extras()


def _check_mlx() -> Iterator[Finding]:
    # In another process: the learner alone may load MLX, and what is wrong with an installation may crash.
    done = subprocess.run([sys.executable, "-c", DEVICE], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        yield wrong(
            f"MLX cannot be used: {lines[-1].partition('UserError: ')[2] or lines[-1]}", "this machine can still act"
        )
        return
    device, notes, fault = json.loads(done.stdout.splitlines()[-1])
    if device == "auto":
        yield ok(
            "the learner takes the GPU for images and for large networks, and the CPU for others, or as --device says"
        )
    else:
        remedy = None if sys.platform == "darwin" else "with an NVIDIA GPU, install the extra `cuda` instead of `cpu`"
        yield ok(f"the learner computes on the CPU: {fault}", remedy)
    for text in notes:
        yield note(text)
    if sys.platform == "linux" and not notes:
        yield ok(f"OpenBLAS and a C++ compiler ({shutil.which('g++')}) are there for MLX")


def _check_cores() -> Iterator[Finding]:
    cores, fast = psutil.cpu_count() or 1, performance_cores()
    actors = default_actors(10**6)
    started = f"{actors} actor{'s' * (actors > 1)}"
    yield ok(f"{cores} processors, {fast} of them performance cores: launch.py starts {started}")


def _check_memory() -> Finding:
    memory = psutil.virtual_memory()
    text = f"{memory.available / 2**30:.1f} GiB of {memory.total / 2**30:.1f} GiB memory are free"
    return ok(text) if memory.available > FREE_BYTES_WANTED else note(text, "start fewer actors: each takes 50 MB")


def _check_files() -> Finding:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    allow_many_files()  # Launcher and learner do the same.
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return ok("open files are not limited")
    raised = f" (the limit was {before:,})" if before != allowed else ""
    text = f"{allowed:,} open files are allowed{raised}, enough for {allowed // FILES_PER_ACTOR:,} actors"
    return ok(text) if allowed >= 1024 else note(text, "raise it with `ulimit -Hn`")


def _check_sockets() -> Finding:
    parent = socket_parent()
    if not os.access(parent, os.W_OK | os.X_OK):
        return wrong(f"no sockets can be made in {parent}", "set TMPDIR to a folder of yours, or use --transport tcp")
    return ok(f"sockets are made in {parent}")


def _check_disks() -> Iterator[Finding]:
    places = {"results go below": Path("runs"), "MLX keeps its kernels in": Path(tempfile.gettempdir())}
    for what, path in places.items():
        free = shutil.disk_usage(path if path.exists() else Path()).free
        text = f"{what} {path.absolute()}, with {free / 2**30:.1f} GiB free"
        yield ok(text) if free > FREE_BYTES_WANTED else note(text, "make room: checkpoints may fail to be saved")
    shared = Path("/dev/shm")  # Linux has one.
    if shared.exists():
        yield ok(f"{shutil.disk_usage(shared).free / 2**30:.1f} GiB of shared memory, which only --cluster ray uses")


def _check_extras() -> Iterator[Finding]:
    missing = [extra for extra, module in EXTRAS.items() if find_spec(module) is None]
    yield ok(f"extras installed: {', '.join(extra for extra in EXTRAS if extra not in missing) or 'none'}")
    if missing:
        yield ok(f"extras not installed: {', '.join(missing)}", how_to_install("NAME"))
