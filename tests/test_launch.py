"""launch.py from a user's view: its output and files, how runs end, and its messages about mistakes."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from cluster import joins
from gate import Gate, iterations
from launching import (
    LAUNCH,
    SMALL,
    TIMEOUT,
    children,
    heed_hangups,
    launch,
    metrics_of,
    output_of,
    running,
    stop,
    summary_of,
    train,
    wait_for,
)
from marks import slow

from commands import COMMANDS
from commands.completion import flags_of
from commands.train import SHORT

LONG = ["--total-steps", 10_000_000, "--checkpoint-every", 1000]


def socket_folder(children: list[psutil.Process]) -> Path:
    """The folder of the socket that a run's children share."""
    (address,) = {part for child in children for part in child.cmdline() if part.startswith("ipc://")}
    return Path(address.removeprefix("ipc://")).parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train(run_dir, "--actors", 2, *SMALL)
    return run_dir


def test_the_summary_says_what_was_done(finished: Path) -> None:
    summary = summary_of(finished)
    assert summary["status"] == "finished"
    assert summary["deterministic"] is True
    assert summary["env_steps"] == 2048
    assert summary["policy_version"] == 4
    assert summary["env_steps_per_second"] == pytest.approx(2048 / summary["seconds"])
    assert summary["samples"] == {"produced": 2048, "trained": 2048, "dropped": {}, "in_flight": 0}
    assert (summary["actor_restarts"], summary["learner_restarts"]) == (0, 0)
    assert (summary["device"], summary["schedule"], summary["seed"]) == ("cpu", "pipelined", 0)
    assert len(summary["weights_digest"]) == 64


