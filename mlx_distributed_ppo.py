"""Training from Python, in scripts and notebooks:

    import mlx_distributed_ppo as ppo

    run = ppo.train(env="CartPole-v1", actors=4, total_steps=200_000)
    print(run.summary["episode_return_mean"], run.evaluate(episodes=20)["return_mean"])

A run is the same as one that `launch.py` starts, in processes of its own: its weights are equal to the bit, nothing of
it is in the calling process, and it ends, saved, when that process does.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, Literal, TypedDict, Unpack, get_type_hints

from actors.exported import ExportedPolicy, load_policy
from protocol.process import HASH_SEED, ONE_THREAD

__all__ = ["Run", "Settings", "TrainingFailed", "load_policy", "resume", "train"]

POLL_SECONDS = 0.05  # Seconds between two looks for new iterations.
PROGRESS = re.compile(r"^ *[\d,]+ / [\d,]+ env-steps")  # A line that tells of an iteration.

Callback = Callable[[dict[str, Any]], bool | None]


class TrainingFailed(RuntimeError):
    """A run or an evaluation ended with an error; the text says which."""


# scripts/facade writes what follows.


class Settings(TypedDict, total=False):
    """The flags of `launch.py`, as arguments."""

    env: str
    """Gymnasium environment id, or `module:EnvId` of a module that registers it."""
    env_kwargs: Sequence[str] | dict[str, Any]
    """Keyword arguments of the environment, `name=value` each."""
    wrapper: Sequence[str]
    """Wrappers around it, from the inside out: `module:Class`, or `module:Class(name=value, …)`."""
    seed: int
    """Seed of everything random in the run; the same seed gives the same weights, bit for bit."""
    num_envs: int
    """Environments stepped in all, shared by however many actors there are; a multiple of the lane size."""
    lane_size: int
    """Environments that step together as one lane, the unit of work given to an actor."""
    rollout_length: int
    """Steps of each environment in one iteration."""
    schedule: Literal["sync", "pipelined", "async"]
    """`sync`: act, then learn (textbook PPO). `pipelined`: act with the previous weights while learning. `async`: learn
    from whichever lanes deliver first, for environments of unequal speed; no two such runs are alike."""
    max_lag: int
    """In `async`, versions that a rollout's weights may be behind the learner's; older rollouts are dropped."""
    network: str
    """`mlp`, `nature_cnn`, `impala_cnn`, or `package:Class` for one of your own. `auto` takes the MLP without images,
    and for images the Nature CNN, or the IMPALA CNN where they are smaller than 36 × 36."""
    hidden_sizes: Sequence[int] | None
    """Widths of the fully connected layers; None takes 64 64 for the MLP, 512 and 256 for the two CNNs."""
    activation: Literal["tanh", "relu", "silu"]
    """Between the layers of the MLP; the CNNs use relu."""
    recurrent_size: int
    """Units of a recurrent layer after those layers, for a policy with a memory; 0 has none."""
    recurrent: Literal["gru", "lstm"]
    """What that layer is: a GRU, or an LSTM, whose state is twice as wide."""
    initial_std: float
    """Standard deviation of each action of a Gaussian policy, before it learns another."""
    critic_only: Sequence[str]
    """Parts of a Dict or Tuple observation that the value network alone sees: a key, a place, or `key.key` of what is
    inside another. Actors and exported policies act without them."""
    normalize_observations: bool
    """Scale observations by their running mean and standard deviation, and clip them to ±10."""
    rebuild_env: bool
    """Make a fresh environment for every episode, for those whose reset leaks state (BipedalWalker-v3)."""
    on_env_error: Literal["restart", "stop"]
    """When an environment raises or returns nonsense: truncate its episode and go on, or end the run."""
    episode_metrics: Sequence[str]
    """Numbers in the `info` of an episode's last step to keep as metrics `episode/NAME`; without names the first 32."""
    replay_cap: int
    """Steps after which an episode is truncated, so that its actions can always be replayed."""
    actors: int | None
    """Actor processes; None takes one for each performance core but one, and at least 1. 0 leaves all to remote ones,
    see --listen."""
    transport: Literal["ipc", "tcp"]
    """How actors reach the learner: a socket file, or TCP on 127.0.0.1, encrypted with a key made for the run."""
    listen: str | None
    """Let actors of other machines take part (`python -m actors --connect tcp://HOST:PORT --key FILE` there): where to
    listen for them, such as tcp://0.0.0.0:5555."""
    keys: str | Path | None
    """Directory of the keys that those need, which `launch.py keys DIR` makes."""
    insecure: bool
    """Listen without keys: whoever reaches the address can take part."""
    cluster: Literal["ray"] | None
    """Let Ray place the actors, a CPU for each, on the nodes of a cluster. Run this on one of them, with the extra
    `ray`; every node needs this clone and its environment at the same paths."""
    address: str | None
    """HOST:PORT of that cluster, or `auto` for the one that this machine belongs to; by default $RAY_ADDRESS, or
    without it a cluster of this machine alone."""
    in_process: bool
    """Run the learner and the actors as threads of this process."""
    step_timeout: float
    """Seconds without any progress after which an actor is taken to hang, and is replaced."""
    quiet: bool
    """Print warnings, errors and how the run ended, and nothing else."""
    let_sleep: bool
    """Let a Mac fall asleep over the run."""
    sink: Sequence[Literal["tensorboard", "wandb", "trackio"]]
    """Where the metrics go besides metrics.jsonl and metrics.csv, such as `tensorboard wandb trackio`; each needs the
    extra of its name."""
    trace: str | Path | None
    """Write a timeline of every process to this file, for ui.perfetto.dev or chrome://tracing. An older one that is
    there is replaced, and nothing else is."""
    dashboard: bool
    """Serve a page about the run for the browser of this machine, and print its address."""
    run_dir: str | Path | None
    """Directory for the results; by default a fresh one under runs/."""
    total_steps: int
    """Environment steps to train on, rounded up to whole iterations. With --resume, more than before let a finished or
    stopped run go on: up to the old total its schedules are as they were, and after it they go over the new one."""
    earlier_totals: Sequence[int]
    """The totals that the run had before; --resume with more --total-steps writes them."""
    init_from: str | None
    """Begin from the weights and the observation statistics of a run directory, of a policy that `export` wrote, or of
    a model.zip of Stable-Baselines3; the optimiser begins anew."""
    init_vecnormalize: str | None
    """With such a model.zip: the file that VecNormalize.save wrote."""
    init_partial: bool
    """Leave what does not fit as it is initialised, instead of ending."""
    stop_return: float | None
    """End once the mean return of the last 100 episodes reaches this; None trains to the end."""
    checkpoint_every: int
    """Iterations from one checkpoint to the next; the first and the last version are always saved."""
    eval_every: int | None
    """Iterations from one evaluation to the next, which other processes do meanwhile; the last version is evaluated as
    well. RUN_DIR/best keeps the best policy. None evaluates none."""
    best_by: str
    """What makes a policy the best: the mean return of its evaluation, or the name of an episode metric."""
    eval_episodes: int
    """Episodes of each evaluation: deterministic actions, and seeds that training never uses."""
    device: Literal["auto", "cpu", "gpu"]
    """Where the learner computes. Where there is a GPU, `auto` takes it for images and for large networks, and the CPU
    for small ones, which a GPU makes slower. A CPU's updates repeat themselves; of a GPU `deterministic` in
    summary.json says what was seen."""
    tf32: bool
    """Let a GPU round the factors of float32 products to 10 bits, which some do many times faster. The learner then
    computes other probabilities than the actors, who do not round."""
    learner_threads: int | None
    """Threads with which the learner computes on a CPU. None takes one, and for images four, which give the same bits
    as one. For vectors they are the BLAS's, and another number may give other low bits."""
    learning_rate: float
    """Step size of Adam."""
    learning_rate_schedule: str
    """`constant`, `linear` or `cosine` (to 0 at the end), points such as `1:1,0.5:0.1,0:0.1` (remaining progress:
    factor), or `adaptive`: by the KL divergence of each iteration, see `--desired-kl`."""
    desired_kl: float
    """What the `adaptive` learning rate steers the KL divergence of an iteration to."""
    epochs: int
    """Passes over each batch."""
    minibatches: int
    """Parts that a batch is split into; each is one step of Adam."""
    clip_range: float
    """How far the probability ratio may move before its gradient is cut."""
    clip_range_schedule: str
    """As for the learning rate, but for `adaptive`."""
    discount: float
    """Discount of future rewards, gamma."""
    gae_lambda: float
    """Lambda of generalised advantage estimation: 0 trusts the critic, 1 trusts the rewards."""
    normalize_advantages: bool
    """Scale the advantages of each minibatch to mean 0 and standard deviation 1."""
    normalize_rewards: bool
    """Divide rewards by the running standard deviation of the discounted return, and clip them to ±10."""
    entropy_coef: float
    """Weight of the entropy bonus."""
    entropy_coef_schedule: str
    """As for the learning rate, but for `adaptive`."""
    value_coef: float
    """Weight of the value loss."""
    value_clip_range: float | None
    """How far a value may move in one iteration; None does not limit it."""
    max_grad_norm: float
    """Norm that the gradient is scaled down to; inf does not limit it."""
    recompute_advantages: bool
    """Compute advantages and value targets anew before each epoch, with the values as they are then."""
    target_kl: float | None
    """Skip an iteration's remaining epochs once the policy has moved this far (KL divergence); None never does."""


