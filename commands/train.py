"""`train`: settles what is to be run and where, and hands it to the supervisor."""

import dataclasses
import json
import os
import typing
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import tyro

from actors.arguments import parse_env_kwargs
from actors.environment import check_registered
from commands import COMMANDS
from commands.helpers.command_line import parse, value_of
from commands.helpers.cores import default_actors, performance_cores
from commands.helpers.initial import read_initial
from commands.helpers.presets import defaults_for
from commands.helpers.run_directory import claimed, env_name, fresh_run_dir, locked, refuse_to_begin_anew, run_name
from dashboard.server import check_installed as check_dashboard_installed
from multirun.folders import SEEDS, SPEC, is_seeds, seeds_in
from protocol import trace
from protocol.errors import ProtocolError, UserError
from protocol.execution import Execution, SinkName
from protocol.experiment import Experiment
from protocol.extras import how_to_install
from protocol.files import read_object, replace_file
from protocol.networks import check_network
from protocol.output import say
from protocol.process import as_typed, as_word
from protocol.records import typed
from protocol.remote import RemoteAccess
from protocol.text import counted
from protocol.trust import check_trust
from rundir.config import PPOConfig, RunConfig, TrainingConfig
from rundir.initial import Initial
from rundir.names import CONFIG, EXECUTION, LOGS
from supervisor.awake import awake
from supervisor.dashboard import dashboard
from supervisor.run import supervise
from supervisor.sinks import check_sinks


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
    """Continue the run in this directory, with its own settings, actors, transport and sinks. With more --total-steps,
    a finished run goes on, too."""
    begin_anew: bool = False
    """With --resume: where no checkpoint of the run can be read, begin it again from nothing."""
    trust: bool = False
    """With --resume or --config: import the modules that they name, though somebody else has written them."""
    config: Path | None = None
    """Take settings from this TOML file, such as another run's config.toml; flags beat it, and it beats the preset."""


@dataclass(frozen=True)
class SeveralConfig:
    """Several runs at a time."""

    seeds: tuple[int, ...] = ()
    """Train with each of these seeds instead of --seed: one run directory each, in one folder, and a summary of all.
    --resume goes on with the folder."""
    parallel: int | None = None
    """With --seeds: runs at a time; None takes as many as cores and memory carry."""


KEPT = ("actors", "transport", "in_process", "step_timeout", "sink", "let_sleep")  # A resumed run has these again.
Flat = tyro.conf.OmitArgPrefixes


@dataclass(frozen=True)
class TrainCommand:
    """Train a PPO policy: many actors step environments, one learner improves the policy on MLX. The defaults shown are
    those for the environment, from presets/.

    Examples:
      python launch.py --actors 8
      python launch.py --env LunarLander-v3 --seed 1 --run-dir runs/lander
      python launch.py --env LunarLander-v3 --seeds 0 1 2 3 4
      python launch.py --resume runs/lander
    """

    experiment: Flat[Experiment]
    ppo: Flat[PPOConfig]
    training: Flat[TrainingConfig]
    execution: Flat[ExecutionConfig]
    several: Flat[SeveralConfig]


# What `--help` says of the flags that most people use; `--help-all` has them all.
SHORT = {
    "--env": "gymnasium environment, or module:Id",
    "--env-kwargs": "its arguments, name=value each",
    "--total-steps": "env-steps to train for",
    "--seed": "same seed, same weights",
    "--seeds": "several runs, and a summary",
    "--actors": "processes that step environments",
    "--num-envs": "environments in all",
    "--rollout-length": "steps of each in an iteration",
    "--learning-rate": "step size of Adam",
    "--epochs": "passes over each batch",
    "--minibatches": "steps of Adam in each pass",
    "--discount": "of future rewards, gamma",
    "--entropy-coef": "weight of the entropy bonus",
    "--hidden-sizes": "widths of the MLP's layers",
    "--eval-every": "iterations between evaluations",
    "--sink": "where else the metrics go",
    "--dashboard": "a page in the browser",
    "--device": "where the learner computes",
    "--run-dir": "where the results go",
    "--resume": "go on with a run",
}


