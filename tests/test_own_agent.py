"""What an agent of one's own needs: episode metrics, action masks, a curriculum. None of it changes the promise."""

import csv
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from disturbing import in_every_execution
from launching import launch, metrics_of, running, stop, summary_of, train, wait_for
from making import snapshot_of, trained_model

import learner.distributions as on_learner
from actors.action_masks import read_mask
from actors.distributions import Categorical, masked
from actors.environment import make_environment
from actors.episode_metrics import columns, numbers_in
from actors.episodes import Results, Score
from actors.exported import load_policy, save_policy
from actors.graph import TOLERANCE, inputs_of, save_graph
from actors.interface import mask_of
from actors.lane import Lane
from actors.simulation import Simulation
from actors.spaces import describe_spaces
from actors.wrappers import EpisodeTotals
from commands.export import largest_difference
from commands.helpers.policies import describe
from learner.metrics import EpisodeWindow
from protocol.errors import EnvironmentFault
from protocol.execution import Execution
from protocol.experiment import Experiment
from protocol.remote import RemoteAccess
from protocol.trajectory import LaneState
from rundir.schedules import Horizon
from tests.environments_agent import Garden

GARDEN = ["--env", "tests.environments_agent:Garden-v0", "--num-envs", 16, "--lane-size", 4, "--rollout-length", 16]
GARDEN += ["--minibatches", 4, "--epochs", 2, "--hidden-sizes", 16]
KINDS: dict[str, list[object]] = {
    "masks in info": ["--env-kwargs", "masks='info'"],
    "masks by a method, of several numbers": ["--env-kwargs", "action='several'", "masks='method'"],
    "masks and a memory": ["--env-kwargs", "action='several'", "--recurrent", "lstm", "--recurrent-size", 8],
    "no masks": ["--env-kwargs", "masks='none'", "--schedule", "sync"],
}


