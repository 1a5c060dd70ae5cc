"""Actors that Ray places on the nodes of a simulated cluster. All these tests need the extra `ray`."""

import os
import socket
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from cluster import Output, cluster_of, lose_a_node
from gate import Gate, iterations
from launching import SMALL, TIMEOUT, launch, output_of, running, summary_of, train, wait_for

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install -e '.[ray]'"),
]


def test_a_lost_node_changes_nothing_and_its_actors_are_started_on_another(tmp_path: Path) -> None:
    loss = lose_a_node(tmp_path, nodes=2, actors=4, seconds=0.01, num_envs=16, iterations=16)
    assert loss.lost == 2
    assert loss.equal, loss.output
    assert loss.summary["actor_restarts"] == 2, loss.output
    assert loss.summary["learner_restarts"] == 0
    assert loss.summary["refused"] == {}


def test_actors_of_a_cluster_find_the_users_modules(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/my_envs.py").write_text(
        "from gymnasium import register\n"
        "register('Mine-v0', entry_point='gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=50)\n"
    )
    paths = os.environ | {"PYTHONPATH": str(tmp_path / "mine")}
    with cluster_of(nodes=1, cpus=1) as cluster:
        flags = ["--cluster", "ray", "--address", cluster.address, "--actors", 1, "--env", "my_envs:Mine-v0"]
        with running(tmp_path / "run", *flags, *SMALL, "--total-steps", 512, env=paths) as process:
            output_of(process)


def words_of(process: psutil.Process) -> list[str]:
    """The process's command line; [""] if the process has ended, as processes of Ray may do at any time."""
    try:
        return process.cmdline() or [""]
    except psutil.NoSuchProcess:  # This includes zombies.
        return [""]


def test_a_killed_actor_and_a_killed_learner_change_nothing_on_a_cluster_of_the_runs_own(tmp_path: Path) -> None:
    experiment = [*SMALL, "--total-steps", 512 * 20, "--checkpoint-every", 5]
    whole = train(tmp_path / "whole", "--in-process", *experiment)
    gate = Gate(tmp_path / "run", 7)
    with running(tmp_path / "run", "--cluster", "ray", "--actors", 2, *experiment, *gate.flags) as process:
        output = Output(process)
        wait_for(lambda: iterations(tmp_path / "run") >= 7, process)
        children = psutil.Process(process.pid).children(recursive=True)
        (learner,) = [child for child in children if "learner" in words_of(child)]
        actor = next(child for child in children if words_of(child)[0].startswith("ray::ActorHost"))
        actor.kill()
        learner.kill()
        gate.open()
        assert output.end() == 0, output.text()
    _, alive = psutil.wait_procs(children, timeout=TIMEOUT)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    assert "raylet" not in output.text()
    summary = summary_of(tmp_path / "run")
    assert summary["learner_restarts"] == 1
    assert summary["weights_digest"] == whole["weights_digest"]


def test_a_cluster_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"  # The port is bound, but nothing listens.
        done = launch("--run-dir", tmp_path / "run", "--cluster", "ray", "--address", address, "--actors", 1)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"no Ray cluster can be joined at --address {address}: " in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--cluster", "ray"], "--cluster needs --actors"),
        (["--address", "here:1"], "--address is for --cluster"),
        (["--cluster", "ray", "--actors", 2, "--in-process"], "--cluster excludes"),
        (["--cluster", "ray", "--actors", 2, "--address", "ray://here:10001"], "run launch.py on a node"),
    ],
)
def test_what_excludes_each_other_is_said(flags: list[object], expected: str, tmp_path: Path) -> None:
    done = launch("--run-dir", tmp_path / "run", *flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert expected in done.stderr
