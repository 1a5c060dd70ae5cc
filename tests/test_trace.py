"""`--trace FILE`: one timeline of all processes, which shows where acting and learning overlap."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from launching import SMALL, launch, together, train

from protocol import trace
from protocol.errors import UserError

# Environments that sleep, so that an update ends long before the rollouts that overlap it.
SLOW = [*SMALL, "--env", "benchmarks.environments:Sleep-v0", "--rollout-length", 8, "--total-steps", 384]


def timeline(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The spans of each process, by the name of the process."""
    events = json.loads(path.read_text())
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for event in events:
        if event["ph"] == "X":
            found[names[event["pid"]]].append(event)
    return found


def overlaps(spans: dict[str, list[dict[str, Any]]]) -> int:
    """The number of pairs of a rollout and an update that overlap in time."""
    rollouts = [s for name, own in spans.items() if name.startswith("actor") for s in own if s["name"] == "rollout"]
    updates = [s for s in spans["learner"] if s["name"] == "learn"]
    return sum(min(a["ts"] + a["dur"], b["ts"] + b["dur"]) > max(a["ts"], b["ts"]) for a in rollouts for b in updates)


@pytest.mark.slow
def test_every_process_is_on_the_timeline_and_tracing_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    traced = train(tmp_path / "traced", *SMALL, "--actors", 2, "--trace", path)
    spans = timeline(path)
    assert set(spans) == {"launcher", "learner", "actor 0", "actor 1", "witness"}
    rollouts = [
        (s["args"]["rollout"], s["args"]["lane"]) for i in (0, 1) for s in spans[f"actor {i}"] if "lane" in s["args"]
    ]
    assert set(rollouts) == {(k, lane) for k in range(4) for lane in range(8)}
    learnt = [s["args"]["iteration"] for s in spans["learner"] if s["name"] == "learn"]
    assert learnt == [0, 1, 2, 3]
    assert traced["weights_digest"] == train(tmp_path / "plain", *SMALL, "--actors", 2)["weights_digest"]


@pytest.mark.slow
def test_a_pipelined_run_acts_while_it_learns_and_a_sync_run_never_does(tmp_path: Path) -> None:
    def overlaps_of(schedule: str) -> int:
        path = tmp_path / f"{schedule}.json"
        train(tmp_path / schedule, *SLOW, "--actors", 1, "--schedule", schedule, "--trace", path)
        return overlaps(timeline(path))

    sync, pipelined = together(lambda: overlaps_of("sync"), lambda: overlaps_of("pipelined"))
    assert sync == 0
    assert pipelined > 0


def test_threads_share_a_timeline(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    train(tmp_path / "run", *SMALL, "--in-process", "--actors", 2, "--trace", path)
    (spans,) = timeline(path).values()
    assert {"rollout", "learn", "publish"} <= {span["name"] for span in spans}
    assert len({span["tid"] for span in spans}) == 3


def test_a_timeline_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    done = launch("--run-dir", tmp_path / "run", "--trace", tmp_path / "nowhere" / "trace.json")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "--trace" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_timeline_replaces_an_older_one_and_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trace.VARIABLE, "")  # With this, the value that `begin` sets is removed after the test.
    path = tmp_path / "trace.json"
    for older in ("", "[\n", '[\n{"ph": "M", "name": "process_name"},\n'):
        path.write_text(older)
        trace.begin(path)
        assert path.read_text() == "[\n"
    path.write_text("env = 'CartPole-v1'\n")
    with pytest.raises(UserError, match="is no timeline"):
        trace.begin(path)
    assert path.read_text() == "env = 'CartPole-v1'\n"


def test_a_timeline_that_fills_the_disk_is_given_up_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv(trace.VARIABLE, "")  # With this, the value that `begin` sets is removed after the test.
    trace.begin(tmp_path / "trace.json")
    trace.join("test")
    monkeypatch.setattr(os, "write", full)
    trace.flush()
    assert "--trace is given up" in capsys.readouterr().err
    with trace.span("more"):
        pass
    trace.flush()
    assert capsys.readouterr().err == ""