def shown(run_dir: Path) -> list[dict[str, Any]]:
    """What every iteration told of episodes."""
    return [{name: v for name, v in row.items() if "episode" in name} for row in metrics_of(run_dir)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_actors_transport_kills_and_resumes_change_nothing(tmp_path: Path, kind: str) -> None:
    flags = [*GARDEN, *KINDS[kind], "--total-steps", 256 * 24, "--checkpoint-every", 3]
    summaries = in_every_execution(tmp_path, flags)
    assert len({summary["weights_digest"] for summary in summaries.values()}) == 1, summaries
    assert all(summary["deterministic"] and summary["env_faults"] == 0 for summary in summaries.values()), summaries
    first = shown(tmp_path / "1")
    for name in summaries:
        assert shown(tmp_path / name) == first, name
    names = {name for name in first[-1] if name.startswith("episode/")}
    told = ("is_success", "length", "difficulty", "zero-dimensional", "speed", "rare")
    assert names == {f"episode/{name}" for name in told}
    assert 0 < first[4]["episode/difficulty"] < first[-1]["episode/difficulty"] < 1


# Episode metrics


def test_numbers_and_truth_values_of_an_info_are_metrics_and_nothing_else() -> None:
    simulation = Simulation(Experiment(env="tests.environments_agent:Garden-v0"))
    simulation.reset(3)
    over = False
    while not over:
        action = simulation.to_env(np.array([int(simulation.allowed.argmax())]))[0]
        _, _, terminated, truncated = simulation.step(action)
        over = terminated or truncated
    length = simulation.steps
    wanted = {
        "speed": length / 2,
        "is_success": 1.0,
        "length": float(length),
        "difficulty": 1.0,
        "zero-dimensional": 2.5,
    }
    assert simulation.episode_metrics() == wanted | ({"rare": 1.0} if length % 4 == 0 else {})
    simulation.close()


@pytest.mark.parametrize(
    "info", [None, [], {}, {"a": "1"}, {"a": [1.0]}, {"a": np.ones(1)}, {"": 1}, {"a" * 65: 1}, {1: 1}]
)
def test_an_info_without_numbers_has_no_metrics(info: Any) -> None:
    assert numbers_in(info) == {}


def test_named_metrics_are_the_only_ones() -> None:
    assert numbers_in({"a": 1, "b": True, "c": 0.5}, ("c", "b", "d")) == {"b": 1.0, "c": 0.5}


def test_columns_have_no_number_where_an_episode_told_none() -> None:
    found = columns([{"a": 1.0}, {}, {"b": 2.0, "a": 3.0}])
    np.testing.assert_array_equal(found["episode/a"], [1, np.nan, 3])
    np.testing.assert_array_equal(found["episode/b"], [np.nan, np.nan, 2])
    assert list(columns([{str(i): 0.0 for i in range(100)}])) == [f"episode/{i}" for i in range(64)]


def window_after(metrics: list[dict[str, float]], *wanted: str) -> tuple[EpisodeWindow, list[str]]:
    said: list[str] = []
    window = EpisodeWindow(wanted, said.append)
    window.extend(np.zeros(len(metrics)), np.ones(len(metrics), np.int64), columns(metrics))
    return window, said


def test_a_mean_is_over_the_last_hundred_episodes_that_told_it() -> None:
    window, said = window_after([{"rare": float(i)} if i % 2 else {} for i in range(400)])
    assert window.metric_means == {"episode/rare": np.mean(range(201, 400, 2))} and not said
    assert EpisodeWindow().metric_means == {}
    resumed = EpisodeWindow()
    resumed.load_state_dict(json.loads(json.dumps(window.state_dict())))
    assert resumed.metric_means == window.metric_means


def test_a_window_of_an_older_checkpoint_has_no_metrics() -> None:
    window = EpisodeWindow()
    window.load_state_dict({"episode_returns": [1.0], "episode_lengths": [2]})
    assert window.return_mean == 1 and window.metric_means == {}


def test_more_metrics_than_are_kept_are_told_once() -> None:
    window, said = window_after([{str(i): 0.0 for i in range(34)}])
    window.extend(np.zeros(1), np.ones(1, np.int64), columns([{"other": 1.0}]))
    assert len(window.metric_means) == 32
    (text,) = said
    assert "more than 32 numbers" in text and "left out are 32, 33" in text and "--episode-metrics" in text


def test_success_is_kept_of_any_number_of_metrics() -> None:
    window, _ = window_after([{f"n{i:03}": 0.0 for i in range(100)} | {"is_success": 1.0}])
    assert window.metric_means["episode/is_success"] == 1.0 and len(window.metric_means) == 32
    episode = Score(1.0, 1, 0, {f"n{i:03}": 0.0 for i in range(100)} | {"is_success": 1.0})
    assert Results.of(iter([episode])).statistics()["episode/is_success"] == 1.0


def test_a_metric_that_no_episode_has_is_told_once() -> None:
    _, said = window_after([{"a": 1.0}], "a", "b")
    (text,) = said
    assert "has b as a number" in text
    assert window_after([], "b")[1] == []


def test_metrics_are_in_every_file_and_line(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = [
        *GARDEN,
        "--total-steps",
        512 * 8,
        "--eval-every",
        4,
        "--eval-episodes",
        5,
        "--best-by",
        "speed",
        "--actors",
        1,
    ]
    done = launch("--run-dir", run_dir, "--device", "cpu", *flags)
    assert done.returncode == 0, done.stderr
    assert "success" in done.stdout and "\nepisodes: success rate " in done.stdout
    rows = metrics_of(run_dir)
    with open(run_dir / "metrics.csv") as file:
        table = list(csv.DictReader(file))
    assert "episode/speed" in rows[-1] and float(table[-1]["episode/speed"]) == rows[-1]["episode/speed"]
    assert table[0].keys() == table[-1].keys() and len(table) == len(rows)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["episode/is_success"] == rows[-1]["episode/is_success"]
    evaluations = [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]
    best = max(evaluations, key=lambda row: (row["episode/speed"], -row["policy_version"]))
    assert summary["evaluations"]["best"]["episode/speed"] == best["episode/speed"]
    assert [int(path.name) for path in (run_dir / "best").iterdir()] == [best["policy_version"]]
    assert f"evaluation of version {evaluations[0]['policy_version']}: return" in done.stdout

    found = launch("eval", run_dir, "--episodes", 6)
    assert found.returncode == 0 and "success rate" in found.stdout
    result = json.loads((run_dir / "eval.json").read_text())
    told = [value for value in result["episode_metrics"]["is_success"] if value is not None]
    assert len(told) == 6 and result["episode/is_success"] == np.mean(told)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--best-by", "speed"], "--best-by speed chooses among evaluations: give --eval-every as well"),
        (
            ["--best-by", "x", "--eval-every", 2, "--episode-metrics", "speed"],
            "--best-by x is none of --episode-metrics",
        ),
    ],
)
def test_a_best_that_cannot_be_is_refused(tmp_path: Path, flags: list[object], said: str) -> None:
    done = launch("--run-dir", tmp_path / "run", *GARDEN, *flags)
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr


def test_sums_and_means_over_an_episode() -> None:
    experiment = Experiment(
        env="tests.environments_agent:Garden-v0",
        wrapper=("actors.wrappers:EpisodeTotals(sums=['speed'], means=['speed', 'absent'])",),
    )
    env = make_environment(experiment)
    assert isinstance(env, EpisodeTotals)
    env.get_wrapper_attr("set_progress")(0.5)
    _, info = env.reset(seed=1)
    steps, over = 0, False
    while not over:
        _, _, terminated, truncated, info = env.step(2 + int(info["action_mask"].argmax()))
        steps, over = steps + 1, terminated or truncated
    assert info["speed_sum"] == sum(i / 2 for i in range(1, steps + 1)) and "absent_mean" not in info
    assert info["speed_mean"] == info["speed_sum"] / steps
    env.get_wrapper_attr("set_progress")(0.5)
    _, info = env.reset(seed=2)
    _, _, _, _, info = env.step(2 + int(info["action_mask"].argmax()))
    assert info["speed_sum"] == info["speed_mean"] == 0.5  # Another episode begins anew.


# Action masks

MULTI = describe_spaces(Garden("several"), Experiment())


def test_a_mask_is_taken_in_every_form() -> None:
    wanted = np.array([True, False, True, False, True, True, False])
    for form in (
        wanted,
        wanted.astype(np.int8),
        wanted.astype(np.float64),
        wanted.tolist(),
        (wanted[:3], wanted[3:].astype(np.int8)),
        [wanted[:3].tolist(), tuple(wanted[3:])],
    ):
        np.testing.assert_array_equal(mask_of(form, MULTI), wanted)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.ones(6), "has 6 entries; the actions have 7 choices"),
        (np.full(7, 2), "something else than 0 and 1"),
        (np.full(7, np.nan), "something else than 0 and 1"),
        (np.array(["1"] * 7), "no array of numbers"),
        (None, "no array of numbers"),
        (np.array([0, 0, 0, 1, 1, 1, 1]), "allows no action"),
        (np.array([1, 1, 1, 0, 0, 0, 0]), "allows no action"),
    ],
)
def test_a_mask_that_is_none_is_refused_in_words(mask: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mask_of(mask, MULTI)


def test_a_method_counts_before_an_info() -> None:
    env = Garden("several", masks="method")
    env.set_progress(0.0)
    env.reset(seed=0)
    wrong = {"action_mask": np.zeros(7)}
    np.testing.assert_array_equal(read_mask(env, wrong, MULTI), np.concatenate(env._allowed))


@pytest.mark.parametrize("how", ["empty", "short", "two", "text", "missing"])
def test_a_mask_that_is_none_is_a_fault_of_the_step(how: str) -> None:
    experiment = Experiment(env="tests.environments_agent:Blocked-v0", env_kwargs=(f"how={how}",))
    simulation = Simulation(experiment)
    simulation.reset(1)
    assert simulation.spaces.has_action_masks
    simulation.reset(3)
    with pytest.raises(EnvironmentFault, match=r"step: .*action_mask"):
        for _ in range(5):
            simulation.step(simulation.to_env(np.array([int(simulation.allowed.argmax())]))[0])
    assert simulation.episode_metrics() == {}
    simulation.close()


def test_a_method_that_raises_is_named_with_its_error() -> None:
    class Broken(Garden):
        def _told(self) -> Any:
            raise ValueError("my mask is broken")

    simulation = Simulation(Experiment(), make=lambda _: Broken(masks="method"))
    with pytest.raises(
        EnvironmentFault, match=r"reset: action_masks\(\) raised ValueError: my mask is broken"
    ) as fault:
        simulation.reset(0)
    assert isinstance(fault.value.__cause__, ValueError)


def test_the_last_step_of_an_episode_needs_no_mask() -> None:
    class Ending(Garden):
        def _info(self) -> dict[str, Any]:
            return {"action_mask": np.zeros(6)} if self._steps == self._length else super()._info()

    simulation = Simulation(Experiment(), make=lambda _: Ending())
    simulation.reset(0)
    over = False
    while not over:
        _, _, over, _ = simulation.step(simulation.to_env(np.array([int(simulation.allowed.argmax())]))[0])
    simulation.close()


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e8, 1e30, 3e38])
def test_an_action_that_is_not_allowed_is_never_taken(scale: float) -> None:
    """A sixth of a million steps for each size of the logits, with all that float32 rounds off, and what overflows."""
    random, count, choices = np.random.default_rng(0), 170_000, (5, 3)
    distribution = Categorical(choices)
    allowed = random.random((count, 8)) < 0.3
    allowed[np.arange(count), random.integers(5, size=count)] = True
    allowed[np.arange(count), 5 + random.integers(3, size=count)] = True
    with np.errstate(all="ignore"):
        logits = (scale * random.standard_normal((count, 8))).astype(np.float32)
        logits[::1000] = -np.inf
        logits[1::1000] = np.inf
        logits[2::1000] = np.nan
        parameters = masked(logits, allowed)
        noise = distribution.draw_noise(random, parameters.shape)
        chosen = [distribution.sample(parameters, noise), distribution.mode(parameters)]
    for actions in chosen:
        assert allowed[np.arange(count), actions[:, 0]].all()
        assert allowed[np.arange(count), 5 + actions[:, 1]].all()


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e30])
def test_probability_entropy_and_gradient_count_what_is_allowed_alone(scale: float) -> None:
    """Against float64, for actions of two numbers; logits of what is not allowed have no gradient."""
    random, count = np.random.default_rng(1), 40
    logits = (scale * random.standard_normal((count, 8))).astype(np.float32)
    allowed = random.random((count, 8)) < 0.5
    actions = np.stack([random.integers(5, size=count), random.integers(3, size=count)], axis=1)
    allowed[np.arange(count), actions[:, 0]] = allowed[np.arange(count), 5 + actions[:, 1]] = True
    expected, entropy = np.zeros(count), np.zeros(count)
    for start, end, chosen in ((0, 5, actions[:, 0]), (5, 8, actions[:, 1])):
        for row in range(count):
            mask = allowed[row, start:end]
            x = logits[row, start:end].astype(np.float64)[mask]
            log_probs = x - x.max() - np.log(np.exp(x - x.max()).sum())
            expected[row] += log_probs[np.flatnonzero(np.flatnonzero(mask) == chosen[row])[0]]
            entropy[row] -= (np.exp(log_probs) * log_probs).sum()

    def outcome(logits: mx.array) -> list[mx.array]:
        distribution = on_learner.Categorical(logits, (5, 3), mx.array(allowed.tolist()))
        return [distribution.log_prob(mx.array(actions)), distribution.entropy()]

    ours = Categorical((5, 3)).log_prob(masked(logits, allowed), actions)
    found = outcome(mx.array(logits))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.array(found[0]), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.array(found[1]), entropy, rtol=1e-5, atol=1e-5)
    gradient = np.array(mx.grad(lambda x: mx.stack(outcome(x)).sum())(mx.array(logits)))
    assert np.isfinite(gradient).all() and not gradient[~allowed].any()