# scripts/facade wrote this.


class Run:
    """A run that has ended, in its directory `path`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        """Its directory, so that a run can be given where a path can, as in `init_from=run`."""
        return str(self.path)

    @property
    def summary(self) -> dict[str, Any]:
        """How the run ended: status, env_steps, episode_return_mean, weights_digest and more."""
        return json.loads((self.path / "summary.json").read_text())

    def metrics(self) -> list[dict[str, Any]]:
        """A row for each iteration, by the names of docs/metrics.md; `pandas.DataFrame(run.metrics())` is a table."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def policy(self, best: bool = False) -> ExportedPolicy:
        """The newest policy, or the best by its evaluations: `policy(observation)` is an action. Its environment is
        made once, to see its spaces. Raises `UserError`."""
        from commands.helpers.policies import describe, open_policy

        experiment, snapshot = open_policy(self.path, best)
        return ExportedPolicy(describe(experiment, snapshot.policy_version), snapshot)

    def evaluate(self, episodes: int = 20, best: bool = False) -> dict[str, Any]:
        """What `launch.py eval` finds: return_mean, returns, lengths, episode metrics. Raises `TrainingFailed`."""
        flags = ["eval", str(self.path), "--episodes", str(episodes), *(["--best"] if best else [])]
        _Process(flags, quiet=True).finish()
        return json.loads((self.path / "eval.json").read_text())