def test_every_iteration_leaves_a_row_of_finite_metrics(finished: Path) -> None:
    rows = metrics_of(finished)
    assert [row["policy_version"] for row in rows] == [1, 2, 3, 4]
    assert [row["env_steps"] for row in rows] == [512, 1024, 1536, 2048]
    assert [row["policy/lag_mean"] for row in rows] == [0, 1, 1, 1]
    names = ["policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "learning_rate"]
    assert all(isinstance(row[f"train/{name}"], float) for row in rows for name in names)


def test_total_steps_are_rounded_up_to_whole_iterations(tmp_path: Path) -> None:
    summary = train(tmp_path / "run", "--in-process", *SMALL, "--total-steps", 513)
    assert summary["env_steps"] == 1024


def test_a_long_episode_shows_a_dash_until_it_has_finished(tmp_path: Path) -> None:
    flags = ["--env", "Pendulum-v1", *SMALL, "--total-steps", 512]
    done = launch("--in-process", "--run-dir", tmp_path / "run", *flags)
    assert done.returncode == 0
    assert re.search("return +– ", done.stdout)
    assert "nan" not in done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    assert metrics_of(tmp_path / "run")[0]["rollout/episode_return_mean"] is None
    assert summary_of(tmp_path / "run")["episode_return_mean"] is None


def test_a_target_return_ends_the_run_once_100_episodes_have_finished(tmp_path: Path) -> None:
    train(tmp_path / "run", "--in-process", *SMALL, "--total-steps", 20_000, "--stop-return", 1)
    rows = metrics_of(tmp_path / "run")
    assert rows[-1]["rollout/episodes"] == 100
    assert all(row["rollout/episodes"] < 100 for row in rows[:-1])
    assert summary_of(tmp_path / "run")["samples"]["in_flight"] == 0


@pytest.mark.slow
def test_more_actors_than_lanes_is_said_and_works(tmp_path: Path) -> None:
    flags = [*SMALL, "--lane-size", 8, "--total-steps", 512]
    done = launch("--run-dir", tmp_path / "run", "--actors", 3, *flags)
    assert done.returncode == 0
    assert "3 actors are more than the 2 lanes; 1 will idle" in done.stdout


def test_eval_writes_what_the_newest_policy_scores(finished: Path) -> None:
    done = launch("eval", finished, "--episodes", 3)
    assert done.returncode == 0, done.stderr
    result = json.loads((finished / "eval.json").read_text())
    assert len(result["returns"]) == len(result["lengths"]) == 3
    assert result["return_mean"] == pytest.approx(sum(result["returns"]) / 3)
    assert result["returns"] == result["lengths"]  # CartPole gives 1 for each step.
    again = launch("eval", finished, "--episodes", 3)
    assert again.stdout == done.stdout


def test_a_finished_run_resumes_to_nothing(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    done = launch("--resume", finished)
    assert done.returncode == 0
    assert summary_of(finished)["weights_digest"] in done.stdout
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("flags", [slow(["--in-process"]), ["--actors", 3, "--transport", "tcp"]])
def test_a_stopped_and_resumed_run_ends_like_an_undisturbed_one(tmp_path: Path, flags: list[object]) -> None:
    experiment = [*SMALL, "--total-steps", 512 * 20]
    whole = train(tmp_path / "whole", "--in-process", *experiment)
    gate = Gate(tmp_path / "run", 4)
    with running(tmp_path / "run", "--actors", 2, *experiment, *gate.flags) as process:
        wait_for(lambda: iterations(tmp_path / "run") >= 4, process)
        stop(process, signal.SIGINT)
    stopped = summary_of(tmp_path / "run")
    assert stopped["status"] == "stopped"
    assert 4 <= stopped["policy_version"] < 20
    gate.open()
    assert launch("--resume", tmp_path / "run", *flags).returncode == 0
    resumed = summary_of(tmp_path / "run")
    assert resumed["status"] == "finished"
    assert resumed["weights_digest"] == whole["weights_digest"]
    assert [row["policy_version"] for row in metrics_of(tmp_path / "run")] == list(range(1, 21))
    timing = ("time/", "samples", "witness")  # These depend on the execution.
    for mine, other in zip(metrics_of(tmp_path / "run"), metrics_of(tmp_path / "whole"), strict=True):
        assert {k: v for k, v in mine.items() if not k.startswith(timing)} == {
            k: v for k, v in other.items() if not k.startswith(timing)
        }


@pytest.mark.slow
def test_killed_actors_are_replaced_and_change_nothing(tmp_path: Path) -> None:
    experiment = [*SMALL, "--total-steps", 512 * 20]
    whole = train(tmp_path / "whole", "--in-process", *experiment)
    gate = Gate(tmp_path / "run", 5)
    with running(tmp_path / "run", "--actors", 2, *experiment, *gate.flags) as process:
        wait_for(lambda: iterations(tmp_path / "run") >= 5, process)
        victims = [c for c in psutil.Process(process.pid).children() if "actors" in c.cmdline()]
        assert len(victims) == 2
        for victim in victims:
            victim.kill()
        happened = tmp_path / "run" / "events.jsonl"
        wait_for(lambda: happened.read_text().count('"actor_restarted"') == 2, process)
        gate.open()
        output_of(process)
    summary = summary_of(tmp_path / "run")
    assert summary["actor_restarts"] == 2
    assert summary["weights_digest"] == whole["weights_digest"]


def ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGINT, {}),
        slow(signal.SIGTERM, {}),
        slow(signal.SIGHUP, {"preexec_fn": heed_hangups}),
        (signal.SIGINT, {"preexec_fn": ignore_interrupts}),
    ],
)
def test_a_signal_ends_everything_with_all_saved(tmp_path: Path, number: signal.Signals, options: dict) -> None:
    with running(tmp_path / "run", "--actors", 2, *SMALL, *LONG, **options) as process:
        wait_for(lambda: iterations(tmp_path / "run") >= 3, process)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 4  # The learner, two actors, and the witness.
        folder = socket_folder(children)
        assert folder.stat().st_mode & 0o777 == 0o700
        output = stop(process, number)
        assert not any(child.is_running() for child in children)
        assert not folder.exists()
        summary = summary_of(tmp_path / "run")
        assert summary["status"] == "stopped"
        newest = max((tmp_path / "run" / "checkpoints").iterdir())
        assert int(newest.name) == summary["policy_version"] >= 3
        samples = summary["samples"]
        assert samples["in_flight"] == 0
        assert samples["produced"] == samples["trained"] + sum(samples["dropped"].values())
        assert summary["weights_digest"] in output


