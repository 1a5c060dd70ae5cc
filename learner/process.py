"""Running a learner so that it always ends when asked: what a process and `--in-process` have in common."""

import threading
import time
from collections.abc import Callable

from learner.claim import claim
from learner.device import prepare_device
from learner.faults import EnvironmentsFailed
from learner.launcher import Launcher
from protocol.errors import UserError
from protocol.events import Note, Summary
from protocol.execution import Execution
from protocol.keys import LearnerKey
from protocol.text import error_line
from protocol.transport import LearnerSocket
from rundir.config import RunConfig

PATIENCE = 2.5  # A learner that was asked to stop has so many seconds. Then another thread finishes the run.


def run_learner(config: RunConfig, execution: Execution, launcher: Launcher, key: LearnerKey | None = None) -> None:
    """Train in this thread, which alone uses MLX.

    A step on the device cannot be interrupted, and the first may take half a minute where MLX has to compile its
    kernels. So a second thread ends the run from the last completed version, which is always on the host.
    """
    report, stop = launcher.report, launcher.stop
    # First: an orphaned learner still has the port of --listen.
    lock = claim(execution.run_dir, lambda text: report(Note(text)))
    socket = LearnerSocket(execution.address, execution.remote, launcher.warn, key)
    device, notes = prepare_device(config.training.device, config.training.learner_threads, config.training.tf32)
    from learner.learner import Learner  # MLX is imported here, after what has to be loaded before it

    for note in notes:
        report(Note(note))
    learner = Learner(config, execution, socket, device, launcher)
    conclusion = threading.Lock()  # taken once, by whoever ends the run

    def conclude(status: str, error: str | None = None, then: Callable[[], None] = lambda: None) -> None:
        if conclusion.acquire(blocking=False):
            summary = learner.conclude(status, error)
            then()
            report(Summary(summary))

    def end_if_stuck() -> None:
        stop.wait()
        time.sleep(PATIENCE)
        conclude("stopped")

    threading.Thread(target=end_if_stuck, daemon=True, name="patience").start()
    with lock:
        try:
            conclude(learner.run(), then=learner.dismiss_actors)  # a thread that is not ZeroMQ's must not do that
        except UserError:
            conclusion.acquire(blocking=False)  # Nobody concludes this run: training has not come far enough.
            raise  # It says what to do.
        except Exception as error:
            conclude("failed", str(error) if isinstance(error, EnvironmentsFailed) else error_line(error))
            raise
        finally:
            learner.dismiss_actors()
