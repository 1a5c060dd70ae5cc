"""`model`: predicts speed and traffic for 8 to 4,096 actors from what a step, an update and a byte cost."""

import argparse
from collections.abc import Iterable

from benchmarks import model_check
from benchmarks.arguments import positive
from benchmarks.measurements import Row, Samples
from benchmarks.report import Report, number
from benchmarks.scaling import Inputs, Prediction, best, predict, saturation, worth_starting
from protocol.errors import UserError

WORTH = 0.9  # Actors are worth starting up to this share of the highest speed.
MEGABYTE = 1e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # The defaults are for CartPole's network and a learner with one thread.
    counts = [2**i for i in range(3, 13)]
    parser.add_argument("--actors", nargs="+", type=positive(int), default=counts, help="numbers to predict for")
    parser.add_argument("--step-seconds", type=positive(float), default=0.005, help="of a step of one environment")
    parser.add_argument("--num-envs", type=positive(int), default=4096, help="environments in all")
    parser.add_argument("--lane-size", type=positive(int), default=1, help="environments of a lane")
    parser.add_argument("--rollout-length", type=positive(int), default=32, help="steps in one iteration")
    parser.add_argument("--observation-bytes", type=positive(int), default=16, help="of one observation")
    parser.add_argument("--action-bytes", type=positive(int), default=8, help="of one action")
    parser.add_argument("--parameters", type=positive(int), default=4610, help="of the policy, without its critic")
    parser.add_argument("--gigabits", type=positive(float), default=1.0, help="a second, of the network, each way")
    parser.add_argument("--learner-rate", type=positive(float), default=60_000, help="env-steps/s it can learn from")
    parser.add_argument(
        "--forward-seconds", type=positive(float), default=50e-6, help="seconds of the policy for a lane's step"
    )
    parser.add_argument(
        "--message-seconds", type=positive(float), default=150e-6, help="seconds of the learner for each message"
    )
    parser.add_argument(
        "--schedule", choices=("sync", "pipelined"), default="pipelined", help="schedule of acting and learning"
    )
    parser.add_argument(
        "--check", action="store_true", help="instead, measure an experiment's inputs and speeds here, and compare"
    )


def run(arguments: argparse.Namespace) -> Report:
    report = Report("model")
    if arguments.check:
        model_check.run(arguments.schedule, arguments.repeats, report)
        return report
    inputs = inputs_of(arguments)
    predictions = [predict(inputs, n) for n in sorted(set(arguments.actors))]
    report.rows += rows_of(inputs, predictions)
    for text in answers(inputs):
        report.note(text)
    return report


def inputs_of(arguments: argparse.Namespace) -> Inputs:
    if arguments.num_envs % arguments.lane_size:
        raise UserError(f"--num-envs {arguments.num_envs} is not a multiple of --lane-size {arguments.lane_size}")
    return Inputs(
        step_seconds=arguments.step_seconds,
        num_envs=arguments.num_envs,
        lane_size=arguments.lane_size,
        rollout_length=arguments.rollout_length,
        observation_bytes=arguments.observation_bytes,
        action_bytes=arguments.action_bytes,
        parameters=arguments.parameters,
        bandwidth=arguments.gigabits * 1e9 / 8,
        learner_rate=arguments.learner_rate,
        forward_seconds=arguments.forward_seconds,
        message_seconds=arguments.message_seconds,
        schedule=arguments.schedule,
    )


def rows_of(inputs: Inputs, predictions: Iterable[Prediction]) -> list[Row]:
    """Rows for each number of actors: the speed, its three limits, and the traffic."""

    def row(panel: str, unit: str, p: Prediction, contender: str, value: float) -> Row:
        return Row(panel, unit, str(p.actors), contender, Samples.of([value]))

    speed, traffic = f"{inputs.schedule}, {inputs.lanes:,} lanes, by actors", "on the wire, by actors"
    speeds, bytes_per_second = [], []
    for p in predictions:
        speeds += [row(speed, "env-steps/s", p, f"{name} alone", value) for name, value in p.limits.items()]
        speeds.append(row(speed, "env-steps/s", p, "together", p.rate))
        for contender, value in (
            ("trajectories, up", p.traffic_up),
            ("weights, down", p.traffic_down),
            ("the network", inputs.bandwidth),
        ):
            bytes_per_second.append(row(traffic, "MB/s", p, contender, value / MEGABYTE))
    return speeds + bytes_per_second


def answers(inputs: Inputs) -> Iterable[str]:
    """The answers to a user's questions before a run, as sentences."""
    top, worth, saturated = best(inputs), worth_starting(inputs, WORTH), saturation(inputs)
    if saturated is not None:
        learner = f"The learner is saturated by {saturated.actors:,} actors"
    else:
        most = predict(inputs, inputs.lanes)
        learner = (
            f"The learner is never saturated: lanes run out at {inputs.lanes:,} actors, which act at"
            f" {number(most.limits['acting'])} env-steps/s where it could learn from {number(most.limits['learner'])}"
        )
    yield f"{learner}. More than {inputs.lanes:,} actors, one for each lane, have nothing to do."
    yield (
        f"Worth starting: {worth.actors:,} actors, the fewest that give {WORTH:.0%} of the most:"
        f" {number(worth.rate)} of {number(top.rate)} env-steps/s, which {top.actors:,} give. What limits them then is"
        f" {limit_of(top)}."
    )
    yield (
        f"With {worth.actors:,} actors: weights {number(worth.traffic_down / MEGABYTE)} MB/s"
        f" ({inputs.snapshot_bytes / 1e3:,.1f} KB for each actor and version), trajectories"
        f" {number(worth.traffic_up / MEGABYTE)} MB/s ({inputs.trajectory_bytes / 1e3:,.1f} KB a lane's rollout), of"
        f" {number(inputs.bandwidth / MEGABYTE)} MB/s each way; {1 / worth.iteration:.3g} versions a second."
    )


def limit_of(prediction: Prediction) -> str:
    """Describe what limits the speed: the part that works all the time, if there is one."""
    name = min(prediction.limits, key=prediction.limits.__getitem__)
    works_always = prediction.rate > 0.999 * prediction.limits[name]
    return {"acting": name}.get(name, f"the {name}") if works_always else "that each waits for the others"
