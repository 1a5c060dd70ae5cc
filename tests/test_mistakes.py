"""A user's mistakes: each gives one line with the mistake, its place and a remedy; no files are lost or left over."""

import fcntl
import hashlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from launching import LAUNCH, SMALL, launch, metrics_of, summary_of
from marks import slow

from commands.completion import script
from commands.helpers.command_line import parse
from commands.helpers.presets import preset_for
from commands.train import ExecutionConfig, SeveralConfig, TrainCommand
from learner.device import gpu_fault
from protocol.errors import UserError
from protocol.extras import how_to_install


def refused(*flags: object, **environ: str) -> str:
    """The message of `launch.py FLAGS…`; checks that it is one line on stderr and that the exit code is 2."""
    done = launch(*flags, **environ)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


EVERY = "tests.environments:EverySpace-v0"

# (flags, what the message says)
MISTAKES = [
    ("--actorz 3", "--actorz, 3; did you mean --actors?"),
    ("--actors 99999 --num-envs 16 --lane-size 4", "--actors must lie between 0 and 68, not 99999"),
    ("--schedule now", "Expected one of ('sync', 'pipelined', 'async')"),
    ("--recurrent lstm", "--recurrent lstm has no units: give --recurrent-size as well"),
    ("--num-envs 12", "not a multiple of --lane-size 8; use 8 or 16"),
    ("--minibatches 7", "use 4 or 8"),
    ("--env CartPoel-v1", "--env CartPoel-v1"),
    ("--env LunarLander-v2", "there is LunarLander-v3"),
    (f"--env {EVERY} --env-kwargs observation='text'", "observation space Text"),
    ("--env CartPole-v1 --env-kwargs a=1 --env-kwargs a=2", "--env-kwargs gives a twice"),
    ("--env CartPole-v1 --wrapper gymnasium.wrappers:Nope", "--wrapper gymnasium.wrappers:Nope"),
    ("--network mine:Net", "there is no module mine.actor"),
    ("--listen tcp://0.0.0.0:5555", "needs --keys DIR"),
    ("--resume nowhere", "nowhere: there is no run here"),
    ("evall", "there is no command evall; there are train, sweep, eval"),
    ("eval", "Missing from launch.py eval"),
]
MORE_MISTAKES = [
    ("--actors x", "--actors"),
    ("--actors 0", "--actors must be at least 1, or 0 with --listen"),
    ("--learning-rate", "Missing value for argument '--learning-rate'"),
    ("--hidden-sizes a", "--hidden-sizes"),
    ("--recurrent=gru --recurrent-size 0", "--recurrent gru has no units"),
    ("--recurrent-size 4 --minibatches 48", "64 sequences (--num-envs) does not divide"),
    ("--seed -1", "--seed must lie between 0 and"),
    (f"--num-envs {2**20} --rollout-length {2**20} --minibatches 3", "use 2 or 4"),
    ("--num-envs 60", "use 56 or 64"),
    ("--minibatches 4096", "use 2048"),
    ("--clip-range inf", "--clip-range"),
    ("--discount 1.5", "--discount"),
    ("--learning-rate-schedule 1:-1", "--learning-rate-schedule 1:-1"),
    ("--stop-return nan", "--stop-return"),
    ("--env CartPole", "there is CartPole-v1"),
    ("--env CartPole-v99", "CartPole"),
    ("--env :CartPole-v1", "--env"),
    ("--env nowhere:Env-v0", "No module named 'nowhere'"),
    (f"--env {EVERY} --env-kwargs action='dict'", "action space Dict"),
    ("--env CartPole-v1 --env-kwargs levels=[1,2", "levels=[1,2: it is neither a literal"),
    ("--env CartPole-v1 --env-kwargs gravity", "gravity is not name=value"),
    ("--hidden-sizes 8 --hidden-sizes 8", "--hidden-sizes is given twice"),
    ("--wrapper os:system('true')", "--wrapper os:system('true')"),
    ("--listen 0.0.0.0:5555", "--listen 0.0.0.0:5555 must be tcp://HOST:PORT"),
    ("--listen tcp://127.0.0.1:0", "must be tcp://HOST:PORT"),
    ("--listen tcp://[::]:5555", "needs --keys DIR"),
    ("--listen tcp://127.0.0.1.example.com:5555", "needs --keys DIR"),
    ("--listen tcp://192.0.2.1:5555 --insecure", "cannot listen on tcp://192.0.2.1:5555"),
    ("--listen tcp://0.0.0.0:5555 --keys .", "has no learner.key; `python launch.py keys"),
    ("--keys .", "for --listen, which is missing"),
    ("--config nowhere.toml", "nowhere.toml cannot be read"),
    ("--resume here --run-dir there", "no run here"),
    ("--trace nowhere/trace.json", "--trace nowhere/trace.json cannot be written"),
    ("eval nowhere", "nowhere: there is no run here"),
    ("actors nowhere --count 3", "no run is under way here"),
    ("bench nothing", "invalid choice: 'nothing'"),
    ("plot nowhere --out .", "--out . must end in the name of a file"),
    ("keys keys --names", "--names needs a name"),
    ("keys . --names a/b", "--names a/b"),
]


