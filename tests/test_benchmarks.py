"""The benchmarks: their arithmetic, their fairness and their reports. These tests do not check any speed."""

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from launching import ROOT, TIMEOUT, WARNINGS

import benchmarks.environments
from benchmarks import compare, contenders, report
from benchmarks.__main__ import main
from benchmarks.contenders import CLEANRL, RLLIB, SB3, Contender, Peer, Shape, find_peers
from benchmarks.measurements import Row, Samples, at_least, at_most, interleave
from benchmarks.peers.card import Card
from benchmarks.processes import Outcome, Worker, run_peer
from benchmarks.report import Report, as_dict, draw, number, publish, table
from benchmarks.scale import speeds_of
from benchmarks.stragglers import Run
from benchmarks.wire import experiment_of, spaces_for
from benchmarks.workloads import Workload, trajectory
from protocol.errors import UserError
from protocol.experiment import Experiment
from rundir.config import PPOConfig, TrainingConfig

CARD = Card("CartPole-v1", 8, 32, 2, 10, 2e-3, total_steps=8_000, discount=0.98, gae_lambda=0.8)
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is only here to compare")


def known_rows() -> list[Row]:
    theirs = Row("speed", "steps/s", "small", "theirs", Samples.of([10, 30, 20, 500, 15]))
    ours = Row("speed", "steps/s", "small", "ours", Samples.of([50, 70, 60]))
    ours = dataclasses.replace(ours, comparisons=(ours.against(theirs, at_least(4)), ours.against(theirs)))
    memory = Row("memory", "MB", "", "ours", Samples.of([58.5, 60.25]), target=at_most(60))
    return [ours, theirs, memory]


