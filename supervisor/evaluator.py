"""`python -m supervisor.evaluator --run-dir DIR`: evaluates what waits in DIR/evaluations, the oldest first, and ends.

It may be killed at any moment: what was not entered in evaluations.jsonl is evaluated again, and comes out the same.
"""

import argparse
import fcntl
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from actors.closing import end_if_stuck
from actors.episodes import Results, playing
from protocol.files import replace_file
from protocol.lifeline import SUCCESS, USER_ERROR, leave, run_child
from protocol.output import complain
from rundir.checkpoint import (
    Checkpoint,
    add_checkpoint,
    discard_checkpoint,
    list_checkpoints,
    load_checkpoint,
    policy_snapshot,
    remove_leftovers,
)
from rundir.config import RunConfig
from rundir.evaluations import best_of, read_results
from rundir.names import BEST, CONFIG, EVALUATIONS, PENDING

NICENESS = 10  # The learner and the actors come first.


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m supervisor.evaluator", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="directory of the run")
    parser.add_argument("--step-timeout", type=float, required=True, help="seconds without progress that are a hang")
    arguments = parser.parse_args()
    run_dir: Path = arguments.run_dir.absolute()  # An environment may change the directory.
    os.nice(NICENESS)

    def work() -> None:
        with open(run_dir / ".evaluator-lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # An evaluator whose launcher was killed may still be ending.
            evaluate_pending(run_dir, Watch(arguments.step_timeout))

    run_child("evaluator", work, on_word=lambda _: leave(SUCCESS))


class Watch:
    """Ends this process when an environment makes no progress, since no other process would notice."""

    def __init__(self, seconds: float) -> None:
        """`seconds` is the longest time that a construction, a reset or a step may take."""
        self._seconds = seconds
        self._last: float | None = None  # time.monotonic() of the last progress; None while no environment is at work.
        threading.Thread(target=self._look, daemon=True, name="watch").start()

    def progress(self) -> None:
        self._last = time.monotonic()

    def rest(self) -> None:
        """From now on, the environment is not at work."""
        self._last = None

    def _look(self) -> None:
        while True:
            time.sleep(min(1.0, self._seconds / 4))
            last = self._last
            if last is not None and time.monotonic() - last > self._seconds:
                text = f"the environment has made no progress for {self._seconds:g} s (--step-timeout)"
                complain(text)
                leave(USER_ERROR)  # The environment would hang again.


def evaluate_pending(run_dir: Path, watch: Watch) -> None:
    """Evaluate each waiting version, write the result to evaluations.jsonl, and keep the best version in best/."""
    config = RunConfig.load(run_dir / CONFIG)
    remove_leftovers(run_dir / BEST)
    while pending := list_checkpoints(run_dir / PENDING):
        path = pending[0]
        results = read_results(run_dir)
        if int(path.name) not in {result["policy_version"] for result in results}:
            checkpoint = load_checkpoint(path)
            episodes = config.training.eval_episodes
            snapshot = policy_snapshot(checkpoint)
            watch.progress()
            with playing(config.experiment, snapshot, episodes, progress=watch.progress) as scores:
                found = Results.of(scores)
                watch.rest()
                enter(run_dir, results, checkpoint, found, config)
                stuck = end_if_stuck(SUCCESS)  # The supervisor then starts another evaluator.
            stuck.cancel()
        discard_checkpoint(path)


def enter(
    run_dir: Path, results: list[dict[str, Any]], checkpoint: Checkpoint, found: Results, config: RunConfig
) -> None:
    """Write the results `found` for a checkpoint's policy to evaluations.jsonl, after the earlier `results`."""
    result = {
        "policy_version": checkpoint.policy_version,
        "env_steps": checkpoint.policy_version * config.experiment.env_steps_per_iteration,
        "episodes": len(found.returns),
        **found.statistics(),
        "returns": found.returns,
        "faults": len(found.faults),
        "first_fault": found.faults[0] if found.faults else None,
    }
    results = [*results, result]
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in results)
    if best_of(results, config.training.best_by) is result:
        kept = add_checkpoint(run_dir / BEST, checkpoint)
        for other in list_checkpoints(run_dir / BEST):
            if other != kept:
                discard_checkpoint(other)
    replace_file(run_dir / EVALUATIONS, text)  # After best/: a version in this file is not evaluated again.


if __name__ == "__main__":
    main()