def main(arguments: list[str]) -> int:
    """Train as the command line says; returns the exit code."""
    folder = value_of("--resume", arguments)
    if folder is not None and is_seeds(Path(folder)):
        return _resume_seeds(Path(folder).absolute(), arguments)
    if folder is not None and (Path(folder) / SPEC).is_file():
        raise UserError(f"{folder} holds a sweep: go on with launch.py sweep --resume {as_word(folder)}")
    settled = _settle(arguments)
    config, execution = settled.config, settled.command.execution
    if settled.command.several.seeds:
        return _begin_seeds(settled)
    if settled.command.several.parallel is not None:
        raise UserError("--parallel is for --seeds, which is missing")
    num_actors = default_actors(config.experiment.num_lanes) if execution.actors is None else execution.actors
    run_dir = (execution.resume or execution.run_dir or fresh_run_dir(run_name(config.experiment))).absolute()
    workers = "threads" if execution.in_process else "ray" if execution.cluster else "processes"
    how = Execution(
        run_dir=run_dir,
        num_actors=num_actors,
        witness=workers == "processes" and num_actors > 0 and config.experiment.schedule != "async",
        step_timeout=execution.step_timeout,
        workers=workers,
        transport=execution.transport,
        remote=settled.remote,
        ray_address=settled.ray_address,
        sinks=execution.sink,
        quiet=execution.quiet,
        let_sleep=execution.let_sleep,
    )
    with (
        claimed(
            run_dir,
            fresh=execution.resume is None,
            config=config,
            kept=_kept(execution),
            initial=settled.initial,
        ),
        _traced(execution.trace and execution.trace.absolute()),
        dashboard(run_dir) if execution.dashboard else nullcontext(),
    ):
        return supervise(config, how)


@dataclass(frozen=True)
class _Settled:
    """What a command line means, checked."""

    command: TrainCommand
    config: RunConfig
    remote: RemoteAccess | None
    ray_address: str | None
    initial: Initial | None


def _settle(arguments: list[str]) -> _Settled:
    """What `arguments` mean; raises `UserError` where they do not fit together, or where something is missing."""
    resumed = value_of("--resume", arguments)
    defaults = defaults_for(arguments)
    command = parse(
        TrainCommand,
        "launch.py",
        arguments,
        short=SHORT,
        more_help="--help-all tells every flag, --version what is installed."
        f" Other commands, each with --help: {', '.join(COMMANDS[1:])}.",
        default=TrainCommand(
            defaults.experiment, defaults.ppo, defaults.training, _execution_of(resumed), SeveralConfig()
        ),
    )
    config = RunConfig(command.experiment, command.ppo, command.training)
    if (cell := value_of("--recurrent", arguments)) is not None and not config.experiment.recurrent_size:
        raise UserError(f"--recurrent {cell} has no units: give --recurrent-size as well, such as 64")
    execution = command.execution
    if resumed is not None:
        config = _with_more_steps(defaults, config)
        _refuse_changes(defaults, config)
    config.check()
    check_trusted(config.experiment, execution, arguments)
    check_importable(config.experiment)
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
            refuse_to_begin_anew(execution.resume)
    elif execution.begin_anew:
        raise UserError("--begin-anew is for --resume, which is missing; a new run begins from nothing anyway")
    if execution.dashboard:
        check_dashboard_installed()
    config, initial = (config, None) if resumed is not None else with_initial(config)
    if command.several.seeds or command.several.parallel is not None or "--seeds" in arguments:
        _check_several(command, arguments)
    return _Settled(command, config, remote, ray_address, initial)


def _check_several(command: TrainCommand, arguments: list[str]) -> None:
    """Raise `UserError` on what several runs at a time cannot have."""
    execution, seeds, parallel = command.execution, command.several.seeds, command.several.parallel
    if not seeds and "--seeds" in arguments:
        raise UserError("--seeds has no numbers; name the seeds, such as --seeds 0 1 2")
    if parallel is not None and parallel < 1:
        raise UserError(f"--parallel must be at least 1, not {parallel}")
    if seeds and value_of("--seed", arguments) is not None:
        raise UserError("--seed and --seeds exclude each other; name all seeds after --seeds")
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise UserError(f"--seeds has {' and '.join(map(str, twice))} more than once; each seed is one run")
    if seeds and value_of("--resume", arguments) is not None:
        raise UserError("--seeds is for new runs; --resume of their folder goes on with all of them")
    for flag, value in (("--listen", execution.listen), ("--cluster", execution.cluster), ("--trace", execution.trace)):
        if value is not None:
            raise UserError(f"{flag} is for one run; give --seed instead of --seeds")