def ignore_hangups() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_a_run_under_nohup_goes_on_when_its_terminal_closes(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with running(run_dir, "--actors", 1, *SMALL, *LONG, preexec_fn=ignore_hangups) as process:
        wait_for(lambda: iterations(run_dir) >= 2, process)
        process.send_signal(signal.SIGHUP)
        reached = iterations(run_dir)
        wait_for(lambda: iterations(run_dir) >= reached + 5, process)
        stop(process, signal.SIGTERM)
    names = [json.loads(line).get("signal") for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert [name for name in names if name] == ["SIGTERM"]


@pytest.mark.slow
@pytest.mark.parametrize("reached", [0, 3])
def test_a_learner_that_is_stopped_is_replaced(tmp_path: Path, reached: int) -> None:
    """The time without a sign of life is limited for a learner, too, in its start and afterwards."""
    gate = Gate(tmp_path / "run", 3)
    whole = train(tmp_path / "whole", "--in-process", *SMALL, "--total-steps", 512 * 8)
    flags = ["--actors", 2, *SMALL, "--total-steps", 512 * 8, "--step-timeout", 10, *gate.flags]
    with running(tmp_path / "run", *flags) as process:
        wait_for(lambda: iterations(tmp_path / "run") >= reached, process)
        (learner,) = wait_for(lambda: children(psutil.Process(process.pid), "learner"), process)
        learner.suspend()
        wait_for(lambda: not learner.is_running(), process)
        gate.open()
        output = output_of(process)
    assert "the learner has given no sign of life for too long and is replaced" in output
    summary = summary_of(tmp_path / "run")
    assert summary["learner_restarts"] == 1
    assert summary["weights_digest"] == whole["weights_digest"]


@pytest.mark.slow
def test_a_run_whose_socket_is_tidied_away_goes_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    gate = Gate(run_dir, 3)
    whole = train(tmp_path / "whole", "--in-process", *SMALL, "--total-steps", 512 * 12)
    with running(run_dir, "--actors", 2, *SMALL, "--total-steps", 512 * 12, *gate.flags) as process:
        wait_for(lambda: iterations(run_dir) >= 3, process)
        launcher = psutil.Process(process.pid)
        folder = socket_folder(launcher.children())
        shutil.rmtree(folder)
        children(launcher, "actors")[0].kill()
        wait_for(lambda: joins(run_dir) == 3, process)
        shutil.rmtree(folder)
        children(launcher, "learner")[0].kill()
        gate.open()
        output = output_of(process)
    assert "was removed, and is made again" in output
    summary = summary_of(run_dir)
    assert (summary["actor_restarts"], summary["learner_restarts"]) == (1, 1)
    assert summary["weights_digest"] == whole["weights_digest"]


@pytest.mark.slow
def test_children_end_by_themselves_when_the_launcher_is_killed(tmp_path: Path) -> None:
    with running(tmp_path / "run", "--actors", 2, *SMALL, *LONG) as process:
        wait_for(lambda: iterations(tmp_path / "run") >= 3, process)
        children = psutil.Process(process.pid).children(recursive=True)
        folder = socket_folder(children)
        process.kill()
        process.communicate(timeout=TIMEOUT)
        _, alive = psutil.wait_procs(children, timeout=TIMEOUT)
        assert not alive
    train(tmp_path / "next", *SMALL)
    assert not folder.exists()  # The next run has removed the folder.


@pytest.mark.slow
def test_an_actor_that_was_stopped_does_not_outlive_its_killed_launcher(tmp_path: Path) -> None:
    """A stopped actor cannot end by itself; the learner ends it, once everything is saved."""
    with running(tmp_path / "run", "--actors", 2, "--total-steps", 10**9) as process:
        wait_for(lambda: iterations(tmp_path / "run") >= 1, process)
        launcher = psutil.Process(process.pid)
        left = launcher.children(recursive=True)
        stopped = children(launcher, "actors")[0]
        stopped.suspend()
        launcher.kill()
        process.wait()
    wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in left))