def benchmark(out: Path, *arguments: str) -> dict[str, Any]:
    """Run `python -m benchmarks ARGUMENTS…` to its end; returns the content of its JSON file."""
    command = [sys.executable, *WARNINGS, "-m", "benchmarks", *arguments, "--repeats", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(out / f"{arguments[0]}.json") in done.stdout
    return json.loads((out / f"{arguments[0]}.json").read_text())


def contenders_of(written: dict[str, Any]) -> list[str]:
    return [row["contender"] for row in written["rows"]]


def test_samples_tell_their_median_and_their_spread() -> None:
    odd, even = Samples.of([3, 1, 100]), Samples.of([1, 2, 4, 100])
    assert (odd.median, odd.low, odd.high) == (3, 1, 100)
    assert even.median == 3
    assert odd.times(2).values == (6, 2, 200)


def test_a_ratio_is_that_of_the_medians_whatever_the_outliers() -> None:
    ours, theirs, _ = known_rows()
    assert ours.comparisons[0].ratio == 60 / 20
    assert theirs.against(ours).ratio == 20 / 60


def test_a_target_may_be_met_exactly() -> None:
    assert at_least(4).met(4) and not at_least(4).met(3.999)
    assert at_most(0.35).met(0.35) and not at_most(0.35).met(0.351)
    assert (str(at_least(2.5)), str(at_most(60))) == ("≥ 2.5", "≤ 60")


def test_contenders_take_turns_and_the_first_turn_does_not_count() -> None:
    turns: list[str] = []

    def contender(name: str) -> Any:
        return lambda number: turns.append(f"{name}{number}") or 10 * number

    results = interleave({"a": contender("a"), "b": contender("b")}, repeats=2, title="test")
    assert turns == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert results == {"a": [10, 20], "b": [10, 20]}


def test_numbers_are_shown_with_three_digits() -> None:
    shown = [number(value) for value in (1234567.8, 102.4, 10.04, 1.005e0, 0.1234, 0.0012345, 0, -3.14159)]
    assert shown == ["1,234,568", "102", "10.0", "1.00", "0.123", "0.00123", "0", "-3.14"]


def test_the_table_shows_medians_spreads_ratios_and_targets() -> None:
    lines = [" ".join(line.split()) for line in table(known_rows()).splitlines()]
    assert lines == [
        "speed [steps/s]",
        "case contender median min–max ratio to target met",
        "small ours 60.0 50.0–70.0 3.00 theirs ≥ 4 no",
        "3.00 theirs",
        "small theirs 20.0 10.0–500",
        "",
        "memory [MB]",
        "case contender median min–max ratio to target met",
        "ours 59.4 58.5–60.2 ≤ 60 yes",
    ]


def test_the_file_holds_every_number_and_every_verdict() -> None:
    written = json.loads(json.dumps(as_dict(Report("test", known_rows(), ["a note"]), {"repeats": 3}), allow_nan=False))
    assert written["benchmark"] == "test" and written["settings"] == {"repeats": 3} and written["notes"] == ["a note"]
    ours, theirs, memory = written["rows"]
    assert ours["values"] == [50, 70, 60] and (ours["median"], ours["min"], ours["max"]) == (60, 50, 70)
    assert ours["comparisons"] == [
        {"rival": "theirs", "ratio": 3.0, "target": "≥ 4", "met": False},
        {"rival": "theirs", "ratio": 3.0},
    ]
    assert theirs["comparisons"] == [] and "target" not in theirs
    assert (memory["target"], memory["met"]) == ("≤ 60", True)


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `plot`")
    sweep = [Row("sweep", "ms", case, name, Samples.of([1, 2, 50])) for case in "abc" for name in ("ours", "theirs")]
    draw(Report("test", [*known_rows(), *sweep]), tmp_path / "test.png")
    assert (tmp_path / "test.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_everything_but_the_plot_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        report.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    publish(Report("test", known_rows()), {}, tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["test.json"]
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "no plot" in line)
    assert "matplotlib" in line and "extra `plot`" in line


MISTAKES = {
    "no repeats": (["update", "--repeats", "0"], "--repeats"),
    "a shape that is none": (["compare", "--work", "card", "--shapes", "8by1"], "--shapes 8by1"),
    "an interpreter that is none": (["compare", "--python", "/nowhere/python"], "/nowhere/python cannot be started"),
    "no iterations": (["compare", "--iterations", "0"], "--iterations: 0 is no whole number above 0"),
    "no minibatch": (["update", "--minibatch", "0"], "--minibatch"),
    "half an actor": (["scale", "--actors", "1", "0.5"], "--actors: 0.5 is no whole number above 0"),
    "no time": (["actor", "--seconds", "nan"], "--seconds: nan is no number above 0"),
    "no benchmark": (["everything"], "everything"),
}


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("benchmarks: ") and words in said[-1]
    assert not any("Traceback" in line for line in said)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out .*file"):
        publish(Report("test", known_rows()), {}, tmp_path / "file")


def test_a_worker_that_fails_says_why_in_one_line() -> None:
    with Worker("sending") as worker, pytest.raises(UserError, match=r"sending ended with code 1: TypeError: [^\n]*$"):
        worker.ask(bare=True, nonsense=1)


def test_every_contender_gets_the_same_card() -> None:
    for card in (CARD, dataclasses.replace(CARD, stop_return=475.0, hidden_sizes=(32,), network="nature_cnn", seed=3)):
        assert Card.parse(card.text()) == card
    assert {"--hidden-sizes 64 64", "--num-envs 8"} <= set(" ".join(CARD.flags()).replace(" --", "|--").split("|"))
    known = {field.name for kind in (Experiment, PPOConfig, TrainingConfig) for field in dataclasses.fields(kind)}
    assert {field.name for field in dataclasses.fields(Card)} <= known  # launch.py knows each field as a flag, too.
    assert (CARD.batch, CARD.minibatch, CARD.iterations) == (256, 128, 32)


def test_a_peer_that_is_missing_is_told_and_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Peer("Somebody", "some_card", "gymnasium", {"as it is": {}})
    missing = Peer("Nobody", "no_card", "no_such_package", {"as it is": {}})
    monkeypatch.setattr(contenders, "PEERS", (there, missing))
    notes: list[str] = []
    assert list(find_peers([sys.executable], notes.append)) == ["Somebody"]
    known = f"Somebody with gymnasium {gymnasium.__version__}"
    assert notes == [known, "no_such_package is not installed here; skipped"]


def test_a_contender_runs_in_the_way_that_was_fastest_in_short_runs() -> None:
    trials: list[Card] = []

    def way(seconds: float) -> contenders.Run:
        return lambda card: trials.append(card) or Outcome(1000, seconds, seconds, None)

    ways = {"slow": way(2.0), "fast": way(0.5), "middling": way(1.0)}
    notes: list[str] = []
    goal = dataclasses.replace(CARD, stop_return=475.0)
    assert Contender("Somebody", ways, trial_iterations=3).fastest(goal, notes.append) is ways["fast"]
    assert trials == [dataclasses.replace(CARD, total_steps=3 * CARD.batch)] * 3  # Trials do not stop at a return.
    assert len(notes) == 1 and "Somebody runs with fast" in notes[0] and "slow: 500/s" in notes[0]


def test_a_peer_that_does_not_run_is_skipped_but_we_are_not() -> None:
    def fail(card: Card) -> Outcome:
        raise UserError("it does not work")

    notes: list[str] = []
    assert Contender("Somebody", {"as it is": fail}).fastest(CARD, notes.append) is None
    assert notes == ["Somebody does not run here; skipped: it does not work"]
    with pytest.raises(UserError, match="it does not work"):
        Contender("We", {"as it is": fail}, optional=False).fastest(CARD, notes.append)


def fake(name: str, *rates: float) -> Contender:
    """A contender whose runs in rounds 0, 1, 2 and so on have these speeds."""
    return Contender(name, {"as it is": lambda card: Outcome(1000, 1000 / rates[card.seed], 9.0, None)})


@pytest.mark.parametrize(("cleanrl", "sb3"), [(20.0, 10.0), (10.0, 20.0)])
def test_speed_is_compared_with_the_faster_one_of_the_two_usual_rivals(
    cleanrl: float, sb3: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "ours", lambda schedule, *_: fake(f"MLX {schedule}", 1, 70, 90, 80))
    peers = [fake("CleanRL-style", 999, cleanrl, cleanrl, 1), fake("Stable-Baselines3", 999, sb3, 1, sb3)]
    arguments = argparse.Namespace(iterations=None, repeats=3, shapes=[], device="auto")
    found = Report("test")
    known = {peer.name: peer for peer in [*peers, fake("RLlib", 50, 50, 50, 50)]}
    work = compare.Work("speed", CARD, {"sync": at_least(4.0)}, (CLEANRL, SB3), (RLLIB,))
    compare.compare_speeds(work, arguments, known, found)
    first = found.rows[0]
    rival = "CleanRL-style" if cleanrl > sb3 else "Stable-Baselines3"
    assert first.contender == "MLX sync" and first.samples.values == pytest.approx((70, 90, 80))
    assert [(c.rival, c.ratio, c.target) for c in first.comparisons] == [(rival, pytest.approx(4), at_least(4.0))]
    assert [row.unit for row in found.rows] == ["env-steps/s"] * 4 + ["s"] * 4


def test_where_environments_sleep_speed_is_compared_with_what_they_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "ours", lambda schedule, *_: fake(f"MLX {schedule}", 1, 70, 90, 80))
    found = Report("test")
    work = compare.Work("sleep", CARD, {"pipelined": at_least(0.9)}, (), (SB3,), limit=100.0)
    arguments = argparse.Namespace(iterations=None, repeats=3, shapes=None, device="auto")
    compare.compare_speeds(work, arguments, {SB3.name: fake(SB3.name, 1, 999, 999, 999)}, found)
    assert [(c.rival, c.ratio, str(c.target)) for c in found.rows[0].comparisons] == [
        ("limit", pytest.approx(0.8), "≥ 0.9")
    ]


