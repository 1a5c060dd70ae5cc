"""Sends the metrics to TensorBoard, Weights & Biases or trackio. Each sink is fed by a thread of its own.

metrics.jsonl and evaluations.jsonl are the truth. A launch first gives a sink the rows that the sink lacks, then each
iteration and evaluation as it comes. A sink gets each version once. Its x-axis is env-steps; the version is a number
beside the others.
"""

import dataclasses
import importlib.util
import json
import netrc
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from protocol.errors import UserError
from protocol.events import Evaluated, Event, Iteration
from protocol.execution import SinkName
from protocol.extras import how_to_install
from protocol.files import read_object, read_rows, replace_file
from protocol.text import error_line
from protocol.trajectory import EPISODE
from rundir.config import RunConfig
from rundir.episode_metrics import metrics_in
from rundir.names import EVALUATIONS, METRICS

PROJECT = "mlx-distributed-ppo"
CLOSE_SECONDS = 10.0  # Seconds that the sinks have, together, to take the rest.
KINDS = {"iteration": METRICS, "evaluation": EVALUATIONS}  # Kinds of rows, and the files that hold them.


@dataclasses.dataclass(frozen=True)
class Identity:
    """The identity of a run in a sink, the same in every launch."""

    name: str
    id: str  # Unique, even if several directories have the same name.
    run_dir: Path
    settings: dict[str, Any]  # Hyperparameters.