def train(on_iteration: Callback | None = None, **settings: Unpack[Settings]) -> Run:
    """Train a policy, and return its run when it is over. `settings` are the flags of `launch.py`; what is not given is
    as the preset for the environment has it.

    `on_iteration` is called with the row of each iteration, as `Run.metrics` has it; where it returns True, the run
    ends, saved. It can change nothing else. Raises `TrainingFailed` on a mistake in the settings and on a run that
    fails.
    """
    run_dir = Path(settings.get("run_dir") or _fresh_run_dir(settings))
    flags = _flags({**settings, "run_dir": run_dir})
    return _follow(run_dir, flags, on_iteration, bool(settings.get("quiet")))


def resume(run_dir: str | os.PathLike[str], on_iteration: Callback | None = None, **settings: Unpack[Settings]) -> Run:
    """Go on with a run that was stopped, or, with more `total_steps`, with one that was finished; else as `train`."""
    return _follow(
        Path(run_dir), ["--resume", os.fspath(run_dir), *_flags(settings)], on_iteration, bool(settings.get("quiet"))
    )


def _fresh_run_dir(settings: Settings) -> Path:
    from commands.helpers.run_directory import fresh_run_dir, run_name
    from protocol.experiment import Experiment

    chosen = {name: settings[name] for name in ("env", "seed") if name in settings}
    return fresh_run_dir(run_name(Experiment(**chosen)))