def test_the_learner_is_the_only_child_without_the_word_actors(tmp_path: Path) -> None:
    with running(tmp_path / "run", "--actors", 2, *SMALL, *LONG) as process:
        wait_for(lambda: iterations(tmp_path / "run") >= 1, process)
        lines = [" ".join(child.cmdline()) for child in psutil.Process(process.pid).children()]
        stop(process)
        # The learner, two actors, and the witness.
        assert sorted("actors" in line for line in lines) == [False, True, True, True]
        assert ["-m learner" in line for line in lines if "actors" not in line] == [True]


def test_a_run_directory_that_holds_a_run_is_refused_and_left_alone(finished: Path) -> None:
    before = summary_of(finished)
    done = launch("--run-dir", finished)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert summary_of(finished) == before


def test_a_run_directory_in_use_is_refused(tmp_path: Path) -> None:
    with running(tmp_path / "run", *SMALL, *LONG) as process:
        wait_for(lambda: iterations(tmp_path / "run") >= 1, process)
        done = launch("--resume", tmp_path / "run")
        stop(process)
        assert done.returncode == 2
        assert "in use" in done.stderr


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        done = launch("--run-dir", tmp_path / "run", "--listen", address)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"cannot listen on {address}: Address already in use" in done.stderr
    assert not (tmp_path / "run").exists()


def test_resume_refuses_other_experiment_flags_and_takes_execution_flags(finished: Path) -> None:
    done = launch("--resume", finished, "--learning-rate", 0.1)
    assert done.returncode == 2
    assert "--learning-rate" in done.stderr
    assert launch("--resume", finished, "--actors", 5, "--transport", "tcp").returncode == 0


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    with running(tmp_path / "run", *SMALL, "--total-steps", 512 * 60) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=TIMEOUT) == 0
    assert summary_of(tmp_path / "run")["status"] == "finished"


@pytest.mark.slow
def test_a_torn_summary_does_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    train(tmp_path / "run", "--in-process", *SMALL)
    digest = summary_of(tmp_path / "run")["weights_digest"]
    (tmp_path / "run" / "summary.json").write_text("")
    assert launch("--resume", tmp_path / "run").returncode == 0
    assert summary_of(tmp_path / "run")["weights_digest"] == digest


def test_the_users_folder_brings_environments_and_takes_no_module_of_ours(tmp_path: Path) -> None:
    (tmp_path / "learner").mkdir()
    (tmp_path / "learner" / "__init__.py").touch()
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', entry_point='gymnasium.envs.classic_control:CartPoleEnv',"
        " max_episode_steps=50)\n"
    )
    flags = ["--env", "my_envs:Mine-v0", "--run-dir", "run", *SMALL, "--total-steps", "512"]
    done = subprocess.run([*LAUNCH, *flags], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary_of(tmp_path / "run")["env_steps"] == 512


def flags_shown(text: str) -> set[str]:
    """The flags of a help text."""
    found = re.findall(r"^  --(\[no-\])?([a-z0-9-]+)", text, re.MULTILINE)
    return {flag for no, name in found for flag in ([f"--{name}", f"--no-{name}"] if no else [f"--{name}"])}


def test_help_fits_a_screen_and_begins_with_the_environment() -> None:
    done = launch("--help", COLUMNS="80")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) <= 36 and max(map(len, lines)) <= 80
    assert list(SHORT) == re.findall(r"^  (--[a-z-]+)", done.stdout, re.MULTILINE)
    assert next(iter(SHORT)) == "--env" and len(SHORT) == 20 and "--help-all" in done.stdout


