"""Whatever processes environments start, none outlives the one that steps them."""

from pathlib import Path

import psutil
import pytest
from offspring import end_a_run


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("session", "normal"),
        ("mp-fork", "in-process"),
        ("group", "int"),
        ("mp-spawn", "actor"),
        ("daemon", "launcher and actors"),
        ("fork", "all"),
        ("shell", "in-process kill"),
    ],
)
def test_no_process_that_an_environment_started_survives(tmp_path: Path, kind: str, end: str) -> None:
    left = end_a_run(tmp_path / "run", kind, end)
    for process in left:
        process.kill()
    assert not left


def test_an_environment_without_processes_has_no_keeper() -> None:
    from actors.environment import make_environment
    from protocol import offspring
    from protocol.experiment import Experiment

    before = psutil.Process().children()
    make_environment(Experiment()).close()
    assert offspring._keeper is None or before
    assert [child for child in psutil.Process().children() if "keeper.py" in " ".join(child.cmdline())] == [
        child for child in before if "keeper.py" in " ".join(child.cmdline())
    ]
