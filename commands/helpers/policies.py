"""The policy that a command is to act with: of a run directory, or of a file that `export` wrote."""

from pathlib import Path
from typing import NamedTuple

from actors.exported import Description, load_policy
from actors.simulation import Simulation
from actors.spaces import action_form, observation_form
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.snapshot import PolicySnapshot
from protocol.trust import check_trust
from rundir.checkpoint import policy_snapshot, understood
from rundir.run import Run


class Acting(NamedTuple):
    """What acts, and in what."""

    experiment: Experiment
    snapshot: PolicySnapshot


def open_policy(path: Path, best: bool = False, trust: bool = False) -> Acting:
    """The policy in a run directory or a file; raises `UserError` if there is none, or if it cannot act as it says.

    Directories and files may come from anywhere: unless trusted, they may name no foreign modules to import.
    """
    if not path.is_file():
        run = Run.open(path)
        check_trust(run.config.experiment, path, trust, run_dir=path)
        checkpoint = run.checkpoint(best)
        with understood(checkpoint):
            return Acting(run.config.experiment, policy_snapshot(checkpoint))
    if best:
        raise UserError(f"--best chooses among the policies of a run directory; {path} is a file with one")
    policy = load_policy(path, trust)
    given = policy.description
    named = [name for name in (given.experiment.env, *given.experiment.wrapper) if ":" in name]
    if named and not trust:
        raise UserError(f"{path} names modules to import ({', '.join(named)}): --trust lets their code run")
    here = describe(given.experiment, given.policy_version)
    if here != given:
        raise UserError(f"{path} holds a policy for other spaces than {given.experiment.env} has here")
    return Acting(given.experiment, policy.snapshot)


def describe(experiment: Experiment, policy_version: int) -> Description:
    """A policy of this experiment, as an exported file describes it: without what only the critic sees. Raises
    `EnvironmentFault` where its environment cannot be made."""
    simulation = Simulation(experiment)
    env = simulation.env
    assert env is not None
    spaces = simulation.find_masks().of_policy
    observation = observation_form(env.observation_space, experiment).first(len(spaces.parts))
    action = action_form(env.action_space)
    simulation.close()
    return Description(policy_version, experiment, spaces, observation, action)
