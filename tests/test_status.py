"""A run's status, events.jsonl and status.json, with data made by tests and by real runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import SMALL, launch, running, stop, train, wait_for
from test_launch import LONG

from learner.stopwatch import Stopwatch
from protocol.events import ActorFacts
from supervisor.report import Report
from supervisor.status import KEEP_GONE_SECONDS, History, RunStatus, memory_of
from supervisor.terminal import Terminal


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def status_at(clock: Clock) -> RunStatus:
    return RunStatus("CartPole-v1, seed 0", 10_000, clock)


def row(env_steps: int, **more: Any) -> dict[str, Any]:
    shares = {"time/learner_wait_share": 0.25, "time/learner_learn_share": 0.5, "time/learner_send_share": 0.125}
    other = {"rollout/episode_return_mean": 20.0, "time/actor_acting_share": None, "time/env_steps_per_second": 1000.0}
    return {"env_steps": env_steps, **shares, **other, **more}


def facts(name: str, pid: int, **more: Any) -> ActorFacts:
    known = {"state": "working", "lanes": (0, 1), "env_steps": 600, "acting": 0.75, "seconds_silent": 0.25}
    return ActorFacts(name, pid, pid, **{**known, **more})


def actor_of(status: RunStatus, name: str) -> dict[str, Any]:
    (actor,) = [actor for actor in status.as_dict()["actors"] if actor["name"] == name]
    return actor


def test_a_status_holds_exactly_what_others_read() -> None:
    status = status_at(Clock())
    status.actor_started("0", 1234, 1)
    said = status.as_dict()
    assert list(said) == "time state title env_steps total_steps seconds_left shares memory actors".split()  # noqa: SIM905
    assert list(said["shares"]) == ["acting", "waiting", "learning", "sending"]
    assert list(said["memory"]) == ["launcher", "learner"]
    (actor,) = said["actors"]
    names = "name pid state lanes env_steps env_steps_per_second acting restarts memory seconds_silent"
    assert list(actor) == names.split()
    assert (said["state"], said["env_steps"], said["seconds_left"]) == ("starting", 0, None)
    assert set(said["shares"].values()) == {None}
    assert json.loads(json.dumps(said, allow_nan=False)) == said


def test_the_time_left_follows_from_the_speed_since_the_first_iteration() -> None:
    clock = Clock()
    status = status_at(clock)
    status.take_row(row(1000))
    assert status.seconds_left is None
    clock.now += 4
    status.take_row(row(3000))
    assert status.seconds_left == pytest.approx(7000 / 500)


def test_shares_are_means_over_the_last_iterations_and_unknown_ones_stay_unknown() -> None:
    status = status_at(Clock())
    status.take_row(row(1000))
    status.take_row(row(2000, **{"time/learner_wait_share": 0.75}))
    assert status.shares == {"acting": None, "waiting": 0.5, "learning": 0.5, "sending": 0.125}
    status.take_row(row(3000, **{"time/actor_acting_share": 0.5}))
    assert status.shares["acting"] == 0.5


def test_an_actor_is_followed_from_its_start_over_its_loss_to_its_next_process() -> None:
    clock = Clock()
    status = status_at(clock)
    status.actor_started("0", 1, 1)
    assert actor_of(status, "0")["state"] == "starting"
    status.take_actors([facts("0", 1)])
    clock.now += 2
    status.take_actors([facts("0", 1, env_steps=1000)])
    actor = actor_of(status, "0")
    assert (actor["state"], actor["lanes"], actor["env_steps"], actor["acting"]) == ("working", [0, 1], 1000, 0.75)
    assert actor["env_steps_per_second"] == 200

    status.lose_actor("0")
    status.take_actors([facts("0", 1, env_steps=1000)])  # Sent before the learner knew of the loss.
    clock.now += 3
    status.measure()
    actor = actor_of(status, "0")
    assert (actor["state"], actor["pid"], actor["lanes"], actor["seconds_silent"]) == ("lost", None, [], 3)
    assert actor["env_steps_per_second"] is actor["acting"] is actor["memory"] is None

    status.actor_started("0", 2, 2, again=True)
    status.take_actors([facts("0", 1, env_steps=1000)])
    assert actor_of(status, "0")["state"] == "starting"
    status.take_actors([facts("0", 2, env_steps=50)])
    actor = actor_of(status, "0")
    assert (actor["state"], actor["pid"], actor["restarts"], actor["env_steps"]) == ("working", 2, 1, 1050)


def test_env_steps_add_up_over_learners() -> None:
    status = status_at(Clock())
    status.actor_started("0", 1, 1)
    status.take_actors([facts("0", 1, env_steps=600)])
    status.lose_learner()
    assert status.as_dict()["state"] == "starting"
    status.take_actors([])
    assert actor_of(status, "0")["state"] == "starting"
    status.take_actors([facts("0", 1, env_steps=100)])
    assert actor_of(status, "0")["env_steps"] == 700


def test_an_actor_of_another_machine_comes_goes_and_is_forgotten() -> None:
    clock = Clock()
    status = status_at(clock)
    status.take_actors([facts("desk-1", os.getpid())])
    status.measure()
    actor = actor_of(status, "desk-1")
    assert (actor["pid"], actor["memory"]) == (os.getpid(), None)  # The process runs on another machine.
    status.take_actors([])
    assert actor_of(status, "desk-1")["state"] == "lost"
    clock.now += KEEP_GONE_SECONDS + 1
    status.measure()
    assert status.as_dict()["actors"] == []


def test_actors_are_in_the_order_of_their_numbers() -> None:
    status = status_at(Clock())
    status.take_actors([facts("b", 1), facts("a", 2)])
    for index in (10, 9, 2):
        status.actor_started(str(index), index, index)
    assert [actor.name for actor in status.actors] == ["2", "9", "10", "a", "b"]


def test_memory_is_that_of_each_process_and_none_of_one_that_has_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        wait_for(lambda: (memory_of(child.pid) or 0) > 2**20)
        child.kill()
        wait_for(lambda: memory_of(child.pid) is None)  # The child is a zombie until it is waited for.
    assert memory_of(child.pid) is None
    assert memory_of(None) is None
    status = status_at(Clock())
    status.learner_started(child.pid)
    status.actor_started("0", child.pid, 1)
    status.actor_started("1", 0, 2)  # An actor in a thread has no process.
    status.measure()
    assert (status.memory["launcher"] or 0) > 2**20
    assert status.memory["learner"] is None
    assert [actor.memory for actor in status.actors] == [None, None]


@given(st.lists(st.floats(-1e6, 1e6), max_size=300))
def test_a_history_keeps_the_whole_curve_in_bounded_memory(values: list[float]) -> None:
    history = History(capacity=16)
    for steps, value in enumerate(values):
        history.append(steps, value)
    points = history.points()
    assert len(points) <= 18
    assert [steps for steps, _ in points] == sorted({steps for steps, _ in points})
    for _, point in points:
        assert min(values) - 1e-6 <= point <= max(values) + 1e-6
    assert points[-1:] == list(enumerate(values))[-1:]  # The newest value is what the curve ends with.
    if len(values) <= 16:
        assert points == list(enumerate(values))


def test_a_history_of_a_straight_line_is_one() -> None:
    history = History(capacity=16)
    for value in range(1024):
        history.append(2 * value, value)
    points = history.points()
    assert points == sorted(points) and all(steps == 2 * value for steps, value in points)
    assert points[0][1] < 128 and points[-1][1] == 1023


def test_a_history_forgets_what_a_learner_does_again() -> None:
    history = History(capacity=16)
    for steps in range(100):
        history.append(steps, 1.0)
    for steps in range(50, 60):
        history.append(steps, 2.0)
    points = history.points()
    assert points == sorted(points) and points[-1] == (59, 2.0)
    assert {value for steps, value in points if steps < 42} == {1.0}
    history.append(60, float("nan"))
    assert history.points() == points


def test_a_resumed_run_has_the_curve_of_before() -> None:
    status = status_at(Clock())
    rows = [row(100), row(200, **{"rollout/episode_return_mean": None}), {"env_steps": 300}, row(400)]
    status.take_earlier(rows)
    assert [steps for steps, _ in status.returns.points()] == [100, 400]
    assert (status.row, status.env_steps) == ({}, 0)
    status.take_row(row(400))
    assert [steps for steps, _ in status.returns.points()] == [100, 400]


def test_actors_of_a_run_that_is_over_have_ended() -> None:
    status = status_at(Clock())
    status.actor_started("0", 1234, 1)
    status.take_actors([facts("0", 1), facts("desk-1", 2)])
    status.end("stopped")
    for name in ("0", "desk-1"):
        actor = actor_of(status, name)
        assert (actor["state"], actor["pid"], actor["memory"]) == ("ended", None, None)
        assert (actor["lanes"], actor["env_steps"]) == ([0, 1], 600)  # What was known last stays.


def test_a_stopwatch_tells_shares_since_it_was_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("learner.stopwatch.time.monotonic", clock)
    watch = Stopwatch()
    for _ in range(2):
        for purpose, seconds in (("gather", 1), ("learn", 2), ("learn", 3), (None, 2)):
            if purpose is None:
                clock.now += seconds
            else:
                with watch.on(purpose):
                    clock.now += seconds
        assert watch.take_shares("gather", "learn", "publish") == [1 / 8, 5 / 8, 0]


def report_in(path: Path) -> Report:
    status = status_at(Clock())
    return Report(path, status, Terminal(status, quiet=True))


def events_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]


def test_what_a_killed_launcher_left_half_written_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "note"}\n{"event": "no')
    report_in(tmp_path).tell("note", "hello", why=1)
    assert [event["event"] for event in events_of(tmp_path)] == ["note", "note"]
    assert events_of(tmp_path)[1].items() >= {"text": "hello", "why": 1}.items()


def test_a_disk_that_refuses_is_said_once_and_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gone"
    report = report_in(path)
    for _ in range(3):
        report.tell("note", "hello")
        report._next_status = 0.0
        report.tick()
    said = capsys.readouterr().out
    assert said.count("events.jsonl IS NOT BEING WRITTEN") == said.count("status.json IS NOT BEING WRITTEN") == 1
    path.mkdir()
    report.tell("note", "again")
    assert [event["text"] for event in events_of(path)] == ["again"]


def test_a_terminal_need_not_obey_what_an_actor_said(tmp_path: Path) -> None:
    report = report_in(tmp_path)
    report.tell("warning", "before\x1b[2J\nafter")
    (event,) = events_of(tmp_path)
    assert event["text"] == report.status.happenings[0].text == "before?[2J?after"


@pytest.mark.slow
def test_a_run_with_a_killed_actor_tells_what_happened_in_order_and_its_status_is_always_whole(tmp_path: Path) -> None:
    path = tmp_path / "run"
    seen: list[dict[str, Any]] = []

    def look() -> dict[str, Any]:
        try:
            seen.append(json.loads((path / "status.json").read_text()))
        except FileNotFoundError:
            return {"actors": []}
        return seen[-1]

    def working() -> list[dict[str, Any]]:
        return [actor for actor in look()["actors"] if actor["state"] == "working" and actor["acting"]]

    def known(status: dict[str, Any]) -> list[float]:
        return [status["shares"][name] or 0.0 for name in ("waiting", "learning", "sending")]

    def names() -> list[str]:
        return [event["event"] for event in events_of(path)]

    with running(path, "--actors", 2, *SMALL, *LONG) as process:
        wait_for(lambda: len(working()) == 2, process)
        victim = seen[-1]["actors"][1]
        os.kill(victim["pid"], signal.SIGKILL)
        wait_for(lambda: sorted(actor["restarts"] for actor in working()) == [0, 1], process)
        wait_for(lambda: "actor_delivers" in names(), process)
        wait_for(lambda: sum(known(look())) > 0.5, process)
        stop(process)

    events = events_of(path)
    about = [event for event in events if event.get("actor") == "1"]
    order = ["actor_joined", "actor_lost", "actor_restarted", "actor_joined", "actor_delivers"]
    assert [event["event"] for event in about] == order
    assert about[1]["pid"] == victim["pid"] != about[2]["pid"]
    assert names().count("started") == 1
    assert names()[-1] == "ended"
    assert names().index("signal") > names().index("actor_delivers")
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    assert all(event["text"] for event in events)
    saved = [event for event in events if event["event"] == "checkpoint"]
    assert all(Path(event["path"]).name == f"{event['policy_version']:08}" for event in saved) and saved
    last = look()
    assert {actor["state"] for actor in last["actors"]} == {"ended"}
    assert (last["state"], last["seconds_left"], events[-1]["status"]) == ("stopped", None, "stopped")
    for actor in victim, *last["actors"]:
        assert 0 < actor["acting"] <= 1 and actor["env_steps"] > 0
    assert victim["memory"] > 2**20
    training = [status for status in seen if status["state"] == "training" and status["shares"]["waiting"]]
    assert all(min(known(status)) > 0 and sum(known(status)) <= 1.001 for status in training)
    assert training and (training[-1]["memory"]["learner"] or 0) > 2**20


def test_what_the_actors_delivered_adds_up_to_the_run(tmp_path: Path) -> None:
    summary = train(tmp_path / "run", "--in-process", "--actors", 2, *SMALL)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert sum(actor["env_steps"] for actor in status["actors"]) == summary["samples"]["produced"]
    assert status["state"] == "finished" and {actor["state"] for actor in status["actors"]} == {"ended"}
    assert (status["env_steps"], status["total_steps"]) == (2048, 2048)
    assert [(a["pid"], a["memory"]) for a in status["actors"]] == [(None, None)] * 2  # The actors are threads.
    assert status["memory"]["launcher"] > 2**20 and status["memory"]["learner"] is None


@pytest.mark.slow
def test_an_actor_without_lanes_is_idle_and_acts_none_of_its_time(tmp_path: Path) -> None:
    def told() -> list[dict[str, Any]]:
        path = tmp_path / "run" / "status.json"
        return json.loads(path.read_text())["actors"] if path.exists() else []

    def all_known() -> dict[str, dict[str, Any]]:
        """{state: actor}, once each actor is working or idle and has reported how it spends its time; else {}."""
        actors = told()
        known = sum(a["acting"] is not None if a["state"] == "idle" else bool(a["acting"]) for a in actors)
        return {actor["state"]: actor for actor in actors} if known == 3 else {}

    flags = ["--schedule", "async"]  # With this schedule, no idle actor serves as a witness.
    with running(tmp_path / "run", "--actors", 3, *SMALL, "--lane-size", 8, *LONG, *flags) as process:
        actors = wait_for(all_known, process)
    assert set(actors) == {"idle", "working"}
    assert actors["idle"]["lanes"] == [] and actors["working"]["lanes"]
    assert actors["idle"]["acting"] == 0 < actors["working"]["acting"]


@pytest.mark.slow
def test_a_run_that_fails_says_so_to_programs_too(tmp_path: Path) -> None:
    flags = ["--env", "tests.environments:Raise-v0", *SMALL, "--on-env-error", "stop"]
    assert launch("--run-dir", tmp_path / "run", *flags).returncode == 1
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    last = events_of(tmp_path / "run")[-1]
    assert (last["event"], last["status"]) == ("ended", "failed")
    assert "episode seed" in last["text"]