def test_the_time_to_a_return_is_compared_with_both_settings_and_says_how_often_it_was_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = [Outcome(1, 9, 18, 0.0), Outcome(1, 3, 6, 480.0), Outcome(1, 5, 10, 470.0)]
    monkeypatch.setattr(compare, "train", lambda flags: ours[int(flags[flags.index("--seed") + 1])])
    arguments = argparse.Namespace(repeats=2, device="auto")
    found = Report("test")
    compare.compare_returns(arguments, {"Stable-Baselines3": fake("Stable-Baselines3", 1, 50, 50)}, found)
    training, whole = (row for row in found.rows if row.contender == "MLX")
    assert [(c.ratio, str(c.target)) for c in training.comparisons] == [(4 / 20, "≤ 0.35"), (4 / 20, "≤ 0.15")]
    assert [c.ratio for c in whole.comparisons] == [8 / 9, 8 / 9]
    assert "MLX: 1 of 2 runs reached 475" in found.notes


def test_the_speed_of_a_learner_is_what_it_would_be_without_waiting() -> None:
    rows = [{"time/seconds": t, "time/learner_wait_share": share} for t, share in ((1, 0.9), (3, 0.75), (7, 0.875))]
    speeds = speeds_of(rows, steps=60)
    assert (speeds.run, speeds.learner) == (2 * 60 / 6, 60 / 0.5)


