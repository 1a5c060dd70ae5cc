"""`train`: settles what is to be run and where, and hands it to the supervisor."""

import dataclasses
import fcntl
import os
import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import tyro

from actors.arguments import parse_env_kwargs
from actors.environment import check_registered
from commands import COMMANDS
from commands.command_line import parse, value_of
from commands.versions import installed_versions
from dashboard.server import check_installed as check_dashboard_installed
from protocol import trace
from protocol.errors import UserError
from protocol.execution import Execution, SinkName
from protocol.experiment import Experiment
from protocol.files import read_rows
from protocol.networks import check_network
from protocol.process import as_typed
from protocol.remote import RemoteAccess
from protocol.trust import check_trust, sign
from rundir.checkpoint import load_newest_checkpoint
from rundir.config import PPOConfig, RunConfig, TrainingConfig, load_settings
from rundir.names import CHECKPOINTS, CONFIG, EVENTS, LOGS, METRICS
from rundir.run import Run
from supervisor.dashboard import dashboard
from supervisor.run import supervise
from supervisor.sinks import check_sinks

PRESETS = Path(__file__).parent.parent / "presets"


@dataclass(frozen=True)
class ExecutionConfig:
    """How the work is done. Nothing here changes the numbers."""

    actors: int | None = None
    """Actor processes; None takes one for each performance core but one, and at least 1. 0 leaves all to remote ones,
    see --listen."""
    transport: Literal["ipc", "tcp"] = "ipc"
    """How actors reach the learner: a socket file, or TCP on 127.0.0.1, encrypted with a key made for the run."""
    listen: str | None = None
    """Let actors of other machines take part (`python -m actors --connect tcp://HOST:PORT --key FILE` there): where to
    listen for them, such as tcp://0.0.0.0:5555."""
    keys: Path | None = None
    """Directory of the keys that those need, which `launch.py keys DIR` makes."""
    insecure: bool = False
    """Listen without keys: whoever reaches the address can take part."""
    cluster: Literal["ray"] | None = None
    """Let Ray place the actors, a CPU for each, on the nodes of a cluster. Run this on one of them, with the extra
    `ray`; every node needs this clone and its environment at the same paths."""
    address: str | None = None
    """HOST:PORT of that cluster, or `auto` for the one that this machine belongs to; by default $RAY_ADDRESS, or
    without it a cluster of this machine alone."""
    in_process: bool = False
    """Run the learner and the actors as threads of this process."""
    step_timeout: float = 60.0
    """Seconds without any progress after which an actor is taken to hang, and is replaced."""
    quiet: bool = False
    """Print warnings, errors and how the run ended, and nothing else."""
    let_sleep: bool = False
    """Let a Mac fall asleep over the run."""
    sink: tuple[SinkName, ...] = ()
    """Where the metrics go besides metrics.jsonl and metrics.csv, such as `tensorboard wandb trackio`; each needs the
    extra of its name."""
    trace: Path | None = None
    """Write a timeline of every process to this file, for ui.perfetto.dev or chrome://tracing. An older one that is
    there is replaced, and nothing else is."""
    dashboard: bool = False
    """Serve a page about the run for the browser of this machine, and print its address."""
    run_dir: Path | None = None
    """Directory for the results; by default a fresh one under runs/."""
    resume: Path | None = None
    """Continue the run in this directory, with its own settings."""
    begin_anew: bool = False
    """With --resume: where no checkpoint of the run can be read, begin it again from nothing."""
    trust: bool = False
    """With --resume or --config: import the modules that they name, though somebody else has written them."""
    config: Path | None = None
    """Take settings from this TOML file, such as another run's config.toml; flags beat it, and it beats the preset."""


Flat = tyro.conf.OmitArgPrefixes


@dataclass(frozen=True)
class TrainCommand:
    """Train a PPO policy: many actors step environments, one learner improves the policy on MLX. The defaults shown are
    those for the environment, from presets/.

    Examples:
      python launch.py --actors 8
      python launch.py --env LunarLander-v3 --seed 1 --run-dir runs/lander
      python launch.py --resume runs/lander
    """

    execution: Flat[ExecutionConfig]
    experiment: Flat[Experiment]
    training: Flat[TrainingConfig]
    ppo: Flat[PPOConfig]