@pytest.mark.parametrize(("flags", "said"), [*MISTAKES, *(slow(*mistake) for mistake in MORE_MISTAKES)])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(*flags.split())
    left = [path for path in tmp_path.rglob("*") if path.name != "runs"]
    assert not left


@pytest.mark.skipif(not gpu_fault(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    assert "no GPU" in refused("--device", "gpu", "--run-dir", tmp_path / "run")


def test_a_file_where_the_run_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "cannot be written" in refused("--run-dir", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


LONG = "x" * 300  # No file system accepts such a name.


@pytest.mark.parametrize(
    "flags",
    [
        ["--run-dir", LONG],
        slow(["--config", LONG]),
        slow(["--trace", LONG]),
        slow(["--listen", "tcp://127.0.0.1:5555", "--keys", LONG]),
        *map(slow, (["--resume", LONG], ["replay", LONG, 1], ["compare", LONG, LONG], ["plot", LONG], ["play", LONG])),
        *map(slow, (["dashboard", LONG], ["export", LONG, "y"], ["actors", LONG, "--count", 2], ["keys", LONG])),
        ["eval", LONG],
    ],
    ids=lambda flags: "-".join(map(str, flags)).replace(LONG, "long"),
)
def test_a_path_that_the_system_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[object]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert LONG[:100] in refused(*flags)
    assert not [path for path in tmp_path.rglob("*") if path.name != "runs"]


@pytest.mark.slow
def test_an_argument_that_is_empty_or_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "an argument is empty" in refused("--run-dir", "")
    assert "is not UTF-8" in refused("--run-dir", "a\udcff")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "file", ["config.toml", *map(slow, ("checkpoints/00000004/arrays.safetensors", "metrics.jsonl"))]
)
def test_no_policy_is_written_over_a_file_that_is_none(small_run: Path, file: str) -> None:
    before = (small_run / file).read_bytes()
    assert "is there already, and is no exported policy" in refused("export", small_run, small_run / file)
    assert (small_run / file).read_bytes() == before


@pytest.mark.slow
def test_a_policy_is_written_over_an_older_one(small_run: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert launch("export", small_run, tmp_path / "policy").returncode == 0


@pytest.mark.slow
def test_what_can_be_pasted_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = "my runs/it's"
    done = launch("--run-dir", run_dir, "--in-process", *SMALL)
    command = done.stdout.splitlines()[-1].removeprefix("evaluate it: ")
    assert shlex.split(command)[-2:] == ["eval", run_dir]
    assert subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout.startswith("return ")


def test_a_setting_with_a_flags_hyphens_is_told_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("total-steps = 512\n")
    assert "unknown settings total-steps; did you mean total_steps?" in refused("--config", tmp_path / "mine.toml")


def test_equal_runs_with_other_weights_are_told_apart_from_different_ones(small_run: Path, tmp_path: Path) -> None:
    copy_of(small_run, tmp_path / "run")
    summary = summary_of(small_run) | {"weights_digest": "0" * 64}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    line = launch("compare", small_run, tmp_path / "run").stdout.splitlines()[-1]
    assert line.startswith("the weights differ, though all settings are equal and every run says that it is determinis")
    assert f"doctor --config {small_run}/config.toml`" in line and "docs/reproducibility.md" in line
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary | {"deterministic": False}))
    assert "the weights differ\n" in launch("compare", small_run, tmp_path / "run").stdout


def test_a_directory_that_holds_a_run_is_not_written_over(small_run: Path) -> None:
    before = (small_run / "config.toml").read_text()
    assert "already holds a run; continue it with --resume" in refused("--run-dir", small_run, *SMALL)
    assert (small_run / "config.toml").read_text() == before


@pytest.mark.parametrize("flags", [["--env", "Acrobot-v1"], *map(slow, (["--seed", 3], ["--learning-rate", 0.1]))])
def test_a_run_goes_on_with_its_own_settings_or_not_at_all(small_run: Path, flags: list[object]) -> None:
    line = refused("--resume", small_run, *flags)
    assert f"{flags[0]} is" in line and "leave the flag out" in line


def copy_of(run_dir: Path, target: Path) -> list[Path]:
    """Copy a run; returns the manifests of the copy's checkpoints."""
    shutil.copytree(run_dir, target)
    return sorted(target.glob("checkpoints/*/manifest.json"))


def test_checkpoints_that_are_all_damaged(small_run: Path, tmp_path: Path) -> None:
    for manifest in copy_of(small_run, tmp_path / "run"):
        (manifest.parent / "arrays.safetensors").write_bytes(b"nonsense")
    assert "has no checkpoint that can be read" in refused("eval", tmp_path / "run")


@pytest.mark.parametrize("lost", [slow("damaged"), "removed"])
def test_a_run_whose_checkpoints_are_lost_begins_anew_only_where_that_is_wanted(
    small_run: Path, tmp_path: Path, lost: str
) -> None:
    manifests, run_dir = copy_of(small_run, tmp_path / "run"), tmp_path / "run"
    (run_dir / "summary.json").unlink()
    for manifest in manifests:
        if lost == "damaged":
            (manifest.parent / "arrays.safetensors").write_bytes(b"nonsense")
        else:
            shutil.rmtree(manifest.parent)
    rows = (run_dir / "metrics.jsonl").read_bytes()
    assert "--begin-anew lets the run begin again" in refused("--resume", run_dir)
    assert (run_dir / "metrics.jsonl").read_bytes() == rows
    done = launch("--resume", run_dir, "--begin-anew", "--in-process")
    assert done.returncode == 0, done.stderr
    assert summary_of(run_dir)["weights_digest"] == summary_of(small_run)["weights_digest"]
    assert len(metrics_of(run_dir)) == len(metrics_of(small_run))


def test_to_begin_anew_is_for_runs_that_go_on(tmp_path: Path) -> None:
    assert "--begin-anew is for --resume" in refused("--begin-anew", "--run-dir", tmp_path / "run", *SMALL)


def test_a_configuration_that_was_edited_is_another_experiment_from_there_on(small_run: Path, tmp_path: Path) -> None:
    copy_of(small_run, tmp_path / "run")
    config = tmp_path / "run/config.toml"
    steps = 32 * 16 * 5
    config.write_text(config.read_text().replace("total_steps = 2048", f"total_steps = {steps}"))
    (tmp_path / "run/summary.json").unlink()
    done = launch("--resume", tmp_path / "run", "--in-process")
    assert done.returncode == 0, done.stderr
    assert f"config.toml was edited, and the run goes on with total_steps {steps} instead of 2048" in done.stdout
    summary = summary_of(tmp_path / "run")
    assert (summary["env_steps"], summary["deterministic"]) == (steps, False)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), [("num_envs", 32), ("lane_size", 4)])
