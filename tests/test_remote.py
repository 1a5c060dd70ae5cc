"""Actors started by hand with keys, as on other machines."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import pytest
from gate import Gate, iterations
from launching import ROOT, TIMEOUT, launch, output_of, running, stop, summary_of, train, wait_for
from test_transport import free_tcp_address

from protocol.files import read_rows
from protocol.keys import make_keys

EXPERIMENT = "--num-envs 16 --lane-size 2 --rollout-length 32 --minibatches 4 --epochs 2 --checkpoint-every 5".split()  # noqa: SIM905
STEPS = ["--total-steps", 512 * 30]
LONG = ["--total-steps", 10_000_000]


@contextmanager
def actor(address: str, key: Path | None, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Start `python -m actors` without standard input; the process is killed with the context."""
    arguments = [sys.executable, "-W", "error", "-m", "actors", "--connect", address]
    arguments += ["--key", str(key)] if key else []
    with subprocess.Popen(
        arguments,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environ,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for an actor that ends by itself; returns (exit code, its text on stderr)."""
    _, said = process.communicate(timeout=TIMEOUT)
    return process.returncode, said


def complaint(said: str) -> str:
    """The actor's final message of one line, without the earlier lines about waiting and connecting."""
    lines = [line for line in said.splitlines() if "waiting for the learner" not in line]
    (line,) = [line for line in lines if "connected to run" not in line]
    return line


def actors_that(run_dir: Path, event: str) -> list[str]:
    """The names of the actors with this event, once for each event."""
    return [row["actor"] for row in read_rows(run_dir / "events.jsonl") if row["event"] == event]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", ["one", "two"])
    return tmp_path / "keys"


@pytest.fixture
def address() -> str:
    return free_tcp_address()


def listening(address: str, keys: Path) -> list[object]:
    """Flags of a learner that is open to every machine and has only remote actors."""
    return ["--actors", 0, "--listen", address.replace("127.0.0.1", "0.0.0.0"), "--keys", keys, *EXPERIMENT]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return train(tmp_path_factory.mktemp("local") / "run", "--in-process", *EXPERIMENT, *STEPS)["weights_digest"]


@pytest.mark.slow
def test_remote_actors_that_die_and_a_learner_that_does_change_nothing(
    tmp_path: Path, address: str, keys: Path, undisturbed: str
) -> None:
    """The step timeout is too long to matter: a lost connection is enough."""
    run_dir = tmp_path / "run"
    gate = Gate(run_dir, 4)
    with (
        running(run_dir, *listening(address, keys), *STEPS, *gate.flags, "--step-timeout", 10 * TIMEOUT) as process,
        actor(address, keys / "one.key") as victim,
        actor(address, keys / "two.key") as survivor,
    ):
        wait_for(lambda: len(actors_that(run_dir, "actor_joined")) == 2 and iterations(run_dir) >= 4, process)
        victim.kill()
        (lost,) = wait_for(lambda: actors_that(run_dir, "actor_lost"), process)
        reached = iterations(run_dir)
        gate.close_after(reached + 3)
        wait_for(lambda: iterations(run_dir) >= reached + 3, process)
        (learner,) = psutil.Process(process.pid).children()
        learner.kill()
        with actor(address, keys / "one.key") as another:
            (name,) = set(actors_that(run_dir, "actor_joined")[:2]) - {lost}
            wait_for(lambda: actors_that(run_dir, "actor_joined").count(name) == 2, process)
            gate.open()
            output_of(process)
            code, said = ended(survivor)
            assert code == 0
            assert said.count("connected to run run of CartPole-v1") == 2
            assert "the run is over" in said
            assert ended(another)[0] == 0
    assert summary_of(run_dir)["learner_restarts"] == 1
    assert summary_of(run_dir)["weights_digest"] == undisturbed


@pytest.mark.slow
def test_whoever_is_not_allowed_is_told_so_in_one_line(tmp_path: Path, address: str, keys: Path) -> None:
    (stranger,) = make_keys(tmp_path / "others", ["one"])
    (unlisted,) = make_keys(tmp_path / "unlisted", ["one"])
    learner = (keys / "learner.key").read_text().splitlines()[1].removeprefix("public = ")
    lines = unlisted.read_text().splitlines()
    unlisted.write_text("\n".join([*lines[:-1], f"learner = {learner}\n"]))
    open_to_all = tmp_path / "open.key"
    open_to_all.write_text((keys / "one.key").read_text())
    open_to_all.chmod(0o644)
    run_dir = tmp_path / "run"
    with running(run_dir, *listening(address, keys), *LONG) as process, actor(address, keys / "one.key") as good:
        wait_for(lambda: iterations(run_dir) >= 1, process)
        cases = {
            None: "asks for a key",
            stranger: "one for another learner",
            unlisted: "does not allow the key",
            open_to_all: "chmod 600",
        }
        for key, expected in cases.items():
            with actor(address, key) as refused:
                code, said = ended(refused)
                assert code == 2 and expected in complaint(said), said
        allowed = keys / "allowed.toml"
        allowed.write_text("".join(line for line in allowed.read_text().splitlines(True) if not line.startswith("one")))
        code, said = ended(good)
        assert code == 2 and "its key is no longer allowed" in said.splitlines()[-1]
        with actor(address, keys / "two.key"):
            reached = iterations(run_dir)
            wait_for(lambda: iterations(run_dir) > reached, process)
            stop(process)
    refused_by_reason = summary_of(run_dir)["refused"]
    assert refused_by_reason["handshake"] >= 3 and refused_by_reason["revoked key"] >= 1


CORES = ("Haswell", "Sandybridge", "Prescott", "NEOVERSEN1", "ARMV8")  # Cores that OpenBLAS can imitate.


@cache
def core_that_computes_otherwise() -> str | None:
    """One of `CORES` whose arithmetic gives other bits than this processor; None if no core does."""
    code = "from actors.fingerprint import fingerprint; print(fingerprint()['arithmetic'])"

    def arithmetic(**environ: str) -> str:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | environ, check=False)
        return done.stdout

    own = arithmetic()
    return next((core for core in CORES if arithmetic(OPENBLAS_CORETYPE=core) not in (own, "")), None)