def main(arguments: list[str]) -> int:
    """Train as the command line says; returns the exit code."""
    resumed = value_of("--resume", arguments)
    defaults = defaults_for(arguments)
    command = parse(
        TrainCommand,
        "launch.py",
        arguments,
        more_help=f"Other commands, each with --help: {', '.join(COMMANDS[1:])}.",
        default=TrainCommand(ExecutionConfig(), defaults.experiment, defaults.training, defaults.ppo),
    )
    config = RunConfig(command.experiment, command.ppo, command.training)
    execution = command.execution
    if resumed is not None:
        _refuse_changes(defaults, config)
    config.check()
    check_trusted(config.experiment, execution, arguments)
    check_registered(config.experiment.env)
    parse_env_kwargs(config.experiment.env_kwargs)
    check_network(config.experiment)
    check_sinks(execution.sink)
    remote = _remote_access(execution)
    ray_address = _ray_address(execution)
    if execution.actors == 0 and remote is None:
        raise UserError("--actors must be at least 1, or 0 with --listen")
    if execution.actors is not None:
        config.experiment.check_actors("--actors", execution.actors, least=0)
    if not execution.step_timeout > 0:
        raise UserError(f"--step-timeout must be above 0, not {execution.step_timeout}")
    if execution.resume is not None:
        for flag, value in (("--run-dir", execution.run_dir), ("--config", execution.config)):
            if value is not None:
                raise UserError(
                    f"{flag} and --resume exclude each other: a run goes on in its own directory, as it began"
                )
        if not execution.begin_anew:
            _refuse_to_begin_anew(execution.resume)
    elif execution.begin_anew:
        raise UserError("--begin-anew is for --resume, which is missing; a new run begins from nothing anyway")
    if execution.dashboard:
        check_dashboard_installed()
    num_actors = default_actors(config.experiment.num_lanes) if execution.actors is None else execution.actors
    run_dir = (execution.resume or execution.run_dir or _fresh_run_dir(config.experiment)).absolute()
    workers = "threads" if execution.in_process else "ray" if execution.cluster else "processes"
    settled = Execution(
        run_dir=run_dir,
        num_actors=num_actors,
        witness=workers == "processes" and num_actors > 0 and config.experiment.schedule != "async",
        step_timeout=execution.step_timeout,
        workers=workers,
        transport=execution.transport,
        remote=remote,
        ray_address=ray_address,
        sinks=execution.sink,
        quiet=execution.quiet,
        let_sleep=execution.let_sleep,
    )
    shown = dashboard(run_dir) if execution.dashboard else nullcontext()
    with (
        _claimed(run_dir, fresh=resumed is None, config=config),
        _traced(execution.trace and execution.trace.absolute()),
        shown,
    ):
        return supervise(config, settled)


def defaults_for(arguments: list[str], env: str | None = None) -> RunConfig:
    """What holds where `arguments` say nothing else: the settings of the run that they resume, or of their file before
    those of the preset for their environment, or for `env`. Raises `UserError`."""
    resumed, file = value_of("--resume", arguments), value_of("--config", arguments)
    if resumed is not None:
        return Run.open(Path(resumed)).config
    settings = load_settings(Path(file)) if file is not None else {}
    env = env or value_of("--env", arguments) or str(settings.get("env", Experiment.env))
    return preset_for(env).with_settings(settings, str(file))


def _remote_access(execution: ExecutionConfig) -> RemoteAccess | None:
    if execution.listen is None:
        if execution.keys is not None or execution.insecure:
            raise UserError("--keys and --insecure are for --listen, which is missing")
        return None
    remote = RemoteAccess(execution.listen, execution.keys and execution.keys.absolute())
    remote.check(execution.insecure)
    if remote.keys is not None:
        from protocol.keys import read_learner  # with ZeroMQ, which nothing else here needs

        read_learner(remote.keys)  # what is wrong with it is said before anything starts
    return remote


def _ray_address(execution: ExecutionConfig) -> str | None:
    """Of the cluster that is to run the actors; raises `UserError` where something else speaks against one."""
    if execution.cluster is None:
        if execution.address is not None:
            raise UserError("--address is for --cluster, which is missing")
        return None
    if execution.listen is not None or execution.in_process or execution.transport != "ipc":
        raise UserError("--cluster excludes --listen, --in-process and --transport: Ray places all actors, over TCP")
    if execution.actors is None:
        raise UserError("--cluster needs --actors: how many of its CPUs to use")
    if find_spec("ray") is None:
        raise UserError('--cluster ray needs Ray, which is not installed: pip install -c constraints.txt -e ".[ray]"')
    address = execution.address or os.environ.get("RAY_ADDRESS") or None
    if address is not None and "://" in address:
        raise UserError(f"--address {address} must be HOST:PORT, or auto: run launch.py on a node of the cluster")
    return address


@contextmanager
def _traced(path: Path | None) -> Iterator[None]:
    """Let a timeline be written to `path`, if there is one."""
    if path is not None:
        try:
            trace.begin(path)
        except OSError as error:
            raise UserError(f"--trace {as_typed(path)} cannot be written: {error.strerror}") from None
        trace.join("launcher")
    try:
        yield
    finally:
        trace.end()


def preset_for(env: str) -> RunConfig:
    """The defaults, with what `presets/` holds for an environment: its family's settings (`ALE/*`), then its own.

    `module:EnvId` has those of `EnvId`.
    """
    env_id = env.rpartition(":")[2]
    config = RunConfig(Experiment(env=env), PPOConfig(), TrainingConfig())
    found = [
        (pattern, path, settings)
        for path in PRESETS.glob("*.toml")
        for pattern, settings in tomllib.loads(path.read_text()).items()
        if fnmatchcase(env_id, pattern)
    ]
    for pattern, path, settings in sorted(found, key=lambda item: len(item[0])):
        config = config.with_settings(settings, f"{path}: {pattern}")
    return config


