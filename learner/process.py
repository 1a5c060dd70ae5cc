"""Running a learner so that it always ends when asked: what a process and `--in-process` have in common."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from learner.config import RunConfig
from learner.device import prepare_device
from protocol.transport import LearnerSocket

PATIENCE = 2.5  # seconds a learner may take to stop by itself before it is finished from outside


def run_learner(
    config: RunConfig,
    run_dir: Path,
    address: str,
    num_actors: int,
    stop: threading.Event,
    report: Callable[[dict[str, Any]], None],
) -> None:
    """Train in this thread, which alone uses MLX; the last event reported is the summary.

    A step on the device cannot be interrupted, and the first may take half a minute where MLX has to compile its
    kernels. So a second thread ends the run from the last completed version, which is always on the host.
    """
    socket = LearnerSocket(address)
    device, notes = prepare_device(config.training.device, config.training.learner_threads)
    from learner.learner import Learner  # MLX is imported here, after what has to be loaded before it

    for note in notes:
        report({"event": "note", "text": note})
    learner = Learner(config, run_dir, socket, num_actors, device, stop.is_set, report)
    conclusion = threading.Lock()  # taken once, by whoever ends the run

    def conclude(status: str) -> None:
        if conclusion.acquire(blocking=False):
            report({"event": "summary", **learner.conclude(status)})

    def end_if_stuck() -> None:
        stop.wait()
        time.sleep(PATIENCE)
        conclude("stopped")

    threading.Thread(target=end_if_stuck, daemon=True, name="patience").start()
    status = "failed"
    try:
        status = learner.run()
    finally:
        conclude(status)
