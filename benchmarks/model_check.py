"""Compare the scaling model with this machine: measure the model's inputs one by one, and the runs that it predicts.

Environments sleep, so that many actors can share few cores. The learner has much to compute, so that few actors
saturate it. Nothing is fitted: no input is taken from the runs. The machine should have nothing else to do, because
other load delays sleeps and updates, and not all of them equally.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import numpy as np

from benchmarks.contenders import NOT_NORMALIZED
from benchmarks.measurements import Row, Samples, interleave
from benchmarks.processes import Worker, cores, finished_run, metrics_of
from benchmarks.report import Report, number
from benchmarks.scale import FIRST_ITERATIONS, speeds_of
from benchmarks.scaling import Inputs, predict
from benchmarks.workloads import MINIBATCHES, Workload, trajectory
from protocol.messages import Grant, from_frames, to_frames
from protocol.snapshot import PolicySnapshot
from protocol.trajectory import Trajectory

ENV, STEP_SECONDS = "benchmarks.environments:Sleep-v0", 0.02
LANES, LANE_SIZE, ROLLOUT_LENGTH = 16, 2, 4
WORKLOAD = Workload("mlp", 256, LANES * LANE_SIZE * ROLLOUT_LENGTH // MINIBATCHES)
EPOCHS = 50
ACTORS = (1, 2, 4, 8, 12, 16, 24)
LOCAL_BANDWIDTH = 1e9  # Bytes per second over ipc, at least (`python -m benchmarks wire`), so nothing waits for it.
MEASURE_SECONDS = 1.0
LANE_STEP, FORWARD, UPDATE, MESSAGE = "a lane's step", "the same without sleep", "an update", "a message"


def run(schedule: Literal["sync", "pipelined"], repeats: int, report: Report) -> None:
    """Add rows with the measured and the predicted speed for each number of actors."""
    report.note(f"load of the machine before: {os.getloadavg()[0]:.1f} on {cores()} cores")
    runs = {n: partial(measured_rate, schedule, n) for n in ACTORS}
    with parts() as measure_parts:  # Parts and runs take turns, so that the machine is equally busy for both.
        contenders = {**measure_parts, **{_actors(n): rate for n, rate in runs.items()}}
        found = {
            name: Samples.of(values) for name, values in interleave(contenders, repeats, f"model, {schedule}").items()
        }
    inputs = inputs_of({name: found[name].median for name in measure_parts}, schedule)
    step, forward, message = inputs.step_seconds, inputs.forward_seconds, inputs.message_seconds
    report.note(
        f"measured: a step {step * 1e3:.2f} ms, policy and records of a lane's step {forward * 1e6:.0f} µs, the learner"
        f" {number(inputs.learner_rate)} env-steps/s and {message * 1e6:.0f} µs a message; {LANES} lanes"
    )
    errors = {}
    for n in ACTORS:
        panel, unit, prediction = f"{schedule}, by actors", "env-steps/s", predict(inputs, n)
        measured = Row(panel, unit, str(n), "measured", found[_actors(n)])
        predicted = Row(panel, unit, str(n), "predicted", Samples.of([prediction.rate]))
        report.rows += [dataclasses.replace(measured, comparisons=(measured.against(predicted),)), predicted]
        errors[n] = prediction.rate / measured.samples.median - 1
    told = ", ".join(f"{n}: {error:+.1%}" for n, error in errors.items())
    report.note(f"predicted against measured, by actors: {told}")


def _actors(count: int) -> str:
    return f"{count} actors"


@contextmanager
def parts() -> Iterator[dict[str, Callable[[int], float]]]:
    """Functions that measure the seconds that each part takes by itself."""
    lane_size = ["--lane-size", str(LANE_SIZE)]
    with (
        Worker("acting", "--env", ENV, "--env-kwargs", f"seconds={STEP_SECONDS}", *lane_size) as sleeping,
        Worker("acting", "--env", ENV, "--env-kwargs", "seconds=0.0", *lane_size) as waking,
        Worker("mlx_updates", "--threads", "1") as learner,
    ):

        def lane_step(worker: Worker) -> Callable[[int], float]:
            return lambda _: LANE_SIZE / worker.ask(contender="lane", seconds=MEASURE_SECONDS)["rate"]

        def update(_: int) -> float:
            wanted = dataclasses.asdict(WORKLOAD)
            return learner.ask(measure="iteration", workload=wanted, epochs=EPOCHS)["seconds"]

        yield {
            LANE_STEP: lane_step(sleeping),
            FORWARD: lane_step(waking),
            UPDATE: update,
            MESSAGE: lambda _: message_seconds(),
        }


def inputs_of(seconds: dict[str, float], schedule: Literal["sync", "pipelined"]) -> Inputs:
    """The model's inputs, from the seconds that each part takes."""
    return Inputs(
        step_seconds=(seconds[LANE_STEP] - seconds[FORWARD]) / LANE_SIZE,
        num_envs=LANES * LANE_SIZE,
        lane_size=LANE_SIZE,
        rollout_length=ROLLOUT_LENGTH,
        observation_bytes=16,
        action_bytes=8,
        parameters=sum(array.size for array in snapshot().weights.values()),
        bandwidth=LOCAL_BANDWIDTH,
        learner_rate=WORKLOAD.batch / seconds[UPDATE],
        forward_seconds=seconds[FORWARD],
        message_seconds=seconds[MESSAGE],
        schedule=schedule,
    )