def test_a_shape_is_read_as_it_is_shown() -> None:
    assert Shape.parse("4x2") == Shape(lane_size=4, actors=2) and str(Shape(4, 2)) == "4x2"


@pytest.mark.parametrize("network", ["mlp", "nature_cnn"])
def test_synthetic_experience_passes_the_checks_of_the_learner(network: str) -> None:
    workload = Workload(network, 64, 32)
    made = trajectory(workload.spaces, workload.experiment, lane=0, rollout_index=1)
    made.check(workload.experiment, workload.spaces)
    assert made.rewards.size == workload.batch == 128
    assert workload.experiment.num_lanes == 1


def test_a_trajectory_on_the_wire_has_the_size_asked_for() -> None:
    for nbytes in (2**16, 2**22):
        made = trajectory(spaces_for(nbytes), experiment_of(), lane=0, rollout_index=0)
        assert made.observations.nbytes == nbytes


@needs_torch
@pytest.mark.parametrize(("network", "hidden"), [("mlp", 64), ("mlp", 256), ("nature_cnn", 512)])
def test_the_rival_of_an_update_has_the_same_network(network: str, hidden: int) -> None:
    from benchmarks.workers.torch_updates import ActorCritic as Rival
    from learner.model import ActorCritic

    workload = Workload(network, hidden, 32)
    ours = [array.size for array in ActorCritic(workload.spaces, workload.experiment).parameters()]
    assert sorted(ours) == sorted(parameter.numel() for parameter in Rival(workload).parameters())


@needs_torch
def test_the_rival_of_an_update_moves_every_parameter() -> None:
    from benchmarks.workers.torch_updates import Training

    training = Training(Workload("mlp", 16, 8))
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    training.epoch()
    assert all((old != new).any() for old, new in zip(before, training.model.parameters(), strict=True))


@needs_torch
def test_the_peer_in_the_manner_of_cleanrl_takes_the_steps_of_its_card_and_learns() -> None:
    outcome = run_peer(sys.executable, "benchmarks.peers.torch_card", [CARD.text()], {"OMP_NUM_THREADS": "1"})
    assert outcome.env_steps == 32 * 256  # Whole iterations.
    assert outcome.episode_return is not None and outcome.episode_return > 40  # Random actions reach 22.
    assert 0 < outcome.seconds <= outcome.wall_seconds


@needs_torch
@pytest.mark.parametrize(
    "flags", [["--compile"], ["--vector", "async"], pytest.param(["recurrent"], id="recurrent")], ids=str
)
@pytest.mark.slow
def test_the_peer_in_pytorch_learns_however_it_runs(flags: list[str]) -> None:
    recurrent = flags == ["recurrent"]
    card = dataclasses.replace(CARD, recurrent_size=64 * recurrent, total_steps=8_192 + 4_096 * recurrent)
    arguments = [card.text(), *([] if recurrent else flags)]
    outcome = run_peer(sys.executable, "benchmarks.peers.torch_card", arguments, {"OMP_NUM_THREADS": "1"})
    assert outcome.env_steps == card.total_steps
    assert outcome.episode_return is not None and outcome.episode_return > 40


