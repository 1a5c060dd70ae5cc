"""`plot` and `compare`: grouping, averaging and aggregation of runs, and the output for real runs."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from launching import SMALL, launch, together, train

from protocol.experiment import Experiment
from rundir.config import PPOConfig, RunConfig, TrainingConfig
from rundir.curves import Curve, average, curve, group, interquartile_mean, interval, normalized
from rundir.run import Run


def run(env: str, seed: int, schedule: str = "sync", learning_rate: float = 1e-3) -> Run:
    experiment = replace(Experiment(), env=env, seed=seed, schedule=schedule)
    return Run(Path(f"{env}-{seed}-{schedule}"), RunConfig(experiment, PPOConfig(learning_rate), TrainingConfig()))


def labels(runs: Sequence[Run]) -> dict[str, dict[str, int]]:
    return {label: {env: len(same) for env, same in envs.items()} for label, envs in group(runs).items()}


def test_runs_that_differ_in_their_seeds_alone_are_one_group() -> None:
    assert labels([run("A", seed) for seed in range(3)]) == {"": {"A": 3}}


def test_a_label_names_what_differs_within_an_environment_and_not_the_presets_of_two() -> None:
    a = [run("A", seed, schedule) for seed in range(2) for schedule in ("sync", "pipelined")]
    b = [run("B", 0, schedule, learning_rate=5e-4) for schedule in ("sync", "pipelined")]
    assert labels([*a, *b]) == {"schedule sync": {"A": 2, "B": 1}, "schedule pipelined": {"A": 2, "B": 1}}


def test_a_curve_leaves_out_what_is_not_known_yet() -> None:
    rows = [{"env_steps": 1, "r": None}, {"env_steps": 2, "r": 5.0}, {"env_steps": 3}]
    assert (curve(rows, "env_steps", "r").x.tolist(), curve(rows, "env_steps", "r").y.tolist()) == ([2.0], [5.0])
    assert average([curve(rows[:1], "env_steps", "r")]) is None


def test_seeds_are_averaged_as_far_as_the_shortest_goes() -> None:
    short = Curve(np.array([0.0, 10.0]), np.array([0.0, 10.0]))
    long = Curve(np.array([0.0, 20.0]), np.array([2.0, 22.0]))
    found = average([short, long])
    assert found is not None
    assert (found.x[0], found.x[-1]) == (0, 10)
    np.testing.assert_allclose(found.mean, found.x + 1)
    np.testing.assert_allclose(found.std, 1)


def test_a_seed_that_begins_later_counts_from_there() -> None:
    early, late = Curve(np.array([0.0, 4.0]), np.array([1.0, 1.0])), Curve(np.array([5.0, 9.0]), np.array([3.0, 3.0]))
    found = average([early, late])
    assert found is not None and set(found.mean) == {1.0} and found.x[-1] == 4


def test_scores_are_scaled_by_environment_and_equal_ones_are_zero() -> None:
    scores = {"a": {"A": [0.0, 10.0], "B": [7.0]}, "b": {"A": [5.0], "B": [7.0]}}
    found = normalized(scores)
    assert [array.tolist() for array in found["a"]] == [[0.0, 1.0], [0.0]]
    assert [array.tolist() for array in found["b"]] == [[0.5], [0.0]]


def test_the_interquartile_mean_leaves_out_the_outer_quarters() -> None:
    assert interquartile_mean(np.array([100.0, 2.0, 3.0, -100.0])) == 2.5
    assert interquartile_mean(np.array([4.0])) == 4.0


def test_an_interval_holds_its_value_and_is_stratified() -> None:
    found = interval([np.array([0.0, 1.0, 0.5]), np.array([0.2, 0.4])], np.mean)
    assert found.low < found.value < found.high
    constant = interval([np.zeros(5), np.ones(5)], np.mean)  # Without stratification, a resample would mix the two.
    assert constant.low == constant.value == constant.high == 0.5


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plotted")
    runs = {f"{env}-{s}": (env, s) for env in ("CartPole-v1", "Acrobot-v1") for s in ("sync", "pipelined")}
    runs["again"] = runs["CartPole-v1-sync"]
    flags = {name: ["--in-process", "--env", env, "--schedule", schedule] for name, (env, schedule) in runs.items()}
    together(*(partial(train, folder / name, *flags[name], *SMALL) for name in runs))
    return folder


def test_plot_draws_every_group_and_the_aggregate(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `plot`")
    paths = sorted(trained.glob("CartPole*"))
    done = launch(
        "plot", *paths, trained / "Acrobot-v1-sync", trained / "Acrobot-v1-pipelined", "--out", tmp_path / "p"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "p.svg").read_text()
    for text in ("CartPole-v1", "schedule sync (seed 0)", "env-steps", "interquartile mean"):
        assert f"<!-- {text} -->" in drawn, text


def test_a_metric_that_is_not_there_is_refused_with_those_that_are(trained: Path) -> None:
    done = launch("plot", trained / "again", "--metric", "train/los")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "train/policy_loss" in done.stderr


def test_compare_tells_equal_weights_from_others_and_names_what_differs(trained: Path) -> None:
    equal = launch("compare", trained / "CartPole-v1-sync", trained / "again")
    assert equal.returncode == 0 and "the weights are equal, bit for bit" in equal.stdout
    assert "schedule" not in equal.stdout
    other = launch("compare", trained / "CartPole-v1-sync", trained / "CartPole-v1-pipelined")
    assert "the weights differ" in other.stdout and "schedule" in other.stdout and "2,048" in other.stdout


@pytest.mark.parametrize("command", ["plot", "compare"])
def test_no_run_is_one_line(tmp_path: Path, command: str) -> None:
    done = launch(command, tmp_path, tmp_path / "other")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no run here" in done.stderr
