"""Trust: modules named by another user's directory, file or learner are imported only if the user wants it."""

import os
import shutil
import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from launching import SMALL, launch, train
from marks import slow

from actors.actor import Actor
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.messages import Hello, Welcome
from protocol.transport import LearnerSocket
from protocol.trust import SIGNATURE, check_trust, foreign_names, sign

MINE = """
import os
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

open("imported", "w").close()
gymnasium.register("Mine-v0", entry_point=CartPoleEnv, max_episode_steps=50)
"""


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, []),
        ({"env": "ALE/Pong-v5", "wrapper": ("gymnasium.wrappers:FlattenObservation",)}, []),
        ({"env": "tests.environments:EverySpace-v0"}, []),
        ({"env": "mine:Env-v0", "network": "nets:Net"}, ["mine:Env-v0", "nets:Net"]),
        (
            {"wrapper": ("pdb:Pdb(skip=None)", "gymnasium.wrappers.evil:X")},
            ["pdb:Pdb(skip=None)", "gymnasium.wrappers.evil:X"],
        ),
        ({"wrapper": ("subprocess",)}, ["subprocess"]),
        (
            {"wrapper": ("gymnasium.wrappers:RecordVideo(video_folder='/')",)},
            ["gymnasium.wrappers:RecordVideo(video_folder='/')"],
        ),
        ({"wrapper": ("gymnasium.wrappers:ClipReward(max_reward=1)",)}, []),
        ({"env": "GymV26Environment-v0", "env_kwargs": ("env_id=evil:Env-v0",)}, ["GymV26Environment-v0"]),
        ({"env": "gymnasium_evil:Env-v0"}, ["gymnasium_evil:Env-v0"]),
    ],
)
def test_what_an_experiment_names_of_foreign_code(settings: dict, names: list[str]) -> None:
    assert foreign_names(Experiment(**settings)) == names


FOREIGN = Experiment(env="mine:Env-v0", wrapper=("mine:Wrapper(v=1)",))


def test_what_was_typed_is_trusted_and_nothing_like_it(tmp_path: Path) -> None:
    check_trust(FOREIGN, tmp_path, trust=False, typed=["--env=mine:Env-v0", "--wrapper", "mine:Wrapper(v=1)"])
    for typed in ([], ["mine:Env-v0"], ["--env", "amine:Env-v0", "mine:Wrapper(v=1)"]):
        with pytest.raises(UserError, match="names code that would run here"):
            check_trust(FOREIGN, tmp_path, trust=False, typed=typed)
    check_trust(FOREIGN, tmp_path, trust=True)


