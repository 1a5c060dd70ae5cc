"""What holds for all tests, set before any of them imports NumPy."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from protocol.process import ONE_THREAD

os.environ.update(ONE_THREAD)  # as in every process of a run
os.environ["MLX_ENABLE_TF32"] = "0"  # likewise
_state = tempfile.TemporaryDirectory()  # for the secret with which runs are signed: the user's is not for tests
os.environ["XDG_STATE_HOME"] = _state.name
os.environ["STARTED_BY_TESTS"] = str(os.getpid())  # what every process that a test starts inherits

# No test depends on how fast the machine is: neither an example nor their making has a time to be done in.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """Let tests that use MLX in this process use its CPU, also where there is a GPU."""
    if "mlx.core" in sys.modules:
        from learner.device import use_device

        use_device("cpu")


@pytest.fixture(scope="session", autouse=True)
def no_process_outlives_the_tests() -> Iterator[None]:
    from launching import wait_for

    def left() -> list[psutil.Process]:
        processes = psutil.process_iter(["environ"])
        return [p for p in processes if (p.info["environ"] or {}).get("STARTED_BY_TESTS") == str(os.getpid())]

    yield
    wait_for(lambda: not left())  # what was orphaned may need a moment


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `SMALL`, for tests that leave it as it is."""
    from launching import SMALL, train  # NumPy comes with it

    run_dir = tmp_path_factory.mktemp("small") / "run"
    train(run_dir, "--in-process", *SMALL)
    return run_dir
