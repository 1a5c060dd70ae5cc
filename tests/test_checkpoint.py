"""Checkpoints are complete or absent, even if writing is interrupted, and damage is always detected."""

import errno
import fcntl
import hashlib
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.codec import DTYPES
from protocol.errors import UserError
from rundir import checkpoint as module
from rundir.checkpoint import (
    ARRAYS,
    KEEP,
    MANIFEST,
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest_checkpoint,
    write_checkpoint,
)


def checkpoint(version: int, mean: float | None = 1.5) -> Checkpoint:
    arrays = {"weights": np.arange(12, dtype=np.float32).reshape(3, 4) + version, "empty": np.zeros((0, 2), np.int64)}
    return Checkpoint(version, arrays, {"episode_return_mean": mean, "nested": {"list": [1, 2.5, None, "text"]}})


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert (a.policy_version, a.facts) == (b.policy_version, b.facts)
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
        np.testing.assert_array_equal(b.arrays[name], array, strict=True)


def versions(directory: Path) -> list[int]:
    return [int(path.name) for path in list_checkpoints(directory)]


def no_warning(text: str) -> None:
    raise AssertionError(f"warned: {text}")


def newest(directory: Path) -> Checkpoint:
    loaded = load_newest_checkpoint(directory, no_warning)
    assert loaded is not None
    return loaded


def test_what_is_written_loads_equal(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "checkpoints", checkpoint(7))
    assert_same(load_checkpoint(path), checkpoint(7))
    assert_same(newest(tmp_path / "checkpoints"), checkpoint(7))


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)], ids=str)
def test_arrays_of_every_dtype_and_layout_load_equal(tmp_path: Path, shape: tuple[int, ...]) -> None:
    arrays = {}
    for name, dtype in DTYPES.items():
        array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
        arrays |= {f"{name} C": array, f"{name} F": np.asfortranarray(array), f"{name} T": array.T}
    saved = Checkpoint(1, arrays, {})
    assert_same(load_checkpoint(write_checkpoint(tmp_path, saved)), saved)


@settings(deadline=None, max_examples=10)
@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=5,
        ),
        max_size=4,
    )
)
def test_facts_load_equal(facts: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        saved = Checkpoint(1, {}, facts)
        assert_same(load_checkpoint(write_checkpoint(Path(directory), saved)), saved)


def test_a_checkpoint_is_safetensors_and_json_and_nothing_else(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, checkpoint(1))
    assert sorted(file.suffix for file in path.iterdir()) == [".json", ".safetensors"]
    text, _, digest = (path / MANIFEST).read_text().rstrip("\n").rpartition("\n")
    assert json.loads(text)["policy_version"] == 1 and len(bytes.fromhex(digest)) == 32
    assert {path.name for path in tmp_path.iterdir()} == {"00000001"}


@pytest.mark.parametrize("name", [ARRAYS, MANIFEST])
def test_any_changed_byte_is_noticed(tmp_path: Path, name: str) -> None:
    file = write_checkpoint(tmp_path, checkpoint(1)) / name
    original = file.read_bytes()
    for position in range(len(original)):
        damaged = bytearray(original)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError):
            load_checkpoint(file.parent)
    file.write_bytes(original)
    assert_same(load_checkpoint(file.parent), checkpoint(1))


@pytest.mark.parametrize("line_end", [b"\r\n", b"\r", b"\n\n"])
def test_changed_line_ends_of_the_manifest_are_noticed(tmp_path: Path, line_end: bytes) -> None:
    manifest = write_checkpoint(tmp_path, checkpoint(1)) / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b"\n", line_end))
    with pytest.raises(ValueError):
        load_checkpoint(manifest.parent)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", [ARRAYS, MANIFEST])
