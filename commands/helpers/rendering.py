"""Environments that show themselves: in a window, or recorded as videos."""

import dataclasses
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium
from gymnasium.wrappers import RecordVideo

from actors.closing import close_environment
from actors.environment import make_environment
from actors.interrupts import let_users_interrupt
from actors.simulation import EnvironmentFault
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.extras import how_to_install
from protocol.text import error_line

FRAMES = ("rgb_array", "rgb_array_list")  # These render modes give pictures. Gymnasium can put them in a window, too.
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")


@contextmanager
def packages_named(extra: str) -> Iterator[None]:
    """Turn a package that is missing into a `UserError` that names the extra of this project which brings it, and an
    environment that cannot be made into one that says so."""
    try:
        yield
    except (gymnasium.error.DependencyNotInstalled, EnvironmentFault) as error:
        cause = error.__cause__ if isinstance(error, EnvironmentFault) else error
        if isinstance(cause, gymnasium.error.DependencyNotInstalled):
            raise UserError(f"{str(cause).partition(',')[0]}; {how_to_install(extra)}") from None
        raise UserError(f"the environment cannot be made: {error}") from None


class Window:
    """Makes environments in a window."""

    def __init__(self, experiment: Experiment) -> None:
        """Raises `UserError` where there can be none."""
        modes = _render_modes(experiment)
        if not {"human", *FRAMES} & set(modes):
            raise UserError(f"{experiment.env} has only the render modes {', '.join(modes)}; a window needs another")
        if sys.platform == "linux" and not any(os.environ.get(name) for name in DISPLAYS):
            raise UserError("there is no display to open a window on (DISPLAY is not set); --video DIR records instead")

    def make(self, experiment: Experiment) -> gymnasium.Env:
        return _rendered(experiment, "human")

    def finish(self) -> None:
        """Nothing is left to be done when an episode has ended."""


class Video:
    """Makes environments with a recorder around them, which writes an mp4 of each episode."""

    def __init__(self, experiment: Experiment, directory: Path, name: str) -> None:
        """The files are `directory`/`name`-episode-N.mp4. Raises `UserError` where nothing can be recorded."""
        modes = _render_modes(experiment)
        self._directory, self._name = directory.absolute(), name  # the environment may change directory
        self._mode = next((mode for mode in FRAMES if mode in modes), None)
        if self._mode is None:
            raise UserError(f"{experiment.env} has only the render modes {', '.join(modes)}; --video needs rgb_array")
        self._recorder: RecordVideo | None = None
        try:
            env = _rendered(experiment, self._mode)
            env.reset(seed=0)
            env.render()
        except (UserError, gymnasium.error.DependencyNotInstalled):
            raise
        except BaseException as error:  # whatever a graphics library says where it finds no way to draw
            let_users_interrupt(error)
            raise UserError(f"{experiment.env} cannot be rendered here: {error_line(error)}") from error
        close_environment(env)

    def make(self, experiment: Experiment) -> gymnasium.Env:
        assert self._mode is not None
        env = _rendered(experiment, self._mode)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gymnasium warns when it replaces a video.
            try:
                recorder = RecordVideo(env, str(self._directory), lambda _: True, name_prefix=self._name)
            except OSError as error:
                raise UserError(f"--video {self._directory} cannot be written: {error.strerror}") from None
        if self._recorder is not None:
            recorder.episode_id = self._recorder.episode_id  # a fresh one would begin at 0 again
        self._recorder = recorder
        return recorder

    def finish(self) -> None:
        """Write the episode that has ended: it may take longer than a close() may."""
        if self._recorder is not None and self._recorder.recording:
            self._recorder.stop_recording()


def _render_modes(experiment: Experiment) -> list[str]:
    """What the environment can be rendered as; raises `UserError` if it cannot be."""
    try:
        env = make_environment(experiment)
    except UserError:
        raise
    except BaseException as error:
        let_users_interrupt(error)
        raise UserError(f"{experiment.env} cannot be made: {error_line(error)}") from error
    modes: list[str] = list(env.metadata.get("render_modes") or ())
    close_environment(env)
    if not modes:
        raise UserError(f"{experiment.env} has no render modes, so there is nothing to see")
    return modes


def _rendered(experiment: Experiment, mode: str) -> gymnasium.Env:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that gymnasium puts pictures in a window where the environment cannot itself
        kwargs = (*experiment.env_kwargs, f"render_mode={mode}")
        return make_environment(dataclasses.replace(experiment, env_kwargs=kwargs))
