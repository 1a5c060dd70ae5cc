"""`play`: watch a policy act, in a window or as videos."""

import dataclasses
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import gymnasium
import tyro

from actors.environment import make_environment
from actors.episodes import each_episode
from commands.command_line import parse
from commands.policies import open_policy
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.lifeline import SUCCESS

FRAMES = ("rgb_array", "rgb_array_list")  # the render modes that give pictures; gymnasium puts them in a window, too
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")


@dataclass(frozen=True)
class PlayCommand:
    """Watch a policy act, with the mode of its distribution.

    Examples:
      python launch.py play runs/CartPole-v1-seed0
      python launch.py play policy.safetensors --episodes 3 --video videos
    """

    policy: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="POLICY")]
    """Directory of a run, or a file that `export` or `import-sb3` wrote."""
    episodes: int = 1
    """Episodes to play."""
    video: Path | None = None
    """Directory for an mp4 of each episode, instead of a window."""
    best: bool = False
    """Take the best policy by evaluation instead of the newest."""
    trust: bool = False
    """Import the modules that a file names, for an environment, a wrapper or a network that is not a library's."""


def main(arguments: list[str]) -> int:
    """Play as the command line says; returns the exit code."""
    command = parse(PlayCommand, "launch.py play", arguments)
    if command.episodes < 1:
        raise UserError(f"--episodes must be at least 1, not {command.episodes}")
    experiment, snapshot = open_policy(command.policy, command.best, command.trust)
    modes = _render_modes(experiment)
    name = f"{re.sub('[^A-Za-z0-9.-]', '-', experiment.env)}-version{snapshot.policy_version}"
    try:
        if command.video is None:
            make = _in_window(experiment, modes)
        else:
            make = _on_video(experiment, modes, command.video, name)
        for number, score in enumerate(each_episode(experiment, snapshot, command.episodes, make)):
            print(f"episode {number}: return {score.episode_return:.2f}, length {score.length}", flush=True)
    except gymnasium.error.DependencyNotInstalled as error:
        extra = "play" if command.video is None else "video"
        raise UserError(f'{str(error).partition(",")[0]}: pip install -e ".[{extra}]"') from None
    if command.video is not None:
        print(f"{command.video / name}-episode-0.mp4" + (" and on" if command.episodes > 1 else ""))
    return SUCCESS


def _render_modes(experiment: Experiment) -> list[str]:
    """What the environment can be rendered as; raises `UserError` if it cannot be."""
    env = make_environment(experiment)
    modes: list[str] = list(env.metadata.get("render_modes") or ())
    env.close()
    if not modes:
        raise UserError(f"{experiment.env} has no render modes, so there is nothing to see")
    return modes


def _in_window(experiment: Experiment, modes: list[str]) -> Callable[[Experiment], gymnasium.Env]:
    """What makes the environment in a window; raises `UserError` where there can be none."""
    if not {"human", *FRAMES} & set(modes):
        raise UserError(f"{experiment.env} has only the render modes {', '.join(modes)}; a window needs another")
    if sys.platform == "linux" and not any(os.environ.get(name) for name in DISPLAYS):
        raise UserError("there is no display to open a window on (DISPLAY is not set); --video DIR records instead")
    return lambda experiment: _rendered(experiment, "human")


def _on_video(
    experiment: Experiment, modes: list[str], directory: Path, name: str
) -> Callable[[Experiment], gymnasium.Env]:
    """What makes the environment with a recorder around it; raises `UserError` where nothing can be recorded."""
    mode = next((mode for mode in FRAMES if mode in modes), None)
    if mode is None:
        raise UserError(f"{experiment.env} has only the render modes {', '.join(modes)}; --video needs rgb_array")
    try:
        env = _rendered(experiment, mode)
        env.reset(seed=0)
        env.render()
        env.close()
    except (UserError, gymnasium.error.DependencyNotInstalled):
        raise
    except Exception as error:  # whatever a graphics library says where it finds no way to draw
        raise UserError(f"{experiment.env} cannot be rendered here: {type(error).__name__}: {error}") from error
    made = 0

    def make(experiment: Experiment) -> gymnasium.Env:
        nonlocal made
        env = _rendered(experiment, mode)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that older videos of the same name are replaced
            try:
                env = gymnasium.wrappers.RecordVideo(env, str(directory), lambda _: True, name_prefix=name)
            except OSError as error:
                raise UserError(f"--video {directory} cannot be written: {error.strerror}") from None
        env.episode_id += made  # a recorder for each episode, with `rebuild_env`, would begin at 0 again
        made += 1
        return env

    return make


def _rendered(experiment: Experiment, mode: str) -> gymnasium.Env:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that gymnasium puts pictures in a window where the environment cannot itself
        kwargs = (*experiment.env_kwargs, f"render_mode={mode}")
        return make_environment(dataclasses.replace(experiment, env_kwargs=kwargs))