@pytest.mark.parametrize("damage", [cut, flip, empty, Path.unlink, become_a_pipe])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    for version in (1, 2, 3):
        write_checkpoint(tmp_path, checkpoint(version))
    for version in (3, 2):
        damage(tmp_path / f"{version:08d}" / name)
    warnings: list[str] = []
    loaded = load_newest_checkpoint(tmp_path, warnings.append)
    assert loaded is not None
    assert_same(loaded, checkpoint(1))
    assert len(warnings) == 2 and "00000003" in warnings[0] and "00000002" in warnings[1]
    damage(tmp_path / "00000001" / name)
    assert load_newest_checkpoint(tmp_path, warnings.append) is None


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it were only passed over, later checkpoints would lead to its removal."""
    write_checkpoint(tmp_path, checkpoint(1))
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", 99)
        write_checkpoint(tmp_path, checkpoint(2))
    with pytest.raises(UserError, match=f"00000002 has checkpoint format 99, and this release reads {module.FORMAT}"):
        load_newest_checkpoint(tmp_path, no_warning)


def test_without_checkpoints_there_is_none_to_load(tmp_path: Path) -> None:
    assert load_newest_checkpoint(tmp_path, no_warning) is None
    assert load_newest_checkpoint(tmp_path / "missing", no_warning) is None


@settings(deadline=None, max_examples=8)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=8, unique=True))
@example([-20, 0, -10, -11, -12, -13])
@example([0, -1, -2, -3, -4])
def test_the_newest_three_and_the_best_are_kept(returns: list[int]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        kept: list[tuple[float, int]] = []
        for version, mean in enumerate(returns):
            write_checkpoint(Path(directory), checkpoint(version, float(mean)))
            kept.append((float(mean), version))
            best = max(kept)
            kept = [one for one in kept if one in kept[-KEEP:] or one == best]
            assert versions(Path(directory)) == [version for _, version in kept]
    assert KEEP == 3


def test_a_checkpoint_without_a_return_is_worse_than_any_with_one(tmp_path: Path) -> None:
    for version, mean in enumerate([None, -500.0, None, -600.0, None, None]):
        write_checkpoint(tmp_path, checkpoint(version, mean))
    assert versions(tmp_path) == [1, 3, 4, 5]


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    for name in (".00000001.123", ".00000009.99999"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ARRAYS).write_bytes(b"half")
    assert load_newest_checkpoint(tmp_path, no_warning) is None
    write_checkpoint(tmp_path, checkpoint(2))
    assert [path.name for path in tmp_path.iterdir()] == ["00000002"]


def test_files_that_the_system_puts_there_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_bytes(b"Finder was here")
    assert_same(load_checkpoint(write_checkpoint(tmp_path, checkpoint(1))), checkpoint(1))
    assert_same(newest(tmp_path), checkpoint(1))


def test_a_version_written_again_replaces_the_older_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(1))
    write_checkpoint(tmp_path, checkpoint(2))
    again = Checkpoint(2, {"other": np.ones(3)}, {"episode_return_mean": None})
    write_checkpoint(tmp_path, again)
    assert_same(newest(tmp_path), again)
    assert versions(tmp_path) == [1, 2]


def test_facts_that_are_not_json_leave_nothing_behind(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(1))
    with pytest.raises(ValueError):
        write_checkpoint(tmp_path, checkpoint(2, math.nan))
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


@pytest.mark.parametrize(("function", "call"), [("replace_file", 0), ("replace_file", 1), ("sync_directory", 0)])
def test_a_full_disk_is_reported_and_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, call: int
) -> None:
    write_checkpoint(tmp_path, checkpoint(1))
    original, calls = getattr(module, function), itertools.count()

    def fail(path: Path, *data: bytes) -> None:
        if next(calls) < call:
            original(path, *data)
            return
        for half in data:
            path.write_bytes(half[: len(half) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, function, fail)
        with pytest.raises(OSError) as error:
            write_checkpoint(tmp_path, checkpoint(2))
    assert error.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    assert_same(newest(tmp_path), checkpoint(1))
    write_checkpoint(tmp_path, checkpoint(2))
    assert_same(newest(tmp_path), checkpoint(2))


def test_a_failing_sync_fails_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, checkpoint(1))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, checkpoint(2))
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_then_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []

    def noted(original: Callable[..., Any], note: Callable[..., object]) -> Callable[..., Any]:
        def operation(*arguments: Any) -> Any:
            events.append(note(*arguments))
            return original(*arguments)

        return operation

    def file(descriptor: int, *_: object) -> tuple[int, int]:
        status = os.fstat(descriptor)
        return status.st_ino, status.st_size

    monkeypatch.setattr(os, "fsync", noted(os.fsync, file))
    monkeypatch.setattr(fcntl, "fcntl", noted(fcntl.fcntl, file))
    monkeypatch.setattr(os, "rename", noted(os.rename, lambda *_: "rename"))
    path = write_checkpoint(tmp_path, checkpoint(1))
    synced = {
        name: (one.stat().st_ino, one.stat().st_size)
        for name, one in {"arrays": path / ARRAYS, "manifest": path / MANIFEST, "itself": path, "all": tmp_path}.items()
    }
    assert set(events[: events.index("rename")]) == {synced["arrays"], synced["manifest"], synced["itself"]}
    assert events[events.index("rename") + 1 :] == [synced["all"]]


class Killed(BaseException):
    """Stands for SIGKILL: no handler in the writer catches it."""


def write_and_die(directory: Path, saved: Checkpoint, survived: int) -> bool:
    """Write `saved`, but stop after `survived` file system operations; returns whether everything was written."""
    left = [survived]

    def mortal(original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return original(*arguments, **options)

        return operation

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "fsync"):
            patch.setattr(os, name, mortal(getattr(os, name)))
        try:
            write_checkpoint(directory, saved)
        except Killed:
            return False
        return True


@pytest.mark.parametrize("version", [4, 5], ids=["an equal version", "a new version"])
def test_a_writer_killed_between_any_two_operations_leaves_only_whole_checkpoints(tmp_path: Path, version: int) -> None:
    for earlier in range(5):
        write_checkpoint(tmp_path / "before", checkpoint(earlier, 0.0 if earlier else 9.0))
    for survived in itertools.count():
        directory = shutil.copytree(tmp_path / "before", tmp_path / str(survived))
        finished = write_and_die(directory, checkpoint(version, 10.0), survived)
        for path in list_checkpoints(directory):
            assert load_checkpoint(path).policy_version == int(path.name), f"killed after {survived} operations"
        assert newest(directory).policy_version >= (version if finished else version - 1)
        write_checkpoint(directory, checkpoint(6, 11.0))
        assert versions(directory)[-1] == 6 and len(versions(directory)) == KEEP
        assert len(list(directory.iterdir())) == KEEP
        if finished:
            assert survived > 8
            break


SAVE_IN_A_LOOP = """
import itertools, sys
from pathlib import Path
import numpy as np
from rundir.checkpoint import Checkpoint, write_checkpoint