def _kept(execution: ExecutionConfig) -> dict[str, Any]:
    return {name: getattr(execution, name) for name in KEPT}


def _begin_seeds(settled: _Settled) -> int:
    """Make the run directories of all seeds, and run them; returns the exit code."""
    command, config = settled.command, settled.config
    seeds = command.several.seeds
    settings = {name: "None" if value is None else value for name, value in config.settings.items()}
    name = f"{env_name(config.experiment)}-seeds"
    folder = (command.execution.run_dir or fresh_run_dir(name)).absolute()
    for seed in seeds:
        dataclasses.replace(config.experiment, seed=seed).check()
    with locked(folder):
        if any((folder / file).exists() for file in (CONFIG, SEEDS)):
            raise UserError(f"{as_typed(folder)} already holds runs; continue them with --resume, or choose another")
        # First what to make, so that --resume makes the directories that a kill has left out.
        facts = {"seeds": seeds, "settings": settings, "execution": _kept(command.execution)}
        replace_file(folder / SEEDS, json.dumps(facts) + "\n")
        _make_seeds(folder)
        return _run_seeds(folder, settled)


def _make_seeds(folder: Path) -> None:
    """Make the run directories of a folder's seeds that are not there."""
    missing = [run_dir for run_dir in seeds_in(folder) if not (run_dir / CONFIG).exists()]
    facts = read_object(folder / SEEDS) if missing else None
    if facts is None:
        return
    defaults = RunConfig(Experiment(), PPOConfig(), TrainingConfig())
    config, initial = with_initial(defaults.with_settings(facts["settings"], str(folder / SEEDS)))
    for run_dir in missing:
        experiment = dataclasses.replace(config.experiment, seed=int(run_dir.name.removeprefix("seed-")))
        of_seed = dataclasses.replace(config, experiment=experiment)
        with claimed(run_dir, fresh=True, config=of_seed, kept=facts["execution"], initial=initial):
            pass


def _resume_seeds(folder: Path, arguments: list[str]) -> int:
    """Go on with all seeds of a folder; returns the exit code."""
    with locked(folder):
        _make_seeds(folder)
    first = seeds_in(folder)[0]
    at = max(i for i, word in enumerate(arguments) if word.partition("=")[0] == "--resume")
    given = arguments[at].partition("=")[1] == "="
    settled = _settle([*arguments[:at], "--resume", str(first), *arguments[at + (1 if given else 2) :]])
    with locked(folder):
        return _run_seeds(folder, settled)


def _run_seeds(folder: Path, settled: _Settled) -> int:
    """Run the seeds of a folder, as many at a time as this machine carries."""
    from multirun.machine import share  # A single run does without these, and starts sooner.
    from multirun.seeds import run_seeds

    command, config = settled.command, settled.config
    execution, experiment, run_dirs = command.execution, config.experiment, seeds_in(folder)
    threads = config.training.learner_threads or 1
    wanted = execution.actors, command.several.parallel
    shared = share(performance_cores(), len(run_dirs), experiment.num_lanes, threads, *wanted)
    if shared.note:
        say(f"note: {shared.note}")
    flags = ["--actors", str(shared.actors), "--transport", execution.transport]
    flags += ["--step-timeout", str(execution.step_timeout), "--total-steps", str(config.training.total_steps)]
    flags += ["--in-process" if execution.in_process else "--no-in-process"]
    flags += ["--let-sleep" if execution.let_sleep else "--no-let-sleep", "--sink", *execution.sink]
    flags += [
        f"--{name}" for name, given in (("trust", execution.trust), ("begin-anew", execution.begin_anew)) if given
    ]
    seeds = " ".join(run_dir.name.removeprefix("seed-") for run_dir in run_dirs)
    title = (
        f"{experiment.env}, seeds {seeds}, {experiment.schedule}: {shared.parallel} at a time,"
        f" {counted(shared.actors, 'actor')} each -> {as_typed(folder)}"
    )
    (folder / LOGS).mkdir(exist_ok=True)
    with awake(not execution.let_sleep), dashboard(folder) if execution.dashboard else nullcontext():
        return run_seeds(folder, title, config, flags, shared.parallel, execution.quiet)


