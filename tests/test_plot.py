"""`plot` and `compare`: grouping, averaging and aggregation of runs, and the output for real runs."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from launching import SMALL, launch, together, train

from protocol.experiment import Experiment
from rundir.config import PPOConfig, RunConfig, TrainingConfig
from rundir.curves import (
    NO_GROUP,
    Curve,
    average,
    curve,
    group,
    group_labels,
    interquartile_mean,
    interval,
    marks,
    normalized,
    smoothed,
)
from rundir.metrics import metric_named, words_of
from rundir.run import Run, find_runs, run_names


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


OTHERS = {  # Another value than the default of each setting that makes no group.
    **{"env": "A", "seed": 7, "on_env_error": "stop", "episode_metrics": ("fuel",), "device": "cpu"},
    **{"learner_threads": 2, "total_steps": 5000, "earlier_totals": (1000,), "stop_return": 9.0},
    **{"eval_every": 3, "eval_episodes": 7, "best_by": "fuel", "checkpoint_every": 3},
}


def test_how_a_run_is_executed_evaluated_and_saved_makes_no_group() -> None:
    assert OTHERS.keys() == set(NO_GROUP)
    plain = run("A", 0)
    for name, value in OTHERS.items():
        other = Run(Path(name), plain.config.with_settings({name: list(value) if name in LISTS else value}, "here"))
        assert other.config != plain.config or name == "env", name
        assert labels([plain, other]) == {"": {"A": 2}}, name


LISTS = ("episode_metrics", "earlier_totals")


def test_every_other_setting_makes_a_group() -> None:
    plain = run("A", 0)
    for name, value in plain.config.settings.items():
        if name not in NO_GROUP:
            other = "other" if isinstance(value, str | None) else [] if isinstance(value, tuple) else value + 1
            settings = [plain.config.settings, plain.config.settings | {name: other if other != [] else ("x",)}]
            assert len(set(group_labels(settings))) == 2, name


def test_a_label_is_short() -> None:
    runs = [run("A", 0, learning_rate=rate) for rate in (3 * 1e-4, 1e-3)]
    assert list(labels(runs)) == ["learning rate 0.0003", "learning rate 0.001"]


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


def test_where_runs_go_on_those_that_have_come_so_far_are_averaged() -> None:
    short, long = Curve(np.array([0.0, 4.0]), np.array([1.0, 1.0])), Curve(np.array([0.0, 8.0]), np.array([3.0, 3.0]))
    found = average([short, long], to_the_longest=True)
    assert found is not None and found.x[-1] == 8
    assert (found.mean[0], found.mean[-1], found.std[0], found.std[-1]) == (2, 3, 1, 0)
    gap = average([Curve(short.x, short.y), Curve(np.array([6.0, 9.0]), short.y)], to_the_longest=True)
    assert gap is not None and not np.isnan(gap.mean).any() and not ((gap.x > 4) & (gap.x < 6)).any()


def test_a_moving_average_is_over_fewer_points_at_the_ends() -> None:
    assert smoothed(np.array([0.0, 3.0, 6.0, 3.0]), 3).tolist() == [1.5, 3.0, 4.0, 4.5]
    assert smoothed(np.array([1.0, 3.0]), 500).tolist() == [2.0, 2.0]
    values = np.arange(5.0)
    np.testing.assert_array_equal(smoothed(values, 1), values)


def test_evaluations_of_a_version_are_averaged_over_seeds() -> None:
    seeds = [
        [{"policy_version": 2, "s": 1.0, "r": 4.0}, {"policy_version": 4, "s": 3.0, "r": None}],
        [{"policy_version": 2, "s": 2.0, "r": 6.0}, {"policy_version": 3, "s": 2.5, "r": 1.0}],
    ]
    found = marks(seeds, "s", "r")
    assert (found.x.tolist(), found.y.tolist()) == ([1.5, 2.5], [5.0, 1.0])
    assert len(marks([], "s", "r").x) == 0


def test_a_metric_has_words() -> None:
    names = ["rollout/episode_return_mean", "train/grad_norm", "episode/is_success"]
    assert [words_of(name) for name in names] == ["episode return", "grad norm", "success rate"]
    assert [metric_named(words_of(name), names) for name in names] == names
    assert metric_named("train/grad_norm", names) == "train/grad_norm" and metric_named("loss", names) is None


def test_runs_are_named_by_the_shortest_end_of_their_paths(tmp_path: Path) -> None:
    ends = ["trial-10/seed-0", "trial-2/seed-0", "trial-2/seed-1", "a/b/c/d"]
    for end in ends:
        (tmp_path / end).mkdir(parents=True)
        (tmp_path / end / "config.toml").touch()
    found = find_runs([tmp_path])
    assert run_names(found) == ["d", "trial-2/seed-0", "seed-1", "trial-10/seed-0"]
    assert run_names([]) == [] and run_names([tmp_path, tmp_path]) == [str(tmp_path)] * 2


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
    flags = {name: ["--in-process", "--env", env, "--schedule", schedule] for name, (env, schedule) in runs.items()}
    together(*(partial(train, folder / name, *flags[name], *SMALL) for name in runs))
    shutil.copytree(folder / "CartPole-v1-sync", folder / "again")
    return folder


def test_plot_draws_every_group_and_the_aggregate(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `plot`")
    done = launch("plot", trained, "--out", tmp_path / "p")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    texts = texts_in(tmp_path / "p.svg")
    legend = {"schedule sync (1 to 2 runs)", "schedule pipelined (seed 0)"}
    words = {"CartPole-v1", "Acrobot-v1", "env-steps", "episode return", "interquartile mean"}
    assert legend | words <= texts and "seconds of training" not in texts and "rollout/episode_return_mean" not in texts


def test_plot_draws_several_metrics_against_time(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `plot`")
    evaluation = {"policy_version": 2, "env_steps": 1024, "episodes": 5, "return_mean": 20.0, "return_std": 1.0}
    run_dir = shutil.copytree(trained / "again", tmp_path / "evaluated")
    (run_dir / "evaluations.jsonl").write_text(json.dumps(evaluation) + "\n")
    flags = ["--x", "time", "--smooth", 5, "--log-x", "--log-y", "--out", tmp_path / "p"]
    done = launch("plot", run_dir, "--metric", "episode return", "train/entropy", *flags)
    assert done.returncode == 0, done.stderr
    words = {"episode return", "entropy", "seconds of training", "seed 0", "evaluations"}
    assert words <= texts_in(tmp_path / "p.svg")


def texts_in(svg: Path) -> set[str]:
    """The texts that a figure shows, as matplotlib notes them."""
    return set(re.findall(r"<!-- (.*) -->", svg.read_text()))


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--smooth", "0"], "--smooth must lie between 1 and 500, not 0"),
        (["--metric", "policy loss", "--log-y"], "--log-y needs values above 0, which policy loss of CartPole-v1"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(trained: Path, tmp_path: Path, flags: list[str], expected: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `plot`")
    done = launch("plot", trained / "again", *flags, "--out", tmp_path / "p")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert expected in done.stderr


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


def test_many_runs_are_compared_a_line_each(trained: Path) -> None:
    done = launch("compare", trained)
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert {"run", "env", "schedule", "status"} <= set(header.split())
    assert [line.split()[0] for line in lines[:-1]] == sorted(path.name for path in trained.iterdir())
    assert lines[-1] == "the weights differ"


def test_a_run_that_has_just_begun_is_left_out(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `plot`")
    begun = tmp_path / "runs" / "begun"
    begun.mkdir(parents=True)
    shutil.copy(trained / "again" / "config.toml", begun)
    refused = launch("plot", begun)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1) and "nothing to plot" in refused.stderr
    shutil.copytree(trained / "again", begun.parent / "again")
    done = launch("plot", begun.parent, "--out", tmp_path / "p")
    assert done.returncode == 0 and "seed 0" in texts_in(tmp_path / "p.svg")


@pytest.mark.parametrize("command", ["plot", "compare"])
def test_no_run_is_one_line(tmp_path: Path, command: str) -> None:
    done = launch(command, tmp_path, tmp_path / "other")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no run here" in done.stderr
