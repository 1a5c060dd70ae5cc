"""Runs on two machines, joined by good and bad lines. `python -m tests.machines` does longer runs."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from gate import Gate
from launching import together, train
from line import Line, obstacle
from machines import EXPERIMENT, MOVED, Outcome, TwoMachines

OBSTACLE = obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=f"no network namespaces: {OBSTACLE}")

FAULTS = ["cut", "stop"]
SHORT: list[object] = [*EXPERIMENT, "--total-steps", 1024 * 20]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    return train(tmp_path_factory.mktemp("local") / "run", "--in-process", *SHORT)["weights_digest"]


@pytest.fixture
def line() -> Iterator[Line]:
    with Line() as line:
        yield line


@pytest.mark.slow
def test_two_machines_compute_what_one_does(tmp_path: Path, line: Line, local: str) -> None:
    outcome = TwoMachines(line, tmp_path, SHORT).run(actors=2)
    assert outcome.summary["weights_digest"] == local
    assert outcome.codes == [0, 0]
    assert all("the run is over" in said for said in outcome.said)
    assert line.carried > 100 and line.lost == 0


@pytest.mark.slow
def test_a_line_that_loses_and_delays_packets_changes_nothing(tmp_path: Path, local: str) -> None:
    with Line(loss=0.05, delay=0.01) as line:
        outcome = TwoMachines(line, tmp_path, SHORT).run(actors=2)
    assert outcome.summary["weights_digest"] == local
    assert outcome.codes == [0, 0]
    assert line.lost > 10


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Runs in which the only remote actor was lost and came back. They run at the same time, since they mostly wait."""

    def disturb(fault: str) -> Outcome:
        folder = tmp_path_factory.mktemp(fault)
        gate = Gate(folder / "run", 0)
        waits = {"local_actors": 1, "fault_seconds": 1.0, "step_timeout": 10.0}  # Longer than a process's start.
        with Line() as line:
            return TwoMachines(line, folder, [*SHORT, *gate.flags], gate=gate, **waits).run(actors=1, fault=fault)

    return dict(zip(FAULTS, together(*(partial(disturb, fault) for fault in FAULTS)), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_lanes_move_meanwhile_and_the_actor_comes_back(disturbed: dict[str, Outcome], local: str, fault: str) -> None:
    """This holds whether the line is cut or the actor sleeps."""
    outcome = disturbed[fault]
    assert outcome.meanwhile >= MOVED
    assert int(outcome.joins) >= 2
    assert outcome.codes == [0]
    assert outcome.summary["weights_digest"] == local