def _remote_access(execution: ExecutionConfig) -> RemoteAccess | None:
    if execution.listen is None:
        if execution.keys is not None or execution.insecure:
            raise UserError("--keys and --insecure are for --listen, which is missing")
        return None
    remote = RemoteAccess(execution.listen, execution.keys and execution.keys.absolute())
    remote.check(execution.insecure)
    if remote.keys is not None:
        from protocol.keys import read_learner  # It imports ZeroMQ, which nothing else here needs.

        read_learner(remote.keys)  # A mistake in it is told before anything starts.
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
        raise UserError(f"--cluster ray needs Ray, which is not installed; {how_to_install('ray')}")
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


def check_importable(experiment: Experiment) -> None:
    """Raise `UserError` unless its environment, with its arguments, and its network are there."""
    check_registered(experiment.env)
    parse_env_kwargs(experiment.env_kwargs)
    check_network(experiment)


def check_trusted(experiment: Experiment, execution: ExecutionConfig, arguments: list[str]) -> None:
    """Raise `UserError` where a run or a file of settings names code to import that this user has not trusted."""
    if execution.resume is not None:
        check_trust(experiment, execution.resume, execution.trust, execution.resume, arguments)
    elif execution.config is not None:
        check_trust(experiment, execution.config, execution.trust, execution.config.parent, arguments)
    elif execution.trust:
        raise UserError("--trust is for --resume and --config; what a command line names is trusted anyway")


def with_initial(config: RunConfig) -> tuple[RunConfig, Initial | None]:
    """What a new run begins from, if it names something, and its configuration with whole paths, so that its file means
    the same everywhere."""
    training = config.training
    if training.init_from is None:
        return config, None
    paths = {"init_from": str(Path(training.init_from).absolute())}
    vecnormalize = None
    if training.init_vecnormalize is not None:
        vecnormalize = Path(training.init_vecnormalize).absolute()
        paths["init_vecnormalize"] = str(vecnormalize)
    initial = read_initial(Path(paths["init_from"]), vecnormalize)
    return dataclasses.replace(config, training=dataclasses.replace(training, **paths)), initial


def _execution_of(run_dir: str | None) -> ExecutionConfig:
    """How a run that is resumed was executed last; for a new run, the defaults."""
    defaults = ExecutionConfig()
    kept = read_object(Path(run_dir) / EXECUTION) if run_dir is not None else None
    for name, value in (kept or {}).items():
        hint = typing.get_type_hints(ExecutionConfig).get(name)
        if name not in KEPT:
            continue
        try:
            defaults = dataclasses.replace(defaults, **{name: typed(value, hint, name)})
        except ProtocolError as error:
            raise UserError(f"{Path(str(run_dir)) / EXECUTION} is damaged ({error}); remove it") from None
    return defaults


def _with_more_steps(saved: RunConfig, given: RunConfig) -> RunConfig:
    """What is to go on, where it was given more steps than it had: they begin where the old total ends."""
    before, now = saved.training.total_steps, given.training.total_steps
    if now < before:
        raise UserError(f"--total-steps {now:,} is less than the run's {before:,}; leave it out, or give more")
    if now == before:
        return given
    totals = (*saved.training.earlier_totals, before)
    return dataclasses.replace(given, training=dataclasses.replace(given.training, earlier_totals=totals))


def _refuse_changes(saved: RunConfig, given: RunConfig) -> None:
    for part in ("experiment", "ppo", "training"):
        old, new = dataclasses.asdict(getattr(saved, part)), dataclasses.asdict(getattr(given, part))
        for name in old:
            if old[name] != new[name] and name not in ("total_steps", "earlier_totals"):
                raise UserError(
                    f"--resume continues a run with its own settings: --{name.replace('_', '-')} is {old[name]} there"
                    f" and cannot become {new[name]}; leave the flag out, or start a new run"
                )