def test_a_signature_holds_for_its_user_and_its_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run, state = tmp_path / "run", tmp_path / "state" / "distributed-ppo"
    run.mkdir()
    sign(run, FOREIGN)
    check_trust(FOREIGN, run, trust=False, run_dir=run)
    assert (state / "secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in state.iterdir()] == ["secret"]
    other = Experiment(env="other:Env-v0", wrapper=FOREIGN.wrapper)
    with pytest.raises(UserError, match="other:Env-v0"):
        check_trust(other, run, trust=False, run_dir=run)
    with pytest.raises(UserError):
        check_trust(replace(FOREIGN, env_kwargs=("a=1",)), run, trust=False, run_dir=run)
    (state / "secret").chmod(0o644)  # Other users may have read the secret.
    with pytest.raises(UserError):
        check_trust(FOREIGN, run, trust=False, run_dir=run)
    (state / "secret").unlink()
    (state / "secret").symlink_to(run / SIGNATURE)
    with pytest.raises(UserError):
        check_trust(FOREIGN, run, trust=False, run_dir=run)


def test_without_a_place_for_a_secret_runs_are_not_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file" / "state"))
    sign(tmp_path, FOREIGN)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(UserError):
        check_trust(FOREIGN, tmp_path, trust=False, run_dir=tmp_path)


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module written by the user, and a run of the module's environment."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(Path("run"), "--env", "mine:Mine-v0", *SMALL, "--in-process")
    return folder


COMMANDS = [
    ["eval", "run"],
    ["doctor", "--config", "run/config.toml"],
    slow(["--resume", "run"]),
    slow(["--config", "run/config.toml", "--run-dir", "again", "--in-process"]),
    *map(slow, (["export", "run", "policy"], ["play", "run", "--video", "videos"], ["replay", "run", 1])),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_another_users_run_imports_nothing_without_trust(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list
) -> None:
    shutil.copytree(mine, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    Path("imported").unlink()
    done = launch(*command, XDG_STATE_HOME=str(tmp_path / "state"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "names code that would run here (mine:Mine-v0)" in done.stderr and "--trust" in done.stderr
    assert not Path("imported").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["eval", "run"], ["--resume", "run"], ["--config", "run/config.toml", "--run-dir", "again", "--in-process"]],
    ids=lambda command: command[0],
)
def test_ones_own_run_and_a_trusted_one_go_on(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list
) -> None:
    shutil.copytree(mine, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for environ, flags in (({}, []), ({"XDG_STATE_HOME": str(tmp_path / "state")}, ["--trust"])):
        done = launch(*command, *flags, **environ)
        assert done.returncode == 0, done.stderr
        shutil.rmtree("again", ignore_errors=True)


def test_trust_is_for_what_was_not_typed(tmp_path: Path) -> None:
    done = launch("--trust", "--run-dir", tmp_path / "run", *SMALL)
    assert done.returncode == 2 and "--trust is for --resume and --config" in done.stderr


def test_an_actor_without_a_key_imports_nothing_that_a_learner_names(tmp_path: Path) -> None:
    """Without a key, the actor cannot know who answers."""
    address = f"inproc://{uuid.uuid4().hex}"
    said: list[str] = []

    def work() -> None:
        try:
            Actor("desk", address, trust=False).run()
        except UserError as error:
            said.append(str(error))

    with closing(LearnerSocket(address)) as socket:
        thread = Thread(target=work)
        thread.start()
        received = socket.receive(60)
        assert received is not None and isinstance(received.message, Hello)
        socket.send(received.identity, Welcome("run", Experiment(wrapper=("pdb:Pdb",))))
        thread.join(60)
    assert len(said) == 1 and "names code that would run here (pdb:Pdb)" in said[0]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('env = "CartPole-v1\\u001b]0;owned\\u0007"', "env holds a character that cannot be shown"),
        ("total_steps = 1" + "0" * 400, "--total-steps must be at most"),
        ("total_steps = 1" + "0" * 5000, "cannot be read as a file of settings"),
        ("wrapper = " + "[" * 100_000, "cannot be read as a file of settings"),
    ],
    ids=["escape", "large", "absurd", "deep"],
)
def test_settings_of_a_stranger_that_are_no_settings_are_one_line(tmp_path: Path, setting: str, said: str) -> None:
    (tmp_path / "theirs.toml").write_text(setting + "\n")
    done = launch("--config", tmp_path / "theirs.toml", "--run-dir", tmp_path / "run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr[-500:]
    assert said in done.stderr and "\x1b" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config.toml", "summary.json", "metrics.jsonl", "eval.json", "events.jsonl"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(small_run: Path, tmp_path: Path, file: str) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    (tmp_path / "run" / file).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "run" / file)
    done = launch("compare", small_run, tmp_path / "run")
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr
    if file != "summary.json":
        (tmp_path / "run" / "summary.json").unlink()  # With a summary, the run would count as finished.
    done = launch("--resume", tmp_path / "run", "--in-process")
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_link_in_place_of_a_new_file_is_not_followed(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    monkeypatch.setattr("protocol.files.secrets.token_hex", lambda _: "foretold")
    (tmp_path / "run" / ".eval.json.foretold").symlink_to(tmp_path / "owned")
    from protocol.files import replace_file

    with pytest.raises(FileExistsError):
        replace_file(tmp_path / "run" / "eval.json", "{}")
    assert not (tmp_path / "owned").exists()
