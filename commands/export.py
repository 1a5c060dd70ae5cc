"""`export`: a run's policy as one file that runs without this project's learner."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
import tyro

from actors.environment import make_environment
from actors.exported import ExportedPolicy, check_target, save_policy
from actors.graph import TOLERANCE, inputs_of, save_graph
from actors.simulation import EnvironmentFault, Simulation
from commands.helpers.command_line import parse
from commands.helpers.policies import describe, open_policy
from protocol.errors import UserError
from protocol.lifeline import SUCCESS
from protocol.output import say
from protocol.randomness import Purpose, environment_seed

STEPS = 64  # A graph is compared with the policy over so many steps of the environment.


@dataclass(frozen=True)
class ExportCommand:
    """Write a policy to one file.

    Examples:
      python launch.py export runs/CartPole-v1-seed0 policy.safetensors
      python launch.py export runs/CartPole-v1-seed0 policy.onnx --format onnx
    """

    policy: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="POLICY")]
    """Directory of a run, or a file that `export` or `import-sb3` wrote."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """File to write; an exported policy that is there is replaced, and nothing else is."""
    format: Literal["numpy", "onnx"] = "numpy"
    """`numpy`: safetensors, for `actors.exported.load_policy`. `onnx`: a graph, for any ONNX runtime."""
    best: bool = False
    """Take the best policy by evaluation instead of the newest."""
    trust: bool = False
    """Import the modules that a file, or another user's run, names for an environment, a wrapper or a network."""


def main(arguments: list[str]) -> int:
    """Export as the command line says; returns the exit code."""
    command = parse(ExportCommand, "launch.py export", arguments)
    check_target(command.out)
    experiment, snapshot = open_policy(command.policy, command.best, command.trust)
    policy = ExportedPolicy(describe(experiment, snapshot.policy_version), snapshot)
    try:
        if command.format == "onnx":
            save_graph(command.out, policy)
        else:
            save_policy(command.out, policy.description, snapshot)
    except OSError as error:
        raise UserError(f"{command.out} cannot be written: {error.strerror}") from None
    say(f"{command.out}: policy version {snapshot.policy_version} for {experiment.env}")
    if command.format == "onnx":
        _report(command.out, policy)
    return SUCCESS


def _report(path: Path, policy: ExportedPolicy) -> None:
    """Say how far the graph is from the policy; raises `UserError` if that is too far."""
    try:
        import onnxruntime
    except ImportError:
        say("not compared with the NumPy policy: onnxruntime is not installed (extra `onnx`)")
        return
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference = largest_difference(session, policy)
    text = f"over {STEPS} steps of the environment its outputs differ from the NumPy policy's by at most"
    if not difference <= TOLERANCE:
        raise UserError(f"{path}: {text} {difference:.1e}, more than {TOLERANCE}")
    say(f"{text} {difference:.1e}")


def largest_difference(session: object, policy: ExportedPolicy) -> float:
    """Between a graph's outputs and the policy's: absolute where they are below 1, and relative above."""
    experiment = policy.description.experiment
    simulation = Simulation(experiment, make=lambda experiment: _Shown(make_environment(experiment)))
    largest, over, episode = 0.0, True, 0
    hidden_state = np.zeros((1, experiment.hidden_state_size), np.float32)
    for _ in range(STEPS):
        try:
            if over:
                over, episode = False, episode + 1
                policy.reset()
                hidden_state = np.zeros_like(hidden_state)
                simulation.reset(environment_seed(experiment.seed, Purpose.EVALUATION_SEED, 0, episode - 1))
            observation = simulation.env.shown  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
            outputs = ["parameters", *(["next_hidden_state"] if experiment.hidden_state_size else [])]
            found = session.run(outputs, inputs_of(policy, observation, hidden_state, simulation.allowed))  # pyright: ignore[reportAttributeAccessIssue]
            *wanted, hidden_state = policy.forward(observation)
            for ours, theirs in zip([*wanted, hidden_state], found, strict=False):
                largest = max(largest, float((np.abs(ours - theirs) / np.maximum(1, np.abs(ours))).max()))
            _, _, terminated, truncated = simulation.step(policy(observation, simulation.allowed))
            over = terminated or truncated
        except EnvironmentFault:
            over = True  # it says nothing about the graph
    simulation.close()
    return largest


class _Shown(gymnasium.Wrapper):
    """Remembers what the environment showed last, in its own form."""

    def reset(self, **arguments: Any) -> Any:
        self.shown, info = self.env.reset(**arguments)
        return self.shown, info

    def step(self, action: Any) -> Any:
        self.shown, *rest = self.env.step(action)
        return self.shown, *rest
