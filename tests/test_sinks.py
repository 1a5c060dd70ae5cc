"""Sinks: each gets every policy version once, also after failures of the run, and no sink can harm the run."""

import importlib.util
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from gate import Gate, iterations
from launching import ROOT, children, launch, metrics_of, running, stop, summary_of, wait_for

from protocol.errors import UserError
from protocol.events import Iteration
from protocol.execution import SinkName
from protocol.experiment import Experiment
from protocol.extras import how_to_install
from protocol.files import read_rows
from rundir.config import PPOConfig, RunConfig, TrainingConfig
from supervisor import sinks
from supervisor.sinks import Identity, Sinks, check_sinks, numbers_of

NAMES: list[SinkName] = ["tensorboard", "wandb", "trackio"]
INSTALLED = [name for name in NAMES if importlib.util.find_spec(name)]
RUN = "--num-envs 16 --lane-size 2 --rollout-length 32 --total-steps 15360 --minibatches 4 --epochs 2".split()  # noqa: SIM905
STEPS = 512  # of each iteration of it
CONFIG = RunConfig(Experiment(), PPOConfig(), TrainingConfig())


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every installed sink. Its learner was killed, and the run was stopped and resumed."""
    if not INSTALLED:
        pytest.skip("none of the extras tensorboard, wandb and trackio is installed")
    path = tmp_path_factory.mktemp("sinks")
    run_dir = path / "run"
    environ = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(path / "trackio"), "HF_HOME": str(path / "hf")}
    flags = ["--actors", "2", "--checkpoint-every", "5", "--sink", *INSTALLED]
    gate = Gate(run_dir, 8)
    flags += ["--eval-every", "10", "--eval-episodes", "2", *gate.flags]
    with running(run_dir, *RUN, *flags, env=os.environ | environ) as process:
        wait_for(lambda: iterations(run_dir) >= 8, process)
        (learner,) = children(psutil.Process(process.pid), "learner")
        learner.kill()
        gate.close_after(12)
        wait_for(lambda: iterations(run_dir) >= 12, process)
        out = stop(process, signal.SIGINT)
    assert summary_of(run_dir)["status"] == "stopped", "the run ended before its faults"
    gate.open()
    done = launch("--resume", run_dir, "--sink", *INSTALLED, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GETS NO MORE" not in out + done.stdout
    return run_dir


def expected(run_dir: Path) -> dict[str, dict[int, float]]:
    """{name: {env-steps: number}} from the metrics and evaluations, without times and sample counts.

    These two may differ when iterations are repeated after a failure.
    """
    numbers: dict[str, dict[int, float]] = {}
    for kind, rows in (("iteration", metrics_of(run_dir)), ("evaluation", read_rows(run_dir / "evaluations.jsonl"))):
        for row in rows:
            for name, number in numbers_of(kind, row).items():
                if not name.startswith(("time/", "samples/")):
                    numbers.setdefault(name, {})[row["env_steps"]] = number
    assert len(numbers["train/policy_loss"]) == 30
    assert list(numbers["evaluation/return_mean"]) == [10 * STEPS, 20 * STEPS, 30 * STEPS]
    assert numbers["policy_version"] == {version * STEPS: version for version in range(1, 31)}
    return numbers


def assert_holds(found: list[tuple[int, str, float]], run_dir: Path) -> None:
    """Every number of the run is exactly once in `found`, as (env-steps, name, number)."""
    for name, numbers in expected(run_dir).items():
        mine = [(env_steps, number) for env_steps, one, number in found if one == name]
        assert sorted(mine) == sorted(numbers.items()), name
    for name in ("time/seconds", "samples/trained"):
        env_steps = sorted(env_steps for env_steps, one, _ in found if one == name)
        assert env_steps == [version * STEPS for version in range(1, 31)]


def test_tensorboard_reads_what_the_metrics_say(disturbed: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(disturbed / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    found = [(e.step, tag, e.value) for tag in accumulator.Tags()["scalars"] for e in accumulator.Scalars(tag)]
    for name, numbers in expected(disturbed).items():
        mine = sorted((env_steps, number) for env_steps, one, number in found if one == name)
        assert mine == [(env_steps, float(np.float32(number))) for env_steps, number in sorted(numbers.items())], name
    assert len(list((disturbed / "tensorboard").iterdir())) == 2  # One file for each launch.
    assert "_hparams_/session_start_info" in accumulator.summary_metadata


def test_wandb_offline_holds_what_the_metrics_say(disturbed: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    found, ids, messages = [], set(), wandb_internal_pb2.__dict__
    for path in sorted(disturbed.glob("wandb/offline-run-*/*.wandb")):
        for data in wandb_records(path.read_bytes()):
            record = messages["Record"].FromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
                settings = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert settings["env"] == "CartPole-v1"
            if record.WhichOneof("record_type") == "history":
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                found += [(row["env_steps"], name, number) for name, number in row.items()]
    assert len(ids) == 1
    assert_holds(found, disturbed)


def wandb_records(log: bytes) -> Iterator[bytes]:
    """The records of a W&B file: after a header of 7 bytes, LevelDB's log format in blocks of 32 KiB."""
    at, record = 7, b""
    while at + 7 <= len(log):
        left = 32768 - at % 32768
        if left < 7:  # Too few bytes for the header of a piece.
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", log, at)
        record += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # A whole record, or the last piece of one.
            yield record
            record = b""


