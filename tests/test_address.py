"""The folder of a run's socket: it is never shared with another run, and made again after its removal."""

import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor import address
from supervisor.address import LOCK, SocketFolder


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(address, "socket_parent", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def folder(parent: Path) -> Iterator[SocketFolder]:
    folder = SocketFolder()
    yield folder
    folder.remove()


def is_locked(folder: SocketFolder) -> bool:
    with open(folder.path / LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_launcher_whose_folder_another_took_before_it_was_locked_makes_a_new_one(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Path] = []
    flock = fcntl.flock

    def take_first(*arguments: Any) -> None:
        if not taken:
            taken.extend(parent.iterdir())
            shutil.rmtree(taken[0])
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", take_first)
    folder = SocketFolder()
    assert folder.path not in taken and is_locked(folder)
    folder.remove()


def test_a_folder_that_was_removed_is_made_again_and_is_as_much_its_runs_as_before(folder: SocketFolder) -> None:
    assert not folder.restore()
    shutil.rmtree(folder.path)
    assert folder.restore() and is_locked(folder)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert not folder.restore()
    SocketFolder().remove()  # A new `SocketFolder` removes abandoned folders.
    assert is_locked(folder)
    (folder.path / LOCK).unlink()
    assert folder.restore() and is_locked(folder)


def test_what_is_somebody_elses_is_not_taken_for_the_folder(folder: SocketFolder, parent: Path) -> None:
    shutil.rmtree(folder.path)
    (parent / "elsewhere").mkdir()
    folder.path.symlink_to(parent / "elsewhere")
    with pytest.raises(PermissionError, match="somebody else"):
        folder.restore()
    folder.path.unlink()
    assert folder.restore()