@pytest.mark.parametrize(("action", "recurrent_size"), [("one", 0), ("several", 0), ("several", 5)])
def test_an_exported_policy_takes_what_is_allowed(tmp_path: Path, action: str, recurrent_size: int) -> None:
    experiment = Experiment(
        env="tests.environments_agent:Garden-v0", env_kwargs=(f"action={action}",), recurrent_size=recurrent_size
    )
    description, random = describe(experiment, 3), np.random.default_rng(0)
    assert description.spaces.has_action_masks
    snapshot = snapshot_of(trained_model(description.spaces, experiment, random), version=3)
    save_policy(tmp_path / "policy", description, snapshot)
    policy, session = load_policy(tmp_path / "policy"), None
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        save_graph(tmp_path / "policy.onnx", policy)
        session = importlib.import_module("onnxruntime").InferenceSession(tmp_path / "policy.onnx")
        assert largest_difference(session, policy) < TOLERANCE
    with pytest.raises(ValueError, match="give it the mask as well"):
        policy(np.zeros(4, np.float32))
    env = make_environment(experiment)
    env.get_wrapper_attr("set_progress")(1.0)
    policy.reset()
    observation, info = env.reset(seed=0)
    hidden_state, over = np.zeros((1, recurrent_size), np.float32), False
    while not over:  # The environment raises where an action is not allowed.
        taken = policy(observation, info["action_mask"])
        if session is not None:
            allowed = mask_of(info["action_mask"], description.spaces)
            found, *hidden = session.run(
                ["action", *(["next_hidden_state"] if recurrent_size else [])],
                inputs_of(policy, observation, hidden_state, allowed),
            )
            np.testing.assert_array_equal(found[0], taken)
            hidden_state = hidden[0] if hidden else hidden_state
        observation, _, terminated, truncated, info = env.step(taken)
        over = terminated or truncated
    sampled = policy.sample(observation, random, (np.eye(6)[2] if action == "one" else [0, 0, 1, 1, 0, 0, 0]))
    np.testing.assert_array_equal(sampled, 4 if action == "one" else [2, 0])