needs_other_core = pytest.mark.skipif(
    "core_that_computes_otherwise() is None", reason="all cores compute the same here"
)


@needs_other_core
@pytest.mark.slow
def test_an_actor_that_computes_otherwise_is_refused_naming_what_differs(
    tmp_path: Path, address: str, keys: Path
) -> None:
    core = core_that_computes_otherwise()
    assert core is not None
    run_dir = tmp_path / "run"
    with running(run_dir, *listening(address, keys), *LONG) as process, actor(address, keys / "one.key"):
        wait_for(lambda: iterations(run_dir) >= 1, process)
        with actor(address, keys / "two.key", OPENBLAS_CORETYPE=core) as other:
            code, said = ended(other)
        assert code == 2 and "arithmetic" in complaint(said) and "numpy" not in said, said
        stop(process)
    assert summary_of(run_dir)["refused"].keys() == {"fingerprint"}


ROBOTS = """\
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

__version__ = "{}"


class Robot(CartPoleEnv):
    pass


gymnasium.register("Robot-v0", entry_point=Robot, max_episode_steps=100)
"""


@pytest.mark.slow
def test_an_actor_with_another_version_of_the_environment_is_refused_naming_both(
    tmp_path: Path, address: str, keys: Path
) -> None:
    paths = {}
    for version in ("1.0", "1.1"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "robots.py").write_text(ROBOTS.format(version))
        paths[version] = f"{ROOT}:{tmp_path / version}"
    run_dir = tmp_path / "run"
    flags = [*listening(address, keys), "--env", "robots:Robot-v0", *LONG]
    with (
        running(run_dir, *flags, env=os.environ | {"PYTHONPATH": paths["1.0"]}) as process,
        actor(address, keys / "one.key", PYTHONPATH=paths["1.0"]),
    ):
        wait_for(lambda: iterations(run_dir) >= 1, process)
        with actor(address, keys / "two.key", PYTHONPATH=paths["1.1"]) as other:
            code, said = ended(other)
        assert code == 2 and "robots 1.1 instead of 1.0" in complaint(said), said
        stop(process)
    assert summary_of(run_dir)["refused"] == {"fingerprint": 1}


