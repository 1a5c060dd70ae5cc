"""`replay`: a fault of an environment, in a fresh environment and in front of your eyes."""

import pdb
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import tyro

from actors.closing import end_if_stuck
from actors.environment import make_environment
from actors.simulation import EnvironmentFault, Simulation
from commands.helpers.command_line import parse
from commands.helpers.rendering import Video, packages_named
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.lifeline import FAILURE, SUCCESS
from protocol.output import output, say
from protocol.text import one_line, printable
from protocol.trajectory import Fault
from protocol.trust import check_trust
from rundir.faults import list_faults
from rundir.names import FAULTS
from rundir.run import Run

SHOWN = 5  # So many steps before a fault are shown.


@dataclass(frozen=True)
class ReplayCommand:
    """Repeat what went wrong in a run's environment: a fresh one takes the same actions after the same reset.

    Without N, list the faults that were kept, the first 20 of a run. Exit code 0 where the fault comes again.

    Examples:
      python launch.py replay runs/CartPole-v1-seed0
      python launch.py replay runs/CartPole-v1-seed0 1 --debugger
    """

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Directory of the run."""
    number: Annotated[int | None, tyro.conf.Positional, tyro.conf.arg(metavar="[N]")] = None
    """Number of the fault."""
    video: Path | None = None
    """Directory for an mp4 of the episode."""
    debugger: bool = False
    """Stop in Python's debugger where the environment raised."""
    trust: bool = False
    """Import the modules that another user's run names for an environment, a wrapper or a network."""


def main(arguments: list[str]) -> int:
    """Replay as the command line says; returns the exit code."""
    command = parse(ReplayCommand, "launch.py replay", arguments)
    experiment = Run.open(command.run_dir).config.experiment
    found = list_faults(command.run_dir / FAULTS)
    if command.number is None:
        for number, fault, _ in found:
            say(f"{number:>3}  {printable(str(fault))}")
        if not found:
            say(f"{experiment.env} left no faults in {command.run_dir}")
        return SUCCESS
    check_trust(experiment, command.run_dir, command.trust, run_dir=command.run_dir)
    for number, fault, actions in found:
        if number == command.number:
            name = f"fault-{number}"
            with packages_named("video"):
                video = Video(experiment, command.video, name) if command.video is not None else None
                return _replay(experiment, fault, actions, video, command.debugger)
    there = f"; there are {', '.join(str(number) for number, _, _ in found)}" if found else ""
    raise UserError(f"{command.run_dir} has no fault {command.number}{there}")


def _replay(experiment: Experiment, fault: Fault, actions: Any, video: Video | None, debugger: bool) -> int:
    """Repeat a fault and say what happens; returns the exit code."""
    say(printable(f"{experiment.env} {fault}"))
    try:
        simulation = Simulation(experiment, make=video.make if video else make_environment)
    except EnvironmentFault as error:
        return _compare(fault, error, 0, debugger)
    try:
        code = _compare(fault, _step_through(simulation, fault, actions), simulation.steps, debugger)
        if video is not None:
            video.finish()
        end_if_stuck(code)
    finally:
        simulation.close()
    return code


def _step_through(simulation: Simulation, fault: Fault, actions: Any) -> EnvironmentFault | None:
    """Reset and take the actions, as far as that goes; returns the fault that ended it."""
    action = simulation.spaces.action
    try:
        taken = np.array(actions, action.dtype).reshape(-1, *action.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"the actions that were kept are none of this environment's: {one_line(error)}") from None
    try:
        simulation.reset(fault.seed, fault.progress)
        say(f"reset with seed {fault.seed}" + (f", then {len(taken)} actions" if len(taken) else ""))
        for step, given in enumerate(simulation.to_env(taken)):
            shown = len(taken) - step <= SHOWN
            if shown:
                say(f"step {step}: action {one_line(given, 100)}")
            _, reward, terminated, truncated = simulation.step(given)
            if shown:
                say(f"  reward {reward:g}, terminated {terminated}, truncated {truncated}")
            if (terminated or truncated) and step + 1 < len(taken):
                say(f"the episode ended at step {step}, which it did not in the run")
                return None
    except EnvironmentFault as error:
        return error
    return None


def _compare(fault: Fault, found: EnvironmentFault | None, step: int, debugger: bool) -> int:
    """Say what was found, and whether it is what the run met; returns the exit code."""
    if found is not None:
        cause = found.__cause__
        if isinstance(cause, gymnasium.error.DependencyNotInstalled):
            raise found
        if cause is not None:
            below = cause.__traceback__.tb_next if cause.__traceback__ else None  # Our own frame is left out.
            traceback.print_exception(type(cause), cause, below, file=output())
            if debugger and below is not None:
                pdb.post_mortem(below)
        say(str(found))
        if (found.phase, step) == (fault.phase, fault.step):
            say("the fault has come again" + ("" if str(found) == fault.text else ", in other words"))
            return SUCCESS
    say(
        "the fault of the run DID NOT COME AGAIN: the environment was mended, or what it did there depends on something"
        " else than seed and actions, such as earlier episodes"
    )
    return FAILURE