class Sink(Protocol):
    """One place that takes numbers by env-steps. An exception of a sink ends its feeding, and nothing else."""

    def log(self, env_steps: int, numbers: dict[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class TensorBoardSink:
    """Writes RUN_DIR/tensorboard with the tensorboard package's own writer, without TensorFlow or PyTorch."""

    def __init__(self, identity: Identity, fresh: bool) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        messages: Any = event_pb2  # Generated at import, so that type checkers do not know its contents.
        self._event = messages.Event
        self._writer = EventFileWriter(str(identity.run_dir / "tensorboard"))
        if fresh:
            self._writer.add_event(self._settings(identity.settings))

    def log(self, env_steps: int, numbers: dict[str, float]) -> None:
        event = self._event(wall_time=time.time(), step=env_steps)  # One event for all: a kill cannot cut a row.
        for name, number in numbers.items():
            event.summary.value.add(tag=name, simple_value=number)
        self._writer.add_event(event)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _settings(self, settings: dict[str, Any]) -> Any:
        """The event that TensorBoard's HParams page reads."""
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2

        messages: Any = plugin_data_pb2
        info = messages.SessionStartInfo()
        for name, value in settings.items():
            kind = {bool: "bool_value", int: "number_value", float: "number_value"}.get(type(value), "string_value")
            setattr(info.hparams[name], kind, str(value) if kind == "string_value" else value)
        data = messages.HParamsPluginData(session_start_info=info, version=metadata.PLUGIN_DATA_VERSION)
        event = self._event(wall_time=time.time())
        summary = event.summary.value.add(tag=metadata.SESSION_START_INFO_TAG)
        summary.metadata.plugin_data.plugin_name = metadata.PLUGIN_NAME
        summary.metadata.plugin_data.content = data.SerializeToString()
        return event


class WandbSink:
    """Weights & Biases, online or as WANDB_MODE says. Its files are in RUN_DIR/wandb."""

    def __init__(self, identity: Identity, fresh: bool) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=identity.name,
            id=identity.id,
            resume="allow",
            dir=str(identity.run_dir),
            config=identity.settings,
            settings=wandb.Settings(silent=True, console="off"),  # `silent` also stops questions in the terminal.
        )
        # wandb's own steps may only grow, but an evaluation comes after the iterations that followed its version.
        self._run.define_metric("*", step_metric="env_steps")

    def log(self, env_steps: int, numbers: dict[str, float]) -> None:
        self._run.log({"env_steps": env_steps, **numbers})

    def flush(self) -> None:
        pass  # wandb sends when it can, from a process of its own.

    def close(self) -> None:
        self._run.finish()


class TrackioSink:
    """trackio, in its own folder or, with TRACKIO_SPACE_ID, in a Space; `trackio show` shows it."""

    def __init__(self, identity: Identity, fresh: bool) -> None:
        import trackio

        self._run = trackio.init(
            PROJECT,
            name=f"{identity.name}-{identity.id}",
            resume="allow",
            config={name: list(v) if isinstance(v, tuple) else v for name, v in identity.settings.items()},
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, env_steps: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=env_steps)

    def flush(self) -> None:
        pass  # trackio stores twice a second, from a thread of its own.

    def close(self) -> None:
        self._run.finish()


OPEN: dict[str, Callable[[Identity, bool], Sink]] = {
    "tensorboard": TensorBoardSink,
    "wandb": WandbSink,
    "trackio": TrackioSink,
}


def check_sinks(names: tuple[SinkName, ...]) -> None:
    """Raise `UserError` on a sink that cannot work here."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--sink {name} needs a package that is not installed; {how_to_install(name)}")
    if "wandb" in names and os.environ.get("WANDB_MODE", "online") == "online" and not _has_wandb_key():
        raise UserError("--sink wandb: no account is known here; `wandb login`, or set WANDB_MODE=offline")


def _has_wandb_key() -> bool:
    """Whether there is a key where wandb looks for one. wandb's own answer would wait for the network."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC") or None).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any(login == "user" for login, _, _ in hosts.values())  # `wandb login` writes this for any host.


Rows = queue.SimpleQueue[tuple[str, dict[str, Any]] | None]  # Each row comes after its kind; None is the end.


class Sinks:
    """The sinks of one launch. The user is warned once about each sink that fails."""

    def __init__(
        self,
        names: tuple[SinkName, ...],
        config: RunConfig,
        run_dir: Path,
        warn: Callable[[str], None],
        open_sink: dict[str, Callable[[Identity, bool], Sink]] = OPEN,
    ) -> None:
        self._warn = warn
        self._queues: dict[str, Rows] = {}
        self._threads: dict[str, threading.Thread] = {}
        for name in dict.fromkeys(names):
            feeder = _Feeder(name, config, run_dir, warn, open_sink[name])
            self._queues[name] = feeder.rows
            self._threads[name] = threading.Thread(target=feeder.run, daemon=True, name=f"sink {name}")
            self._threads[name].start()

    def feed(self, event: Event) -> None:
        """Pass an iteration or an evaluation on to the sinks, and ignore other events. Never waits."""
        match event:
            case Iteration(row):
                fed = "iteration", row
            case Evaluated(result=row):
                fed = "evaluation", row
            case _:
                return
        for rows in self._queues.values():
            rows.put(fed)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait for at most `seconds` until the sinks have taken the rest."""
        for rows in self._queues.values():
            rows.put(None)
        deadline = time.monotonic() + seconds
        for name, thread in self._threads.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._warn(f"{name} HAS NOT TAKEN EVERYTHING within {seconds:.0f} s; metrics.jsonl has it")


class _Feeder:
    """Gives one sink each version once, across launches: sinks/NAME.json holds the last versions that the sink got."""

    def __init__(
        self,
        name: str,
        config: RunConfig,
        run_dir: Path,
        warn: Callable[[str], None],
        open_sink: Callable[[Identity, bool], Sink],
    ) -> None:
        self.rows: Rows = queue.SimpleQueue()
        self._name = name
        self._settings = config.settings
        self._run_dir = run_dir
        self._warn = warn
        self._open = open_sink
        self._path = run_dir / "sinks" / f"{name}.json"

    def run(self) -> None:
        """Feed the sink until None comes, or until it fails."""
        try:
            self._feed()
        except Exception as error:  # A library, a network or a disk may raise anything.
            reason = error_line(error)
            self._warn(f"{self._name} GETS NO MORE METRICS: {reason}; training continues, and --resume makes up for it")

    def _feed(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        state = self._load()
        fresh = state is None
        self._state = state or {"id": uuid.uuid4().hex[:8], **dict.fromkeys(KINDS, 0)}
        identity = Identity(self._run_dir.resolve().name, self._state["id"], self._run_dir, self._settings)
        sink = self._open(identity, fresh)
        replace_file(self._path, json.dumps(self._state))
        try:
            for kind, file in KINDS.items():
                for row in read_rows(self._run_dir / file, ["policy_version", "env_steps"]):
                    self._log(sink, kind, row)
            self._enter(sink)
            while (fed := self.rows.get()) is not None:
                self._log(sink, *fed)
                if self.rows.empty():
                    self._enter(sink)
        finally:
            self._enter(sink)
        sink.close()

    def _log(self, sink: Sink, kind: str, row: dict[str, Any]) -> None:
        version = row["policy_version"]
        if version > self._state[kind]:
            sink.log(row["env_steps"], numbers_of(kind, row))
            self._state[kind] = version

    def _enter(self, sink: Sink) -> None:
        """Save what the sink has got. The file is not synced, since it is written after every iteration."""
        sink.flush()
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(self._state))
        temporary.replace(self._path)

    def _load(self) -> dict[str, Any] | None:
        return read_object(self._path)


def numbers_of(kind: str, row: dict[str, Any]) -> dict[str, float]:
    """The numbers of an iteration or an evaluation that a sink gets."""
    if kind == "evaluation":
        known = {name: row[name] for name in ("return_mean", "return_std") if row.get(name) is not None}
        known |= {name.removeprefix(EPISODE): value for name, value in metrics_in(row).items()}
        return {f"evaluation/{name}": value for name, value in known.items()}
    numbers: dict[str, float] = {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "env_steps"
    }
    samples = dict(row.get("samples", {}))
    samples["dropped"] = sum(samples.get("dropped", {}).values())
    return numbers | {f"samples/{name}": count for name, count in samples.items()}