def _flags(settings: Settings) -> list[str]:
    """The settings as a command line has them. Raises `TrainingFailed` on one that is none."""
    flags, known = [], get_type_hints(Settings)
    for name, value in settings.items():
        if name not in known:
            close = get_close_matches(name, known, 1)
            raise TrainingFailed(f"{name} is no setting" + (f"; did you mean {close[0]}?" if close else ""))
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list | tuple):
            flags += [f"--{flag}", *map(str, value)]
        elif isinstance(value, dict):
            flags += [f"--{flag}", *(f"{key}={given!r}" for key, given in value.items())]
        else:
            flags += [f"--{flag}", os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
    return flags


def _follow(run_dir: Path, flags: list[str], on_iteration: Callback | None, quiet: bool) -> Run:
    """Run `launch.py` to its end, and call back meanwhile."""
    run_dir = run_dir.absolute()
    rows = _new_rows(run_dir / "metrics.jsonl")
    process = _Process(flags, quiet)
    try:
        while process.is_running():
            if on_iteration is not None and any([on_iteration(row) for row in next(rows)]):  # noqa: C419 - all are told
                process.stop()
                on_iteration = None
            time.sleep(POLL_SECONDS)
        for row in next(rows) if on_iteration is not None else ():
            on_iteration(row)
    except BaseException:  # The callback's own, or a user who interrupts: what was learned is kept.
        process.stop()
        process.wait()
        raise
    process.finish()
    return Run(run_dir)


def _new_rows(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Each time, the rows that have come since; of a run that goes on, not those of before."""
    from dashboard.reading import GrowingFile

    file, newest = GrowingFile(path), 0
    for row in file.read(lambda: None):
        newest = row["policy_version"]
    while True:
        rows = [row for row in file.read(lambda: None) if row["policy_version"] > newest]
        newest = rows[-1]["policy_version"] if rows else newest
        yield rows


class _Process:
    """`launch.py` in a process of its own, which ends when this one does. What it prints is printed here."""

    def __init__(self, flags: Sequence[str], quiet: bool) -> None:
        shows_view = not quiet and sys.stdout is sys.__stdout__ and sys.stdout is not None and sys.stdout.isatty()
        self._quiet = quiet
        self._complaints: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", Path(__file__).stem, *flags],
            stdin=subprocess.PIPE,  # It ends when this pipe does.
            stdout=None if shows_view else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **HASH_SEED, **ONE_THREAD, "PYTHONPATH": _module_path()},
        )
        self._readers = [threading.Thread(target=self._complain, daemon=True)]
        if self._process.stdout is not None:
            self._readers.append(threading.Thread(target=self._print, args=(self._process.stdout,), daemon=True))
        for reader in self._readers:
            reader.start()

    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """Ask it to save and end."""
        if self.is_running():
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        self._process.wait()
        for reader in self._readers:
            reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def finish(self) -> None:
        """Wait for its end, and show what it said to standard error. Raises `TrainingFailed` if it failed."""
        self.wait()
        if self._process.returncode:
            said = " ".join(line.removeprefix("launch.py: ") for line in self._complaints[-20:])
            raise TrainingFailed(said or f"the run ended with exit code {self._process.returncode}")
        for line in self._complaints:
            print(line, file=sys.stderr)

    def _complain(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._complaints.append(line.rstrip("\n"))

    def _print(self, pipe: IO[str]) -> None:
        """Print what it says; in a notebook, lines of progress take each other's place."""
        notebook, open_line = "ipykernel" in sys.modules, False
        for line in pipe:
            if self._quiet:
                continue
            progress = notebook and PROGRESS.match(line) is not None
            text = f"\r{line.rstrip()}" if progress else f"\n{line}" if open_line else line
            print(text, end="", flush=True)
            open_line = progress


def _module_path() -> str:
    """Where the process finds this module, and what the caller's own path has."""
    return os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])


def _end_with_parent() -> None:
    """End the run, saved, when the process that started it has gone."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    import launch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    launch.run(sys.argv[1:])
