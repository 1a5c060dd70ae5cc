"""`play`: watch a policy act, in a window or as videos."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import gymnasium
import tyro

from actors.closing import end_if_stuck
from actors.episodes import playing
from actors.simulation import EnvironmentFault
from actors.tracebacks import users_place
from commands.helpers.command_line import parse
from commands.helpers.policies import open_policy
from commands.helpers.rendering import Video, Window, packages_named
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.lifeline import FAILURE, SUCCESS
from protocol.output import say
from protocol.snapshot import PolicySnapshot


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
    """Import the modules that a file, or another user's run, names for an environment, a wrapper or a network."""


def main(arguments: list[str]) -> int:
    """Play as the command line says; returns the exit code."""
    command = parse(PlayCommand, "launch.py play", arguments)
    if command.episodes < 1:
        raise UserError(f"--episodes must be at least 1, not {command.episodes}")
    try:
        experiment, snapshot = open_policy(command.policy, command.best, command.trust)
    except EnvironmentFault as fault:
        raise UserError(f"{command.policy}: its environment cannot be made: {fault}") from None
    name = f"{re.sub('[^A-Za-z0-9.-]', '-', experiment.env)}-version{snapshot.policy_version}"
    with packages_named("play" if command.video is None else "video"):
        show = Window(experiment) if command.video is None else Video(experiment, command.video, name)
        code = _play(experiment, snapshot, command.episodes, show)
    if command.video is not None:
        say(f"{command.video / name}-episode-0.mp4" + (" and on" if command.episodes > 1 else ""))
    return code


def _play(experiment: Experiment, snapshot: PolicySnapshot, episodes: int, show: Window | Video) -> int:
    """Play and print each episode; returns the exit code, a failure where each ended in a fault."""
    played = 0
    with playing(experiment, snapshot, episodes, show.make) as scores:
        for number, score in enumerate(scores):
            show.finish()
            if score.fault is None:
                played += 1
                say(f"episode {number}: return {score.episode_return:.2f}, length {score.length}")
            elif isinstance(score.fault.__cause__, gymnasium.error.DependencyNotInstalled):
                raise score.fault
            else:
                place = users_place(score.fault.__cause__)
                say(f"episode {number}: seed {score.seed}, after {score.length} steps: {score.fault}{place}")
        code = SUCCESS if played else FAILURE
        end_if_stuck(code)
    return code