# Curriculum


def lane_of(experiment: Experiment) -> Lane:
    simulation = Simulation(experiment)
    spaces = simulation.find_masks()
    simulation.close()
    return Lane(0, experiment, spaces, progress=lambda: None)


def test_an_episode_is_told_the_progress_of_its_rollout_and_a_rebuilt_one_the_same() -> None:
    experiment = Experiment(env="tests.environments_agent:Garden-v0", num_envs=2, lane_size=2)
    lane = lane_of(experiment)
    lane.progress = 0.25
    lane.begin()
    first, digests = lane.observations.copy(), np.array([np.frombuffer(lane.digest(n), np.uint8) for n in range(2)])
    lane.progress = 0.75
    lane.next_episode(1)
    assert not np.array_equal(lane.observations[1], first[1])
    none, steps = np.zeros((0,), np.int64), np.zeros(2, np.int64)
    state = LaneState(1, np.zeros(2, np.int64), steps, none, digests, np.zeros((2, 0), np.float32), np.full(2, 0.25))
    rebuilt = lane_of(experiment)
    rebuilt.progress = 0.75
    rebuilt.rebuild(state)
    np.testing.assert_array_equal(rebuilt.observations, first)
    assert not rebuilt.notes.restarted.any()
    for each in (lane, rebuilt):
        each.close()


# Going on

CARTPOLE: list[object] = ["--num-envs", 16, "--lane-size", 2, "--rollout-length", 32, "--minibatches", 4, "--epochs", 2]


def learning_rates(run_dir: Path) -> list[float]:
    return [row["train/learning_rate"] for row in metrics_of(run_dir)]