def test_an_edit_that_would_make_other_lanes_is_refused(small_run: Path, tmp_path: Path, name: str, value: int) -> None:
    copy_of(small_run, tmp_path / "run")
    config = tmp_path / "run/config.toml"
    config.write_text(re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", config.read_text()))
    (tmp_path / "run/summary.json").unlink()
    said = refused("--resume", tmp_path / "run", "--in-process", "--quiet")
    assert f"config.toml was edited, and has {name} {value} instead of" in said


@pytest.mark.slow
def test_who_waits_for_another_learner_says_so(small_run: Path, tmp_path: Path) -> None:
    """The other learner may, for example, be stopped by a signal while its launcher was killed."""
    copy_of(small_run, tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    with open(tmp_path / "run/.learner-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        resumed = [*LAUNCH, "--resume", str(tmp_path / "run")]
        with subprocess.Popen(resumed, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = next(line for line in process.stdout if "another learner" in line)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert process.stdout.read()
    assert "another learner (process 4711) is at work" in said
    assert process.returncode == 0


def test_a_checkpoint_of_another_release(small_run: Path, tmp_path: Path) -> None:
    for manifest in copy_of(small_run, tmp_path / "run"):
        text = json.dumps(json.loads(manifest.read_text().rpartition("\n}\n")[0] + "\n}") | {"format": 99}, indent=1)
        manifest.write_text(f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")
    (tmp_path / "run/summary.json").unlink()  # With a summary, the run would count as finished.
    for words in (["eval", tmp_path / "run"], ["--resume", tmp_path / "run"]):
        assert "has checkpoint format 99, and this release reads" in refused(*words)


def test_a_configuration_that_was_edited_wrongly(small_run: Path, tmp_path: Path) -> None:
    copy_of(small_run, tmp_path / "run")
    config = tmp_path / "run/config.toml"
    config.write_text(config.read_text().replace("num_envs = 16", 'num_envs = "many"'))
    assert "num_envs is 'many', and must be a whole number" in refused("eval", tmp_path / "run")


@pytest.mark.slow
def test_an_extra_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('ale_py', 'mujoco', 'Box2D', 'minigrid'):\n    sys.modules[name] = None\n"
    )
    for env, module, extra in (
        ("ALE/Pong-v5", "ale_py", "atari"),
        ("HalfCheetah-v5", "mujoco", "mujoco"),
        ("LunarLander-v3", "Box2D", "box2d"),
        ("MiniGrid-Empty-5x5-v0", "minigrid", "minigrid"),
    ):
        done = launch("--env", env, "--run-dir", tmp_path / "run", PYTHONPATH=str(tmp_path))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert f"{module} is not installed; {how_to_install(extra)}" in done.stderr


def test_a_python_without_this_project_is_told_which_has_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('tyro', 'psutil'):\n    sys.modules[name] = None\n"
    )
    for command in ("train", "eval", "doctor"):
        assert "activate the environment" in refused(command, PYTHONPATH=str(tmp_path))


def test_help_into_a_pipe_that_closes_is_quiet() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(LAUNCH)} --help | head -1"], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.startswith("usage: python launch.py")


def complete(*words: str) -> list[str]:
    """The words that bash offers to complete the last of `words`."""
    function = "_launch_py_python" if words[0] == "python" else "_launch_py"
    line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; {function}; echo ${{COMPREPLY[*]}}"
    done = subprocess.run(["bash", "-c", f"{script()}\n{line}"], capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.stdout.split()


def test_a_shell_completes_commands_flags_and_choices() -> None:
    assert complete("./launch.py", "ev") == ["eval"]
    assert complete("./launch.py", "--sched") == ["--schedule"]
    assert complete("./launch.py", "--schedule", "p") == ["pipelined"]
    assert complete("./launch.py", "eval", "--ep") == ["--episodes"]
    assert complete("python", "launch.py", "doc") == ["doctor"]
    assert complete("python", "launch.py", "doctor", "--wr") == ["--wrapper"]
    assert complete("python", "other.py", "doc") == []


def test_a_shell_completes_what_a_flag_takes() -> None:
    assert complete("./launch.py", "--sink", "tens") == ["tensorboard"]
    assert complete("./launch.py", "--sink", "tensorboard", "wan") == ["wandb"]
    assert complete("./launch.py", "--network", "nat") == ["nature_cnn"]
    assert complete("./launch.py", "--learning-rate-schedule", "") == ["constant", "linear", "cosine", "adaptive"]
    assert complete("./launch.py", "--entropy-coef-schedule", "c") == ["constant", "cosine"]
    assert complete("./launch.py", "--env", "CartP") == ["CartPole-v1"]
    assert complete("./launch.py", "--cluster", "") == ["ray"]
    assert complete("./launch.py", "--device", "cpu", "g") == []  # It takes one.
    assert complete("./launch.py", "--sink", "tensorboard", "--dash") == ["--dashboard"]
    assert complete("python", "launch.py", "plot", "runs", "--x", "t") == ["time"]


PRESET = preset_for("CartPole-v1")
DEFAULT = TrainCommand(PRESET.experiment, PRESET.ppo, PRESET.training, ExecutionConfig(), SeveralConfig())


@pytest.mark.parametrize("flags", ["--hidden-sizes 256,256", "--hidden-sizes=256,256", "--hidden-sizes [256,256]"])
def test_numbers_with_commas_are_told_how_to_stand(flags: str) -> None:
    with pytest.raises(UserError, match=r"spaces between them: --hidden-sizes 256 256$"):
        parse(TrainCommand, "launch.py", flags.split())


def test_choices_with_commas_are_told_too_and_texts_may_hold_them() -> None:
    with pytest.raises(UserError, match=r"spaces between them: --sink tensorboard wandb$"):
        parse(TrainCommand, "launch.py", ["--sink", "tensorboard,wandb"])
    given = ["--wrapper", "gymnasium.wrappers:RescaleObservation(0, 1)"]
    command = parse(TrainCommand, "launch.py", given, default=DEFAULT)
    assert command.experiment.wrapper == (given[1],)
