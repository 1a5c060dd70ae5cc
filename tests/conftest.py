"""Settings and fixtures of all tests; the environment variables are set before any test imports NumPy."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from protocol.process import ONE_THREAD

os.environ.update(ONE_THREAD)  # Every process of a run sets this.
os.environ["MLX_ENABLE_TF32"] = "0"  # Every process of a run sets this, too.
_state = tempfile.TemporaryDirectory()  # Tests sign runs with a secret in this folder, not with the user's secret.
os.environ["XDG_STATE_HOME"] = _state.name
os.environ["STARTED_BY_TESTS"] = str(os.getpid())  # Every process that a test starts inherits this.

# Tests must not depend on how fast the machine is, so no time limit holds for an example or for making examples.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """Select the CPU for tests that use MLX in this process, even on a machine with a GPU."""
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
    wait_for(lambda: not left())  # Orphaned processes may need a moment to end.


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `SMALL`, for tests that do not change it."""
    from launching import SMALL, train  # Imported here because it imports NumPy.

    run_dir = tmp_path_factory.mktemp("small") / "run"
    train(run_dir, "--in-process", *SMALL)
    return run_dir
