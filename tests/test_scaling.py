"""The scaling model: its equations against hand-computed values and a simulation, its bytes against real messages."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import model_check
from benchmarks.__main__ import main
from benchmarks.model import answers, rows_of
from benchmarks.model_check import snapshot
from benchmarks.report import Report
from benchmarks.scaling import Inputs, best, predict, saturation, worth_starting
from benchmarks.workloads import spaces_of, trajectory
from protocol.experiment import Experiment
from protocol.messages import Message, to_frames

# 4 lanes of 2 environments, 10 steps of 10 ms: 80 env-steps an iteration, a lane's rollout takes 0.2 s, learning 0.5 s.
INPUTS = Inputs(
    step_seconds=0.01,
    num_envs=8,
    lane_size=2,
    rollout_length=10,
    observation_bytes=16,
    action_bytes=8,
    parameters=289,  # A snapshot then has as many bytes as a trajectory.
    bandwidth=1e15,
    learner_rate=160,
    forward_seconds=0.0,
    message_seconds=0.0,
    schedule="pipelined",
)


def with_(**changes: Any) -> Inputs:
    return dataclasses.replace(INPUTS, **changes)


def test_pipelined_is_as_fast_as_its_slowest_part_and_sync_as_their_sum() -> None:
    by_actors = {1: (0.8, 1.3), 2: (0.5, 0.9), 4: (0.5, 0.7)}
    for actors, (pipelined, sync) in by_actors.items():
        assert predict(INPUTS, actors).iteration == pytest.approx(pipelined)
        assert predict(with_(schedule="sync"), actors).iteration == pytest.approx(sync)
    assert predict(INPUTS, 1).rate == pytest.approx(100)


def test_all_wait_for_the_actor_with_most_lanes_and_more_actors_than_lanes_idle() -> None:
    acting = {actors: predict(INPUTS, actors).acting for actors in (1, 2, 3, 4, 5, 100)}
    assert acting == pytest.approx({1: 0.8, 2: 0.4, 3: 0.4, 4: 0.2, 5: 0.2, 100: 0.2})
    idle, busy = predict(with_(bandwidth=1e4), 100), predict(with_(bandwidth=1e4), 4)
    assert dataclasses.replace(idle, actors=4) == busy  # Idle actors get no weights.


def test_the_policy_is_asked_once_for_a_step_of_a_lane() -> None:
    assert predict(with_(forward_seconds=0.005), 2).acting == pytest.approx(2 * 10 * (2 * 0.01 + 0.005))


def test_each_trajectory_and_each_actors_snapshot_costs_the_learner() -> None:
    learning = [predict(with_(message_seconds=0.01), actors).learning for actors in (1, 2, 4, 9)]
    assert learning == pytest.approx([0.5 + 0.01 * messages for messages in (4 + 1, 4 + 2, 4 + 4, 4 + 4)])


def test_what_travels_takes_its_time() -> None:
    assert INPUTS.trajectory_bytes == 20 * (16 + 8 + 10) + 2 * (16 + 17) + 960 == INPUTS.snapshot_bytes == 1706
    slow = with_(bandwidth=4 * 1706.0)  # Each message takes 0.25 s.
    two = predict(slow, 2)
    assert (two.up, two.down) == pytest.approx((1.0, 0.5))
    # Weights go down, two rollouts follow while their trajectories travel, then the learner. Two iterations overlap.
    assert two.iteration == pytest.approx((0.5 + (0.2 + 0.5 + 0.5) + 0.5) / 2)
    assert (two.traffic_up, two.traffic_down) == pytest.approx((4 * 1706 / 1.1, 2 * 1706 / 1.1))
    assert two.limits == pytest.approx({"acting": 200, "learner": 160, "wire": 80})


def test_all_trajectories_but_the_last_travel_while_lanes_act() -> None:
    one = predict(with_(schedule="sync", bandwidth=40 * 1706.0), 1)
    assert one.iteration == pytest.approx(0.025 + (0.8 + 0.025) + 0.5)


def simulated(inputs: Inputs, actors: int, iterations: int = 400) -> float:
    """Seconds of an iteration after the start of a run, by a simulation of every rollout, message and update."""
    p, rounds = predict(inputs, actors), -(-inputs.lanes // actors)
    published, arrived = [0.0], {}  # Times in seconds, by policy version.
    actor_free = up_free = down_free = 0.0
    for rollout in range(iterations):
        version = rollout if inputs.schedule == "sync" else max(0, rollout - 1)
        if version not in arrived:
            arrived[version] = down_free = max(down_free, published[version]) + p.down
        actor_free = max(actor_free, arrived[version])
        for _ in range(rounds):
            actor_free += p.acting / rounds
            up_free = max(up_free, actor_free) + p.up / rounds
        published.append(max(published[-1], up_free) + p.learning)
    half = iterations // 2
    return (published[-1] - published[half]) / (iterations - half)


seconds = st.floats(1e-3, 1.0)


@given(
    st.sampled_from(["sync", "pipelined"]),
    st.integers(1, 6),
    st.floats(1e3, 1e5),
    st.integers(1, 5000),
    seconds,
    seconds,
)
def test_the_equations_are_what_a_simulation_comes_to(
    schedule: Any, actors: int, bandwidth: float, parameters: int, acting: float, learning: float
) -> None:
    inputs = with_(
        schedule=schedule,
        bandwidth=bandwidth,
        parameters=parameters,
        step_seconds=acting / 20,
        learner_rate=80 / learning,
    )
    assert simulated(inputs, actors) == pytest.approx(predict(inputs, actors).iteration, rel=0.01)


def test_the_learner_is_saturated_by_the_fewest_actors_that_keep_up_with_it() -> None:
    found = saturation(INPUTS)
    assert found is not None and found.actors == 2
    assert saturation(with_(learner_rate=1e9)) is None


def test_as_many_actors_are_worth_starting_as_give_most_of_the_speed() -> None:
    assert worth_starting(INPUTS, 0.9).actors == 2
    sync = with_(schedule="sync")  # 61.5, 88.9 and 114.3 env-steps/s
    assert [worth_starting(sync, share).actors for share in (0.5, 0.7, 0.9)] == [1, 2, 4]


def test_the_most_actors_are_not_the_best_where_weights_are_dear() -> None:
    dear = with_(parameters=1_000_000, bandwidth=4e6)  # Each actor's copy of the weights takes one second.
    assert best(dear).actors == 1 and predict(dear, 4).rate < predict(dear, 1).rate


def size_of(message: Message) -> int:
    return sum(len(frame) for frame in to_frames(message))


@pytest.mark.parametrize(("numbers", "lane_size", "length"), [(4, 1, 32), (4, 8, 32), (64, 8, 128)])
def test_messages_have_the_bytes_that_are_foretold(numbers: int, lane_size: int, length: int) -> None:
    experiment = Experiment(num_envs=lane_size, lane_size=lane_size, rollout_length=length)
    real = size_of(trajectory(spaces_of((numbers,), "float32"), experiment, lane=0, rollout_index=0))
    foretold = with_(num_envs=lane_size, lane_size=lane_size, rollout_length=length, observation_bytes=4 * numbers)
    assert foretold.trajectory_bytes == pytest.approx(real, rel=0.05)
    policy = snapshot()
    parameters = sum(array.size for array in policy.weights.values())
    assert with_(parameters=parameters).snapshot_bytes == pytest.approx(size_of(policy), rel=0.01)


def test_the_report_shows_the_speed_its_limits_and_the_traffic_for_each_number_of_actors() -> None:
    rows = rows_of(INPUTS, [predict(INPUTS, actors) for actors in (1, 2)])
    assert [(row.case, row.unit) for row in rows] == [
        (case, unit) for unit, count in (("env-steps/s", 4), ("MB/s", 3)) for case in "12" for _ in range(count)
    ]
    two = {row.contender: row.samples.median for row in rows if row.case == "2"}
    assert two["together"] == two["learner alone"] == pytest.approx(160) and two["acting alone"] == pytest.approx(200)


def test_the_report_says_how_many_actors_to_start_and_why() -> None:
    said = " ".join(answers(INPUTS))
    assert "saturated by 2 actors" in said and "More than 4 actors" in said
    assert "Worth starting: 2 actors" in said and "What limits them then is the learner." in said
    said = " ".join(answers(with_(learner_rate=1e9)))
    assert "never saturated: lanes run out at 4 actors" in said and "What limits them then is acting." in said
    assert "that each waits for the others" in " ".join(answers(with_(schedule="sync")))


def test_lanes_that_do_not_divide_the_environments_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "--num-envs", "10", "--lane-size", "4", "--out", str(tmp_path)]) == 2
    assert "--num-envs 10 is not a multiple of --lane-size 4" in capsys.readouterr().err


@pytest.mark.slow
def test_the_check_compares_runs_with_what_was_foretold_from_inputs_measured_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = {"ACTORS": (2, 4), "EPOCHS": 1, "STEP_SECONDS": 0.0005, "MEASURE_SECONDS": 0.02}
    for name, value in small.items():
        monkeypatch.setattr(model_check, name, value)
    report = Report("model")
    model_check.run("sync", repeats=1, report=report)
    assert [(row.case, row.contender) for row in report.rows] == [
        (case, contender) for case in ("2", "4") for contender in ("measured", "predicted")
    ]
    assert all(row.samples.median > 0 for row in report.rows)
    assert [c.rival for row in report.rows for c in row.comparisons] == ["predicted"] * 2
    load, parts, errors = report.notes
    assert "cores" in load and "the learner" in parts and "by actors: 2: " in errors


def test_the_command_line_reaches_every_input(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `plot`")
    words = "--actors 2 8 --step-seconds 0.01 --num-envs 8 --lane-size 2 --rollout-length 10 --observation-bytes 12"
    words += " --action-bytes 4 --parameters 100 --gigabits 0.8 --learner-rate 160 --forward-seconds 0.001"
    words += " --message-seconds 0.002 --schedule sync"
    assert main(["model", *words.split(), "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "model.json").read_text())["rows"]
    inputs = Inputs(0.01, 8, 2, 10, 12, 4, 100, 1e8, 160, 0.001, 0.002, "sync")
    expected = rows_of(inputs, [predict(inputs, actors) for actors in (2, 8)])
    assert [row["median"] for row in told] == [row.samples.median for row in expected]
    assert (tmp_path / "model.png").read_bytes().startswith(b"\x89PNG")
