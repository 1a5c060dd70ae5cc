"""A run's results do not depend on the state of its processes, on its folder, or on a user's modules."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from launching import LAUNCH, ROOT, SMALL, TIMEOUT, metrics_of, summary_of
from marks import slow

from protocol.arithmetic import own_context
from rundir.checkpoint import load_newest_checkpoint

# An environment that iterates over a set of strings, whose order depends on their hashes.
SETS = """
import gymnasium, numpy as np
class Sets(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (4,)), gymnasium.spaces.Discrete(2)
    def observed(self):
        names = list({"left", "right", "up", "down"})
        return np.array([names.index(name) / 4 for name in ("left", "right", "up", "down")], np.float32)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observed(), {}
    def step(self, action):
        self.steps += 1
        return self.observed() * self.np_random.random(), float(action), self.steps >= 20, False, {}
gymnasium.register("Sets-v0", Sets)
"""
# An environment that makes NumPy raise on every floating-point error.
RAISES = (
    SETS
    + """
import warnings
warnings.simplefilter("error")
np.seterr(all="raise")
class Raises(Sets):
    def reset(self, **given):
        np.seterr(all="raise")
        return super().reset(**given)
    def step(self, action):
        np.seterr(all="raise")
        return super().step(action)
gymnasium.register("Raises-v0", Raises)
"""
)
SHADOWS = ("queue", "random", "logging", "zmq", "numpy", "msgpack", "psutil", "selectors", "secrets")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with the environments above."""
    (tmp_path / "sets.py").write_text(SETS)
    (tmp_path / "raises.py").write_text(RAISES)
    return tmp_path


def run_in(folder: Path, *flags: object, code: int = 0, environ: dict[str, str] | None = None) -> str:
    """Run `launch.py FLAGS…` in `folder`; returns its output."""
    done = subprocess.run(
        [*LAUNCH, *map(str, flags)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"} | (environ or {}),
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_sets_are_iterated_alike_in_every_process(folder: Path) -> None:
    for name, flags, seed in (
        ("one", ["--actors", 1], {}),
        ("four", ["--actors", 4], {"PYTHONHASHSEED": "77"}),
        ("threads", ["--actors", 2, "--in-process"], {"PYTHONHASHSEED": "random"}),
    ):
        run_in(folder, "--env", "sets:Sets-v0", *SMALL, *flags, "--run-dir", name, environ=seed)
    assert len({summary_of(folder / name)["weights_digest"] for name in ("one", "four", "threads")}) == 1
    found = set()
    for seed in ("1", "2"):
        run_in(folder, "eval", "one", "--episodes", 3, environ={"PYTHONHASHSEED": seed})
        found.add((folder / "one" / "eval.json").read_text())
    assert len(found) == 1


def test_a_program_keeps_its_process_and_its_flags_when_it_fixes_the_hash_seed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import os; from protocol.process import fix_hash_seed; fix_hash_seed()\n"
        "print(os.getpid(), sys.warnoptions, sys._xoptions, sys.flags.hash_randomization, sys.argv[1:], input())\n"
    )
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "utf8", str(script), "--flag", "two words"],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        output, _ = process.communicate("said", timeout=TIMEOUT)
    assert output == f"{process.pid} ['error'] {{'utf8': True}} 0 ['--flag', 'two words'] said\n"


@pytest.mark.parametrize("flag", ["-E", "-R"])
def test_a_hash_seed_that_cannot_be_fixed_is_refused_in_one_line(flag: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, flag, str(ROOT / "launch.py"), "doctor"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        cwd=tmp_path,
        check=False,
    )
    if flag == "-R" and done.returncode != 2:
        pytest.skip("this Python lets PYTHONHASHSEED win")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "PYTHONHASHSEED" in done.stderr


@pytest.mark.slow
def test_nothing_in_the_users_folder_takes_a_modules_place(folder: Path) -> None:
    flags = ["--env", "CartPole-v1", *SMALL, "--actors", 2, "--eval-every", 2, "--eval-episodes", 1]
    run_in(folder, *flags, "--run-dir", "without")
    for name in SHADOWS:
        (folder / f"{name}.py").write_text("raise RuntimeError('a module of the user took the place of another')\n")
    for name in ("mlx", "ngsolve_openblas", "gymnasium"):
        (folder / name).mkdir()
    run_in(folder, *flags, "--run-dir", "with", environ={"TMPDIR": str(folder)})
    without, among = summary_of(folder / "without"), summary_of(folder / "with")
    assert among["weights_digest"] == without["weights_digest"]
    assert among["learner"] == without["learner"]
    assert any("eval/return_mean" in row for row in metrics_of(folder / "with")) or (folder / "with" / "best").exists()