@pytest.mark.slow
def test_more_steps_give_the_same_weights_however_the_run_was_stopped_and_killed(tmp_path: Path) -> None:
    first, more = ["--total-steps", 512 * 12], ["--total-steps", 512 * 20]
    train(tmp_path / "finished", *CARTPOLE, *first, "--actors", 1, "--in-process")
    done = launch("--resume", tmp_path / "finished", *more)
    assert done.returncode == 0 and "warning" not in done.stdout, done.stdout + done.stderr
    with running(tmp_path / "stopped", *CARTPOLE, *first, "--actors", 2, "--checkpoint-every", 50) as process:
        wait_for(lambda: (tmp_path / "stopped/metrics.jsonl").exists() and len(metrics_of(tmp_path / "stopped")) > 2)
        stop(process)
    assert launch("--resume", tmp_path / "stopped", *more, "--actors", 3).returncode == 0
    train(tmp_path / "at once", *CARTPOLE, *more, "--earlier-totals", 512 * 12, "--in-process")
    summaries = {name: summary_of(tmp_path / name) for name in ("finished", "stopped", "at once")}
    assert len({summary["weights_digest"] for summary in summaries.values()}) == 1, summaries
    assert all(summary["deterministic"] and summary["total_steps"] == 512 * 20 for summary in summaries.values())
    found = learning_rates(tmp_path / "finished")
    assert found[11] < 0.1 * found[0] and found[12] == pytest.approx(found[0] * 8 / 20) and len(found) == 20
    assert "total_steps = 10240" in (tmp_path / "finished/config.toml").read_text()
    assert "finished already" in launch("--resume", tmp_path / "finished", *more).stdout
    fewer = launch("--resume", tmp_path / "finished", *first)
    assert fewer.returncode != 0 and "--total-steps 6,144 is less than the run's 10,240" in fewer.stderr


@pytest.mark.slow
def test_a_resumed_run_is_executed_as_before_unless_told_otherwise(tmp_path: Path) -> None:
    flags = [*CARTPOLE, "--total-steps", 512 * 4, "--actors", 3, "--transport", "tcp", "--step-timeout", 33]
    train(tmp_path / "run", *flags)
    kept = json.loads((tmp_path / "run/execution.json").read_text())
    assert (kept["actors"], kept["transport"], kept["step_timeout"], kept["sink"]) == (3, "tcp", 33.0, [])
    done = launch("--resume", tmp_path / "run", "--total-steps", 512 * 5)
    assert "3 actors over tcp" in done.stdout, done.stdout + done.stderr
    done = launch("--resume", tmp_path / "run", "--total-steps", 512 * 6, "--actors", 1, "--transport", "ipc")
    assert "1 actor over ipc" in done.stdout, done.stdout + done.stderr
    assert json.loads((tmp_path / "run/execution.json").read_text())["actors"] == 1
    (tmp_path / "run/execution.json").write_text('{"actors": "many"}')
    done = launch("--resume", tmp_path / "run", "--total-steps", 512 * 7)
    assert done.returncode != 0 and "execution.json is damaged" in done.stderr and "Traceback" not in done.stderr


def test_the_command_to_go_on_says_what_a_run_directory_does_not_keep() -> None:
    plain = Execution(Path("/runs/run"), 2)
    assert plain.flags_to_resume == []
    remote = replace(plain, remote=RemoteAccess("tcp://0.0.0.0:5555", Path("/my keys")))
    assert remote.flags_to_resume == ["--listen", "tcp://0.0.0.0:5555", "--keys", "'/my keys'"]
    ray = replace(plain, workers="ray", ray_address="auto")
    assert ray.flags_to_resume == ["--cluster", "ray", "--actors", "2", "--address", "auto"]


def test_progress_is_that_of_the_total_that_holds_the_iteration() -> None:
    horizon = Horizon((10, 40))
    assert [horizon.progress(i) for i in (0, 5, 9, 10, 20, 40, 50)] == [0, 0.5, 0.9, 0.25, 0.5, 1, 1]