@needs_torch
def test_the_peer_in_the_manner_of_cleanrl_stops_at_a_return() -> None:
    from benchmarks.peers.torch_card import train

    answer = train(dataclasses.replace(CARD, stop_return=15.0, total_steps=20_000))
    assert answer.episode_return is not None and answer.episode_return >= 15
    assert 100 * 15 <= answer.env_steps < 10_000


def test_the_sleeping_environment_is_a_proper_one() -> None:
    env = gymnasium.make("Sleep-v0", seconds=0.0).unwrapped
    check_env(env, skip_render_check=True)
    first, again = (env.reset(seed=5)[0].tolist() for _ in range(2))
    assert first == again
    steps = 1
    while not env.step(1)[3]:
        steps += 1
    assert steps == benchmarks.environments.EPISODE_LENGTH


@pytest.mark.slow
def test_actor_measures_rollouts_and_memory(tmp_path: Path) -> None:
    written = benchmark(tmp_path, "actor", "--seconds", "0.01")
    assert contenders_of(written) == ["actor: policy and lane", "SyncVectorEnv, random actions", "resident"]
    assert [row["unit"] for row in written["rows"]] == ["env-steps/s", "env-steps/s", "MB"]
    assert all(row["median"] > 0 for row in written["rows"])
    (comparison,) = written["rows"][0]["comparisons"]
    assert comparison["ratio"] == pytest.approx(written["rows"][0]["median"] / written["rows"][1]["median"])


@pytest.mark.slow
def test_wire_measures_every_size_in_every_way(tmp_path: Path) -> None:
    written = benchmark(tmp_path, "wire", "--megabytes", "2", "--size", "65536", str(4 * 2**20))
    ways = ["receive and stack", "receive, check and stack", "bare pyzmq"]
    assert contenders_of(written) == ways * 2
    assert [row["case"] for row in written["rows"]] == ["64 KB"] * 3 + ["4 MB"] * 3
    assert all(row["median"] > 0 and row["unit"] == "MB/s" for row in written["rows"])
    targets = [c.get("target") for row in written["rows"] for c in row["comparisons"]]
    assert targets == [None, None, "≥ 0.8", None]


@pytest.mark.slow
def test_curve_measures_every_size_with_keys_and_without(tmp_path: Path) -> None:
    written = benchmark(tmp_path, "curve", "--megabytes", "2", "--size", "65536", str(4 * 2**20))
    assert contenders_of(written) == ["with keys", "without"] * 2
    assert [row["case"] for row in written["rows"]] == ["64 KB"] * 2 + ["4 MB"] * 2
    for encrypted, plain in zip(written["rows"][::2], written["rows"][1::2], strict=True):
        (comparison,) = encrypted["comparisons"]
        assert comparison["rival"] == "without"
        assert comparison["ratio"] == pytest.approx(encrypted["median"] / plain["median"])


@needs_torch
def test_update_measures_both_sides(tmp_path: Path) -> None:
    written = benchmark(
        tmp_path, "update", "--network", "mlp-64", "--minibatch", "64", "--seconds", "0.01", "--threads", "1"
    )
    assert contenders_of(written) == ["MLX", "PyTorch"]
    assert all(math.isfinite(row["median"]) and row["unit"] == "ms" for row in written["rows"])
    assert written["rows"][0]["comparisons"][0]["target"] == "≤ 1"


def test_no_result_tells_where_it_was_measured() -> None:
    text = json.dumps(as_dict(Report("test", known_rows()), {}))
    assert str(Path.home()) not in text and os.uname().nodename not in text


@pytest.mark.slow
def test_stragglers_compares_both_schedules_where_lanes_are_unequal_and_where_they_are_equal(tmp_path: Path) -> None:
    written = benchmark(tmp_path, "stragglers", "--iterations", "3", "--slowest-ms", "0.5")
    assert contenders_of(written) == ["async", "pipelined"] * 4
    assert [row["unit"] for row in written["rows"][::2]] == ["env-steps/s", "return", "s", "env-steps"]
    assert [row["values"] for row in written["rows"][6:]] == [[3 * 2048.0] * 3] * 2
    assert all("0 of" in note for note in written["notes"])