def default_actors(num_lanes: int) -> int:
    """One actor for each performance core but one, which the learner takes; no more than there are lanes."""
    return max(1, min(performance_cores() - 1, num_lanes))


def performance_cores() -> int:
    """Cores worth an actor: on Apple silicon all but the efficiency cores, elsewhere all physical ones."""
    if sys.platform == "darwin":
        levels = [_sysctl(f"hw.perflevel{level}") for level in range(int(_sysctl("hw").get("nperflevels", 0)))]
        fast = sum(int(level["physicalcpu"]) for level in levels if level.get("name") != "Efficiency")
        if fast:
            return fast
    import psutil

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _sysctl(prefix: str) -> dict[str, str]:
    """What macOS says of its parts named `prefix`.NAME, by NAME."""
    import subprocess

    answer = subprocess.run(["sysctl", prefix], capture_output=True, text=True, check=False).stdout
    pairs = (line.removeprefix(f"{prefix}.").partition(": ") for line in answer.splitlines())
    return {name: value for name, _, value in pairs}


def check_trusted(experiment: Experiment, execution: ExecutionConfig, arguments: list[str]) -> None:
    """Raise `UserError` where a run or a file of settings names code to import that this user has not trusted."""
    if execution.resume is not None:
        check_trust(experiment, execution.resume, execution.trust, execution.resume, arguments)
    elif execution.config is not None:
        run_dir = execution.config.parent if execution.config.name == CONFIG else None
        check_trust(experiment, execution.config, execution.trust, run_dir, arguments)
    elif execution.trust:
        raise UserError("--trust is for --resume and --config; what a command line names is trusted anyway")


def _refuse_changes(saved: RunConfig, given: RunConfig) -> None:
    for part in ("experiment", "ppo", "training"):
        old, new = dataclasses.asdict(getattr(saved, part)), dataclasses.asdict(getattr(given, part))
        for name in old:
            if old[name] != new[name]:
                raise UserError(
                    f"--resume continues a run with its own settings: --{name.replace('_', '-')} is {old[name]} there"
                    f" and cannot become {new[name]}; leave the flag out, or start a new run"
                )


def _refuse_to_begin_anew(run_dir: Path) -> None:
    """Raise `UserError` where what was saved of a run cannot be read any more, so that it would be done all over."""
    events = list(read_rows(run_dir / EVENTS, ["time"]))
    saved = any(row.get("event") == "checkpoint" for row in events)  # no disk may have had room for one
    trained = next(read_rows(run_dir / METRICS, ["policy_version"]), None) is not None
    if not (saved or (trained and not events)):
        return
    if load_newest_checkpoint(run_dir / CHECKPOINTS, lambda _: None) is None:
        raise UserError(
            f"{run_dir / CHECKPOINTS} has no checkpoint that can be read; --begin-anew lets the run begin again from"
            " nothing"
        )


def _fresh_run_dir(experiment: Experiment) -> Path:
    name = f"{experiment.env.replace('/', '-')}-seed{experiment.seed}"
    taken = 1
    path = Path("runs") / name
    while path.exists():
        taken += 1
        path = Path("runs") / f"{name}-{taken}"
    return path


def _refuse_links(run_dir: Path) -> None:
    """Raise `UserError` where going on with a run, which may be a stranger's, would write elsewhere, or never end."""
    for path in [*run_dir.iterdir(), *run_dir.glob("logs/*")]:
        if path.is_symlink():
            raise UserError(f"{path} is a link; what a run writes must lie in its own directory")
        if not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is neither a file nor a directory; no run has made it")


@contextmanager
def _claimed(run_dir: Path, *, fresh: bool, config: RunConfig) -> Iterator[None]:
    """Hold the run directory for this process alone; a new one that comes to nothing is removed again."""
    created = not run_dir.exists()
    if not fresh:
        _refuse_links(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = open(run_dir / ".lock", "a")  # noqa: SIM115 - held until the run is over
    except OSError as error:
        raise UserError(f"the run directory {run_dir} cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"the run directory {run_dir} is in use by another launch.py") from None
        if fresh:
            if (run_dir / CONFIG).exists():
                raise UserError(f"{run_dir} already holds a run; continue it with --resume, or choose another")
            try:
                config.save(run_dir / CONFIG, installed_versions())
                (run_dir / LOGS).mkdir(exist_ok=True)
            except OSError as error:
                raise UserError(f"the run directory {run_dir} cannot be written: {error.strerror}") from None
        sign(run_dir, config.experiment)  # it was typed, signed already, or trusted by a flag
        try:
            yield
        except UserError:
            if fresh and not (run_dir / CHECKPOINTS).exists():
                (run_dir / CONFIG).unlink()
                if created:
                    shutil.rmtree(run_dir)
            raise