@pytest.mark.slow
@needs_other_core
def test_in_async_it_takes_part(tmp_path: Path, address: str, keys: Path) -> None:
    core = core_that_computes_otherwise()
    assert core is not None
    run_dir = tmp_path / "run"
    flags = [*listening(address, keys), *LONG, "--schedule", "async"]
    with running(run_dir, *flags) as process, actor(address, keys / "one.key") as good:
        wait_for(lambda: iterations(run_dir) >= 1, process)
        with actor(address, keys / "two.key", OPENBLAS_CORETYPE=core) as other:
            assert other.stderr is not None
            assert any("connected to run" in line for line in other.stderr)
            good.kill()
            reached = iterations(run_dir)
            wait_for(lambda: iterations(run_dir) >= reached + 5, process)
            stop(process)
            assert ended(other)[0] == 0


@pytest.fixture
def without_mlx(tmp_path: Path) -> str:
    """A PYTHONPATH that hides MLX, also from child processes."""
    folder = tmp_path / "without_mlx"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['mlx'] = None\n")
    return os.pathsep.join([str(ROOT), str(folder)])


@pytest.mark.slow
def test_an_actor_needs_no_mlx(tmp_path: Path, address: str, keys: Path, undisturbed: str, without_mlx: str) -> None:
    with (
        running(tmp_path / "run", *listening(address, keys), *STEPS) as process,
        actor(address, keys / "one.key", PYTHONPATH=without_mlx) as alone,
    ):
        output_of(process)
        assert ended(alone)[0] == 0
    assert summary_of(tmp_path / "run")["weights_digest"] == undisturbed


def test_a_learner_without_mlx_says_in_one_line_what_to_add(tmp_path: Path, without_mlx: str) -> None:
    done = launch("--run-dir", tmp_path / "run", *EXPERIMENT, *STEPS, PYTHONPATH=without_mlx)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = (line for line in (done.stdout + done.stderr).splitlines() if "MLX" in line)
    assert "the learner needs MLX, which is not installed" in line
    assert sys.platform == "darwin" or "the extra `cpu` or `cuda`" in line


@pytest.mark.slow
def test_without_keys_a_key_is_too_much_and_insecure_is_a_loud_warning(tmp_path: Path, keys: Path) -> None:
    address = free_tcp_address()
    flags = ["--listen", address.replace("127.0.0.1", "0.0.0.0"), "--insecure", "--actors", 0, *EXPERIMENT]
    with running(tmp_path / "run", *flags, "--total-steps", 512 * 2) as process:
        with actor(address, keys / "one.key") as refused:
            code, said = ended(refused)
            assert code == 2 and "takes no keys" in said
        with actor(address, None) as good:
            output = output_of(process)
            assert ended(good)[0] == 0
    assert "WARNING: no keys" in output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_actor_waits_for_its_learner_and_ends_at_a_signal_quietly(address: str, number: signal.Signals) -> None:
    with actor(address, None) as process:
        assert process.stderr is not None
        assert f"waiting for the learner at {address}" in process.stderr.readline()
        process.send_signal(number)
        assert process.wait(timeout=TIMEOUT) == -number
        assert process.stderr.read() == ""


def test_an_impossible_address_is_one_line() -> None:
    with actor("tcp://nowhere", None) as process:
        code, said = ended(process)
    assert code == 2 and said.count("\n") == 1 and "--connect tcp://nowhere" in said


def test_keys_says_what_to_copy_where(tmp_path: Path) -> None:
    done = launch("keys", tmp_path / "keys", "--names", "laptop")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'keys' / 'laptop.key'}: copy it" in done.stdout
    again = launch("keys", tmp_path / "keys", "--names", "laptop")
    assert again.returncode == 2 and again.stderr.count("\n") == 1