@pytest.mark.slow
def test_a_users_np_seterr_and_warnings_filter_reach_no_arithmetic_of_ours(folder: Path) -> None:
    flags = [*SMALL, "--actors", 2]
    run_in(folder, "--env", "sets:Sets-v0", *flags, "--run-dir", "plain")
    run_in(folder, "--env", "raises:Raises-v0", *flags, "--run-dir", "raising")
    assert summary_of(folder / "raising")["weights_digest"] == summary_of(folder / "plain")["weights_digest"]


def test_own_arithmetic_raises_nothing() -> None:
    with np.errstate(all="raise"):
        with pytest.raises(FloatingPointError):
            np.exp(np.float32(-1000))
        assert own_context().run(np.exp, np.float32(-1000)) == 0


@pytest.mark.slow
def test_a_learner_that_computes_otherwise_is_named_on_resume(folder: Path) -> None:
    run_in(folder, "--env", "CartPole-v1", *SMALL, "--checkpoint-every", 2, "--run-dir", "run")
    record = summary_of(folder / "run")["learner"]
    assert {"device", "blas", "kernels", "threads", "mlx", "numpy", "python", "arithmetic"} <= record.keys()
    assert summary_of(folder / "run")["continued_elsewhere"] is False
    checkpoint = load_newest_checkpoint(folder / "run" / "checkpoints", print)
    assert checkpoint is not None and checkpoint.facts["learner"] == record
    shutil.copytree(folder / "run", folder / "other")
    shutil.rmtree(folder / "other" / "checkpoints" / f"{checkpoint.policy_version:08}")
    (folder / "other" / "summary.json").unlink()
    fewer = {"PATH": str(folder / "nothing")}  # There is no compiler on this path.
    said = run_in(folder, "--resume", "other", environ=fewer)
    assert said.count("the learner goes on with kernels not fused instead of fused") == 1
    summary = summary_of(folder / "other")
    assert summary["continued_elsewhere"] is True and summary["deterministic"] is False
    assert "learner: kernels" in run_in(folder, "compare", "run", "other")


@pytest.mark.slow
def test_an_environment_may_change_the_working_directory(folder: Path) -> None:
    (folder / "moves.py").write_text(SETS.replace("self.steps = 0", "self.steps = 0; import os; os.chdir('/')"))
    for flags in (["--in-process"], []):
        said = run_in(folder, "--env", "moves:Sets-v0", *SMALL, *flags, "--run-dir", "run", "--trace", "trace.json")
        assert "eval run\n" in said
        assert summary_of(folder / "run")["status"] == "finished"
        assert (folder / "trace.json").exists()
        shutil.rmtree(folder / "run")
        (folder / "trace.json").unlink()


@pytest.mark.parametrize("name", ["learner", slow("protocol"), slow("commands")])
def test_a_module_of_the_users_that_has_a_name_of_ours_is_named(folder: Path, name: str) -> None:
    (folder / f"{name}.py").write_text(SETS + "\nGRAVITY = 9.81\n")
    (folder / "mine.py").write_text(f"from {name} import GRAVITY\n")
    (folder / "other.py").write_text(f"import {name}\nprint({name}.GRAVITY)\n")
    for env in (f"{name}:Mine-v0", "mine:Mine-v0", "other:Other-v0"):
        said = run_in(folder, "--env", env, *SMALL, code=2)
        assert said.count("\n") == 1
        assert f"({name} in {folder}: modules of this project have that name and come first; rename yours)" in said


@pytest.mark.skipif(sys.platform != "linux", reason="the constant is that of Linux on x86-64 or arm64")
def test_own_arithmetic_rounds_to_nearest_whatever_a_library_has_set() -> None:
    mathematics = ctypes.CDLL("libm.so.6")
    upward = 0x800 if platform.machine() == "x86_64" else 0x400000
    thirds = np.full(4, 1 / 3, np.float32)
    right = own_context().run(np.multiply, thirds, np.float32(7.1))
    assert mathematics.fesetround(upward) == 0
    try:
        assert (np.multiply(thirds, np.float32(7.1)) != right).all()
        np.testing.assert_array_equal(own_context().run(np.multiply, thirds, np.float32(7.1)), right)
    finally:
        mathematics.fesetround(0)