def test_help_shows_the_defaults_of_the_environment() -> None:
    assert re.search(r"--num-envs N .*\(16\)", launch("--env", "LunarLander-v3", "--help").stdout)


WHOLE = {  # Sentences that take several lines in the source.
    "train": (
        "None takes one for each performance core but one, and at least 1. 0 leaves all to remote ones, see --listen.",
        "every node needs this clone and its environment at the same paths.",
    ),
    "plot": ("Episode returns are means of 100 episodes already.",),
}


@pytest.mark.parametrize("command", [c if c in ("train", "plot") else slow(c) for c in COMMANDS if c != "bench"])
def test_the_whole_help_has_a_sentence_for_every_flag_and_wraps_well(command: str) -> None:
    done = launch(command, "--help-all", COLUMNS="80")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if not line.startswith("  python ")) <= 80
    assert flags_shown(done.stdout) == set(flags_of(command))
    assert not re.search(r"^  --\S+( \S+)*$\n^(  -|$)", done.stdout, re.MULTILINE), "a flag without a sentence"
    text = " ".join(done.stdout.split())
    for sentence in WHOLE.get(command, ()):
        assert sentence in text
    for line, following in pairwise(lines):  # No line is left half empty by a break in the source.
        if line.startswith(" " * 28) and following.startswith(" " * 28):
            assert len(line) + 1 + len(following.split()[0]) > 80, (line, following)


def test_the_version_is_told() -> None:
    done = launch("--version")
    assert done.returncode == 0
    assert re.fullmatch(
        r"mlx-distributed-ppo \d\S+( \([0-9a-f]{10}\))?; mlx \S+, numpy \S+, .*python 3\.\S+\n", done.stdout
    )


@pytest.mark.parametrize("command", [c if c in ("train", "eval") else slow(c) for c in COMMANDS])
def test_every_help_has_an_example(command: str) -> None:
    done = launch(command, "--help")
    assert done.returncode == 0, done.stderr
    _, _, examples = done.stdout.partition("Example")
    assert re.search(rf"launch\.py {command} \S|-m benchmarks \S|launch\.py --", examples), done.stdout


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("protocol.messages, protocol.transport, protocol.lifeline", ["mlx", "gymnasium", "actors", "learner"]),
        ("actors.actor, actors.process", ["mlx", "learner", "commands", "supervisor", "tyro", "rich"]),
        ("learner.__main__, learner.learner", ["gymnasium", "actors", "commands", "supervisor", "tyro", "rich"]),
        ("supervisor.supervisor, commands.train", ["mlx", "zmq"]),
        ("rundir.run, rundir.curves, rundir.faults", ["mlx", "zmq", "gymnasium", "learner", "actors", "supervisor"]),
        (
            "dashboard.__main__, dashboard.server",
            ["mlx", "zmq", "gymnasium", "actors", "commands", "learner", "supervisor", "starlette"],
        ),
    ],
)
def test_packages_import_nothing_across_their_borders(package: str, forbidden: list[str]) -> None:
    code = f"import sys, {package}; print([name for name in {forbidden} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_an_actor_that_trains_never_loads_mlx(tmp_path: Path) -> None:
    with running(tmp_path / "run", *SMALL, *LONG, "--actors", 1) as process:
        wait_for(lambda: iterations(tmp_path / "run") >= 2, process)
        (actor,) = [c for c in psutil.Process(process.pid).children() if "actors" in c.cmdline()]
        maps = actor.memory_maps() if sys.platform != "darwin" else []  # macOS shows these maps only to root.
        mapped = {Path(region.path).name for region in maps}
        stop(process)
        assert not any("mlx" in name for name in mapped)
