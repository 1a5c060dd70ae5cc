"""Key files: their permissions, and that they are never overwritten."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protocol.errors import UserError
from protocol.keys import AllowedKeys, make_keys, read_actor, read_learner


def test_an_actors_key_names_the_learner_and_is_allowed(tmp_path: Path) -> None:
    (path,) = make_keys(tmp_path / "keys", ["actor"])
    key = read_actor(path)
    assert key.learner == read_learner(tmp_path / "keys").public
    allowed = AllowedKeys(tmp_path / "keys", pytest.fail)
    assert key.pair.public in allowed
    assert key.learner not in allowed


def test_nobody_else_may_read_what_is_made(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["actor"])
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "keys").iterdir()} == {0}


def test_nothing_is_overwritten_and_more_names_can_be_added(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    make_keys(directory, ["one"])
    before = {path: path.read_text() for path in directory.glob("*.key")}
    with pytest.raises(UserError, match="one already"):
        make_keys(directory, ["two", "one"])
    assert {path: path.read_text() for path in directory.glob("*.key")} == before
    make_keys(directory, ["two"])
    assert all(path.read_text() == text for path, text in before.items())
    assert len({read_actor(directory / f"{name}.key").learner for name in ("one", "two")}) == 1
    allowed = AllowedKeys(directory, pytest.fail)
    assert all(read_actor(directory / f"{name}.key").pair.public in allowed for name in ("one", "two"))


@pytest.mark.parametrize("name", ["learner", "../x", "a b", ""])
def test_a_name_that_cannot_be_a_file_of_its_own_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="--names"):
        make_keys(tmp_path / "keys", [name])


def test_a_key_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (path,) = make_keys(tmp_path / "keys", ["actor"])
    path.chmod(0o640)
    with pytest.raises(UserError, match=f"chmod 600 {path}"):
        read_actor(path)
    (tmp_path / "keys" / "learner.key").chmod(0o604)
    with pytest.raises(UserError, match="chmod 600"):
        read_learner(tmp_path / "keys")
    (tmp_path / "keys" / "allowed.toml").chmod(0o620)
    with pytest.raises(UserError, match="chmod go-w"):
        AllowedKeys(tmp_path / "keys", pytest.fail)


@pytest.mark.parametrize("text", ["", "public = 1", "nonsense", 'public = "short"\nsecret = ""\nlearner = ""'])
def test_a_file_that_holds_no_key_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UserError, match=str(path)):
        read_actor(path)


def test_a_line_removed_counts_at_once_and_half_a_file_changes_nothing(tmp_path: Path) -> None:
    paths = make_keys(tmp_path / "keys", ["one", "two"])
    one, two = (read_actor(path).pair.public for path in paths)
    warnings: list[str] = []
    allowed = AllowedKeys(tmp_path / "keys", warnings.append)
    file = tmp_path / "keys" / "allowed.toml"
    file.write_text(f'two = "{two}"\n')
    assert two in allowed and one not in allowed
    file.write_text('two = "')
    os.utime(file, (1, 1))
    assert two in allowed and one not in allowed
    assert len(warnings) == 1


def test_keys_made_at_the_same_time_are_all_secret(tmp_path: Path) -> None:
    """A umask would not work: it holds for the whole process, and the first thread to finish would reset it."""
    with ThreadPoolExecutor(8) as pool:
        made = [
            path for paths in pool.map(lambda i: make_keys(tmp_path / str(i), ["a", "b"]), range(40)) for path in paths
        ]
    assert len(made) == 80
    for path in tmp_path.rglob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert {path.parent.stat().st_mode & 0o777 for path in made} == {0o700}