def snapshot() -> PolicySnapshot:
    """A policy of the same size as the trained one."""
    widths = (4, WORKLOAD.hidden, WORKLOAD.hidden, 2)
    arrays = {f"{i}.weight": np.zeros((widths[i + 1], widths[i]), np.float32) for i in range(3)}
    arrays |= {f"{i}.bias": np.zeros(widths[i + 1], np.float32) for i in range(3)}
    return PolicySnapshot(0, arrays, np.zeros(4, np.float32), np.ones(4, np.float32))


def message_seconds() -> float:
    """Seconds that a message costs the learner: the average of a trajectory, including its grant, and a snapshot."""
    experiment = dataclasses.replace(WORKLOAD.experiment, lane_size=LANE_SIZE, rollout_length=ROLLOUT_LENGTH)
    received = [bytes(frame) for frame in to_frames(trajectory(WORKLOAD.spaces, experiment, lane=0, rollout_index=0))]
    weights, grant, count = snapshot(), Grant("benchmark", 0, 0, 0, 0, None), 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < MEASURE_SECONDS / 4:
        message = from_frames(received)
        assert isinstance(message, Trajectory)
        message.check(experiment, WORKLOAD.spaces)
        to_frames(grant)
        to_frames(weights)
        count += 2
    return elapsed / count


def measured_rate(schedule: str, actors: int, _: int) -> float:
    """Env-steps per second of a run, once its speed is steady."""
    iterations = FIRST_ITERATIONS + 3 + min(actors, LANES)  # Fast runs get more iterations than slow runs.
    flags = f"--env {ENV} --env-kwargs seconds={STEP_SECONDS} --schedule {schedule} --num-envs {LANES * LANE_SIZE}"
    flags += f" --lane-size {LANE_SIZE} --rollout-length {ROLLOUT_LENGTH} --minibatches {MINIBATCHES} --epochs {EPOCHS}"
    flags += f" --hidden-sizes {WORKLOAD.hidden} {WORKLOAD.hidden} --learner-threads 1 --device cpu"
    flags += f" --actors {actors} --total-steps {iterations * WORKLOAD.batch}"
    with finished_run([*flags.split(), *NOT_NORMALIZED]) as run_dir:
        return speeds_of(metrics_of(run_dir)[FIRST_ITERATIONS - 1 :], WORKLOAD.batch).run
