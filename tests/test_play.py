"""`play`: real windows on a dummy display, and real videos."""

import os
import shutil
from pathlib import Path

import pytest
from launching import SMALL, launch, train

from protocol.extras import how_to_install

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
pytest.importorskip("moviepy")
pytest.importorskip("pygame")

DUMMY = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}


@pytest.fixture
def cartpole(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the small run, which tests may change."""
    return shutil.copytree(small_run, tmp_path / "run")


def trained(tmp_path: Path, *flags: object) -> Path:
    train(tmp_path / "run", "--in-process", *SMALL, "--total-steps", 512, *flags)
    return tmp_path / "run"


def test_a_window_shows_an_episode_and_its_return_is_printed(cartpole: Path) -> None:
    done = launch("play", cartpole, "--episodes", 2, **DUMMY)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["episode 0", "episode 1"]
    evaluated = launch("eval", cartpole, "--episodes", 2)
    returns = [float(line.split("return ")[1].split(",")[0]) for line in lines]
    assert f"return {sum(returns) / 2:.2f} " in evaluated.stdout


@pytest.mark.parametrize(
    ("env", "flags"),
    [
        ("CartPole-v1", []),
        ("MountainCar-v0", ["--replay-cap", 30, "--rebuild-env"]),  # Fresh environment and recorder per episode.
    ],
)
def test_videos_are_as_long_as_the_episodes(env: str, flags: list[object], tmp_path: Path) -> None:
    run_dir = trained(tmp_path, "--env", env, *flags)
    done = launch("play", run_dir, "--episodes", 2, "--video", tmp_path / "videos", **DUMMY)
    assert (done.returncode, done.stderr) == (0, "")
    lengths = [int(line.rpartition(" ")[2]) for line in done.stdout.splitlines() if line.startswith("episode")]
    names = [f"{env}-version1-episode-{i}.mp4" for i in range(2)]
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == names
    assert str(tmp_path / "videos" / names[0]) in done.stdout
    for name, length in zip(names, lengths, strict=True):
        frames, seconds = imageio_ffmpeg.count_frames_and_secs(tmp_path / "videos" / name)
        assert frames in (length, length + 1)  # The first observation is a frame, too; moviepy may drop the last.
        assert seconds > 0


def test_what_cannot_be_shown_is_said_in_one_line(cartpole: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    hidden: dict[str, str] = dict.fromkeys(("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"), "")
    cases: list[tuple[list[object], dict[str, str], str]] = [
        (["--episodes", 0], DUMMY, "--episodes must be at least 1"),
        (["--best"], DUMMY, "best has no checkpoint"),
        (["--video", tmp_path / "file" / "videos"], DUMMY, "cannot be written"),
    ]
    if os.uname().sysname == "Linux":
        cases.append(([], hidden, "there is no display to open a window on (DISPLAY is not set); --video DIR"))
    for flags, environ, line in cases:
        done = launch("play", cartpole, *flags, **environ)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert line in done.stderr


def test_an_environment_without_render_modes_is_named(tmp_path: Path) -> None:
    done = launch("play", trained(tmp_path, "--env", "tests.environments:TMaze-v0"), **DUMMY)
    assert done.returncode == 2
    assert done.stderr == "launch.py: tests.environments:TMaze-v0 has no render modes, so there is nothing to see\n"


@pytest.mark.parametrize(("package", "extra"), [("pygame", "play"), ("moviepy", "video")])
def test_a_package_that_is_missing_is_named_with_its_extra(
    package: str, extra: str, cartpole: Path, tmp_path: Path
) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / f"{package}.py").write_text("raise ModuleNotFoundError('hidden')\n")
    flags = ["--video", tmp_path / "videos"] if extra == "video" else []
    done = launch("play", cartpole, *flags, PYTHONPATH=str(tmp_path / "hidden"), **DUMMY)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"is not installed; {how_to_install(extra)}" in done.stderr