def test_the_goal_is_reached_when_a_whole_window_of_episodes_has_the_return() -> None:
    columns = ("env_steps", "time/seconds", "rollout/episodes", "rollout/episode_return_mean")
    early, low, first, later = (10, 1.0, 99, 480.0), (20, 2.0, 100, 474.9), (30, 3.0, 100, 475.0), (40, 5.0, 100, 470.0)
    run = Run([dict(zip(columns, row, strict=True)) for row in (early, low, first, later)])
    assert (run.rate, run.episode_return) == (8.0, 470.0)
    assert (run.until_goal("env_steps"), run.until_goal("time/seconds")) == (30, 3.0)
    never = Run(run.rows[:2])
    assert never.goal is None and never.until_goal("env_steps") == 20


def test_an_uneven_environments_processes_take_the_places_from_slow_to_fast(tmp_path: Path) -> None:
    take_place = benchmarks.environments.take_place
    take_place.cache_clear()
    envs = []
    for _ in range(3):
        envs.append(benchmarks.environments.Uneven(str(tmp_path), slowest=0.1, places=3))
        assert benchmarks.environments.Uneven(str(tmp_path), slowest=0.1, places=3)._seconds == envs[-1]._seconds
        take_place.cache_clear()
    assert [env._seconds for env in envs] == pytest.approx([0.1, 0.1 / 10**0.5, 0.01])


# Scores

SHORT = ["scores", "--seeds", "0", "1", "--episodes", "3", "--flags", "--total-steps 4096"]


@pytest.mark.slow
def test_scores_are_kept_and_an_interrupted_seed_goes_on(tmp_path: Path) -> None:
    where = ["--runs", str(tmp_path / "runs")]
    first = benchmark(tmp_path, *SHORT, *where)
    (values,) = [row["values"] for row in first["rows"] if row["contender"] == "here"]
    assert len(values) == 2 and any("interquartile mean" in note for note in first["notes"])
    assert importlib.util.find_spec("matplotlib") is None or (tmp_path / "scores-curves.png").stat().st_size > 10_000
    folders = sorted((tmp_path / "runs").iterdir())
    assert [folder.name.rpartition("-")[0] for folder in folders] == ["CartPole-v1-seed0", "CartPole-v1-seed1"]
    rows = [(folder / "metrics.jsonl").read_text() for folder in folders]
    summary = json.loads((folders[0] / "summary.json").read_text())
    (folders[0] / "summary.json").write_text(json.dumps(summary | {"status": "stopped"}))
    (folders[1] / "eval.json").unlink()
    again = benchmark(tmp_path, *SHORT, *where)
    assert [row["values"] for row in again["rows"] if row["contender"] == "here"] == [values]
    assert json.loads((folders[0] / "summary.json").read_text())["status"] == "finished"
    assert rows == [(folder / "metrics.jsonl").read_text() for folder in folders]  # Nothing is trained again.


@pytest.mark.slow
def test_a_seed_of_other_settings_is_named_and_the_others_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert main([*SHORT, *where]) == 0
    folder = min((tmp_path / "runs").iterdir())
    config = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(config.replace("epochs = 4", "epochs = 5"))
    assert main([*SHORT, *where]) == 0
    said = capsys.readouterr().out
    assert "seed 0 failed" in said and "other settings: epochs 5 instead of 4" in said
    assert main(["scores", "--env", "Nope-v1", "--seeds", "0", *where]) == 2
    assert "no seed has a score" in capsys.readouterr().err


def test_scores_in_words() -> None:
    from benchmarks.scores import in_words

    text = in_words({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}, at_least(2.5))
    assert text.startswith("mean 2.50 ± 1.12 (≥ 2.5: yes), interquartile mean 2.50 (95 %: 1") and "seed 3 4.00" in text
    assert in_words({7: -80.0}, at_least(-75)) == "mean -80.0 ± 0 (≥ -75: no); seed 7 -80.0"