def test_trackio_holds_what_the_metrics_say(disturbed: Path) -> None:
    pytest.importorskip("trackio")
    name = f"run-{json.loads((disturbed / 'sinks' / 'trackio.json').read_text())['id']}"
    # This runs in its own process because trackio determines its folder when it is imported.
    read = "import json, sys; from trackio.sqlite_storage import SQLiteStorage as storage;"
    read += f"print(json.dumps(storage.get_logs({sinks.PROJECT!r}, {name!r})))"
    environ = os.environ | {"TRACKIO_DIR": str(disturbed.parent / "trackio"), "HF_HOME": str(disturbed.parent / "hf")}
    done = subprocess.run([sys.executable, "-c", read], env=environ, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert_holds([(row["step"], name, number) for row in rows for name, number in row.items()], disturbed)


class Recorder:
    """A sink for tests that records its calls, and raises at version `fault`."""

    def __init__(self, fault: int = -1) -> None:
        self.fault = fault
        self.fresh: list[bool] = []
        self.ids: list[str] = []
        self.versions: list[tuple[int, list[str]]] = []
        self.closed = 0

    def open(self, identity: Identity, fresh: bool) -> "Recorder":
        self.fresh.append(fresh)
        self.ids.append(identity.id)
        return self

    def log(self, env_steps: int, numbers: dict[str, float]) -> None:
        if env_steps == self.fault * STEPS:
            raise OSError("no space left")
        assert env_steps == numbers["policy_version"] * STEPS
        self.versions.append((env_steps // STEPS, list(numbers)))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


def row(version: int) -> dict[str, Any]:
    samples = {"produced": 8, "trained": 4, "dropped": {"stale": 3, "late": 1}, "in_flight": 0}
    return {
        "policy_version": version,
        "env_steps": version * STEPS,
        "train/entropy": 0.5,
        "none": None,
        "samples": samples,
    }


def feed(run_dir: Path, sink: Recorder, *versions: int, recorded: tuple[int, ...] = ()) -> list[str]:
    """Simulate one launch that finds the versions `recorded` in metrics.jsonl; returns its warnings."""
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row(version)) + "\n" for version in recorded))
    warnings: list[str] = []
    fed = Sinks(("wandb",), CONFIG, run_dir, warnings.append, {"wandb": sink.open})
    for version in versions:
        fed.feed(Iteration(row(version)))
    fed.close()
    return warnings


def test_a_version_is_logged_once_however_often_it_comes(tmp_path: Path) -> None:
    sink = Recorder()
    assert feed(tmp_path, sink, 1, 2, 3, 2, 3, 4) == []
    assert [version for version, _ in sink.versions] == [1, 2, 3, 4]
    assert sink.closed == 1


def test_a_resumed_run_goes_on_in_the_same_place_and_makes_up_for_what_is_missing(tmp_path: Path) -> None:
    sink = Recorder()
    feed(tmp_path, sink, 1, 2)
    feed(tmp_path, sink, 4, 5, recorded=(1, 2, 3, 4))
    assert [version for version, _ in sink.versions] == [1, 2, 3, 4, 5]
    assert sink.fresh == [True, False]
    assert sink.ids[0] == sink.ids[1]


def test_a_sink_that_fails_is_said_once_and_made_up_for_later(tmp_path: Path) -> None:
    sink = Recorder(fault=2)
    (warning,) = feed(tmp_path, sink, 1, 2, 3)
    assert "wandb" in warning
    assert "no space left" in warning
    sink.fault = -1
    assert feed(tmp_path, sink, recorded=(1, 2, 3)) == []
    assert [version for version, _ in sink.versions] == [1, 2, 3]


def test_a_sink_that_hangs_is_left_behind(tmp_path: Path) -> None:
    release = threading.Event()

    def hang(identity: Identity, fresh: bool) -> Recorder:
        release.wait()
        return Recorder()

    warnings: list[str] = []
    other = Recorder()
    fed = Sinks(("wandb", "trackio"), CONFIG, tmp_path, warnings.append, {"wandb": hang, "trackio": other.open})
    fed.feed(Iteration(row(1)))
    wait_for(lambda: other.versions)
    fed.close(seconds=1)
    release.set()
    assert len(warnings) == 1
    assert warnings[0].startswith("wandb HAS NOT TAKEN EVERYTHING")
    assert [version for version, _ in other.versions] == [1]


def test_only_numbers_are_logged_and_samples_by_their_name() -> None:
    assert numbers_of("iteration", row(1)) == {
        "policy_version": 1,
        "train/entropy": 0.5,
        "samples/produced": 8,
        "samples/trained": 4,
        "samples/dropped": 4,
        "samples/in_flight": 0,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_named_with_its_extra(name: SinkName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=re.escape(how_to_install(name))):
        check_sinks((name,))
    assert f"{name} = [" in (ROOT / "pyproject.toml").read_text()


def test_wandb_without_an_account_is_refused_before_anything_starts(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    home = {"HOME": str(tmp_path), "WANDB_MODE": "online", "NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": ""}
    done = launch("--run-dir", tmp_path / "run", "--sink", "wandb", **home)
    assert done.returncode == 2
    assert "WANDB_MODE=offline" in done.stderr
    assert not (tmp_path / "run").exists()