for version in itertools.count(int(sys.argv[2])):
    arrays = {"weights": np.full(50_000, version, np.float32)}
    write_checkpoint(Path(sys.argv[1]), Checkpoint(version, arrays, {"episode_return_mean": float(version % 7)}))
    print(version, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    start = 1
    for _ in range(10):
        command = [sys.executable, "-c", SAVE_IN_A_LOOP, str(directory), str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent, text=True) as writer:
            assert writer.stdout is not None
            assert int(writer.stdout.readline()) == start
            time.sleep(random.uniform(0, 0.05))
            writer.kill()
            saved = [start, *map(int, writer.stdout.read().splitlines())]
        loaded = {path.name: load_checkpoint(path) for path in list_checkpoints(directory)}
        for name, one in loaded.items():
            assert one.policy_version == int(name)
            np.testing.assert_array_equal(one.arrays["weights"], np.full(50_000, int(name), np.float32))
        newest_version = newest(directory).policy_version
        assert saved[-1] <= newest_version <= saved[-1] + 1
        start = newest_version + 1


def forged(path: Path, manifest: object, arrays: bytes) -> None:
    """Write a checkpoint as a stranger could, with valid checksums."""
    path.mkdir(parents=True)
    (path / ARRAYS).write_bytes(arrays)
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    (path / MANIFEST).write_text(f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")


@pytest.mark.parametrize(
    ("changes", "arrays"),
    [
        ({}, b"not safetensors"),
        ({}, (2**62).to_bytes(8, "little")),
        ({"facts": 1}, b""),
        ({"policy_version": "../../elsewhere"}, b""),
        ({"sha256": []}, b""),
        ([], b""),
        ("[" * 100_000, b""),
    ],
    ids=str,
)
def test_a_checkpoint_that_a_stranger_wrote_is_passed_over(tmp_path: Path, changes: Any, arrays: bytes) -> None:
    sums = {ARRAYS: hashlib.sha256(arrays).hexdigest()}
    manifest = {"format": module.FORMAT, "policy_version": 9, "sha256": sums, "facts": {}}
    forged(tmp_path / "00000009", manifest | changes if isinstance(changes, dict) else changes, arrays)
    warnings: list[str] = []
    assert load_newest_checkpoint(tmp_path, warnings.append) is None
    assert len(warnings) == 1


def make(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_checkpoints_elsewhere_are_neither_read_nor_removed(tmp_path: Path) -> None:
    for version in range(6):
        write_checkpoint(make(tmp_path / "elsewhere" / str(version)), checkpoint(version))
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / f"{version:08d}").symlink_to(tmp_path / "elsewhere" / str(version) / f"{version:08d}")
    assert load_newest_checkpoint(tmp_path / "run", no_warning) is None
    write_checkpoint(tmp_path / "run", checkpoint(7))
    assert all(list((tmp_path / "elsewhere" / str(version)).iterdir()) for version in range(6))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(UserError, match="is a link"):
        load_newest_checkpoint(tmp_path / "link", no_warning)
