"""The window of finished episodes, and the metrics files, which a later process continues."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.metrics import EpisodeWindow, MetricsFile
from protocol.files import read_rows, row_of


def extend(window: EpisodeWindow, returns: range) -> None:
    window.extend(np.array(returns, np.float64), 2 * np.array(returns, np.int64))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def open_file(path: Path, policy_version: int = 0) -> MetricsFile:
    """Open a metrics file whose warnings fail the test."""
    return MetricsFile(path, policy_version, warn=pytest.fail)


def write(path: Path, policy_version: int, *versions: int, note: str = "first") -> None:
    file = open_file(path, policy_version)
    for version in versions:
        file.append({"policy_version": version, "note": note})


def test_an_empty_window_has_no_mean() -> None:
    window = EpisodeWindow()
    assert window.return_mean is None
    assert window.length_mean is None
    window.extend(np.zeros(0), np.zeros(0, np.int64))
    assert window.return_mean is None
    assert not window.full


def test_a_short_window_averages_what_there_is() -> None:
    window = EpisodeWindow()
    extend(window, range(1, 4))
    assert window.return_mean == 2
    assert window.length_mean == 4


def test_the_window_keeps_the_last_100_episodes() -> None:
    window = EpisodeWindow()
    extend(window, range(99))
    assert not window.full
    extend(window, range(99, 130))
    assert window.full
    assert list(window.returns) == list(range(30, 130))
    assert window.return_mean == sum(range(30, 130)) / 100
    assert window.length_mean == 2 * sum(range(30, 130)) / 100


def test_a_new_file_holds_one_row_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2)
    assert rows(path) == [{"policy_version": 1, "note": "first"}, {"policy_version": 2, "note": "first"}]


def test_a_row_can_be_read_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    file = open_file(tmp_path / "metrics.jsonl")
    file.append({"policy_version": 1})
    assert rows(tmp_path / "metrics.jsonl") == [{"policy_version": 1}]


def test_a_continued_file_replaces_the_rows_after_its_version(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2, 3, 4)
    write(path, 2, 3, note="second")
    assert [(row["policy_version"], row["note"]) for row in rows(path)] == [(1, "first"), (2, "first"), (3, "second")]


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2)
    whole = path.read_text()
    for length in range(1, len(whole.splitlines()[0])):
        path.write_text(whole + whole[:length])
        write(path, 2, 3)
        assert [row["policy_version"] for row in rows(path)] == [1, 2, 3]


def test_a_row_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    file = open_file(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        file.append({"policy_version": 1, "train/value_loss": float("nan")})
    assert rows(tmp_path / "metrics.jsonl") == []


def test_a_disk_that_refuses_is_reported_once_and_does_not_end_the_run(tmp_path: Path) -> None:
    warnings: list[str] = []
    path = tmp_path / "gone" / "metrics.jsonl"
    file = MetricsFile(path, 0, warnings.append)
    file.append({"policy_version": 1})
    assert len(warnings) == 1
    assert str(path) in warnings[0]
    path.parent.mkdir()
    file.append({"policy_version": 2})
    assert rows(path) == [{"policy_version": 2}]
    assert len(warnings) == 1


def test_a_torn_line_in_the_middle_costs_no_other_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2)
    first, second = path.read_text().splitlines()
    path.write_text("\n".join([first, second[:5], second, ""]))
    write(path, 2, 3)
    assert [row["policy_version"] for row in rows(path)] == [1, 2, 3]


def table(path: Path) -> list[dict[str, str]]:
    with open(path.with_suffix(".csv"), newline="") as file:
        return list(csv.DictReader(file))


def test_a_number_that_comes_later_has_a_column_in_every_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0, warn=pytest.fail)
    file.append({"policy_version": 1, "a": 0.5})
    file.append({"policy_version": 2, "a": 1.5, "episode/b, c": 2.5, "list": [1]})
    file.append({"policy_version": 3, "a": 2.5, "episode/d": 3.5})
    file.append({"policy_version": 4})
    numbers = ("policy_version", "a", "episode/b, c", "episode/d")
    expected = [("1", "0.5", "", ""), ("2", "1.5", "2.5", ""), ("3", "2.5", "", "3.5"), ("4", "", "", "")]
    assert [tuple(row[name] for name in numbers) for row in table(path)] == expected
    before = path.with_suffix(".csv").read_text()
    MetricsFile(path, 3, warn=pytest.fail).append({"policy_version": 4})
    assert path.with_suffix(".csv").read_text() == before and len(rows(path)) == 4


def test_the_table_holds_the_scalars_in_the_order_of_the_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = open_file(path)
    row = {"policy_version": 1, "return": None, "lags": [1, 2], "samples": {"a": 1}, "loss": 0.1 + 0.2, "exact": True}
    file.append(row)
    file.append(row | {"policy_version": 2, "return": -1e-300, "exact": False})
    assert path.with_suffix(".csv").read_text() == (
        "policy_version,return,loss,exact\n1,,0.30000000000000004,true\n2,-1e-300,0.30000000000000004,false\n"
    )


def test_a_continued_table_has_the_rows_of_the_other_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2, 3, 4)
    write(path, 2, 3, note='a, "second"')
    assert table(path) == [{name: str(value) for name, value in row.items()} for row in rows(path)]
    assert len(table(path)) == 3


def test_a_table_that_is_missing_or_torn_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2)
    for damage in (b"policy_ver", None):
        path.with_suffix(".csv").unlink()
        if damage is not None:
            path.with_suffix(".csv").write_bytes(damage)
        write(path, 2)
        assert [row["policy_version"] for row in table(path)] == ["1", "2"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_row_that_one_file_refuses_is_in_neither(tmp_path: Path, suffix: str) -> None:
    warnings: list[str] = []
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0, warnings.append)
    file.append({"policy_version": 1})
    refusing = path.with_suffix(suffix)
    kept = refusing.rename(tmp_path / "kept")
    refusing.mkdir()  # Appending to a folder fails.
    file.append({"policy_version": 2})
    refusing.rmdir()
    kept.rename(refusing)
    assert len(warnings) == 1
    file.append({"policy_version": 3})
    assert [row["policy_version"] for row in rows(path)] == [1, 3]
    assert [row["policy_version"] for row in table(path)] == ["1", "3"]


FOREIGN = [
    b"\xff\xfe\n",
    b"null\n",
    b'"text"\n',
    b"[" * 100_000 + b"\n",
    b'{"policy_version": "x"}\n',
    b'{"policy_version": 1',
]
FOREIGN += [b'{"policy_version": NaN}\n', b'{"policy_version": 1' + b"0" * 5000 + b"}\n", b"{}\n"]


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda line: repr(line[:22]))
def test_what_is_no_row_ends_nothing(tmp_path: Path, foreign: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2)
    lines = path.read_bytes().splitlines(keepends=True)
    for place in range(3):
        path.write_bytes(b"".join([*lines[:place], foreign, *lines[place:]]))
        write(path, 2, 3)
        found = [row["policy_version"] for row in read_rows(path, ["policy_version"])]
        # An incomplete line also makes the line after it invalid, if there is one.
        assert found == [
            version for version in (1, 2, 3) if foreign.endswith(b"\n") or version != place + 1 or place == 2
        ]


def test_what_a_long_file_is_continued_with_does_not_grow_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, *range(1, 3000))
    before = path.read_bytes(), path.with_suffix(".csv").read_bytes()
    parsed: list[bytes] = []
    monkeypatch.setattr("learner.metrics.row_of", lambda line: parsed.append(line) or row_of(line))
    write(path, 2980)
    assert len(parsed) < 2000  # Only lines near the end are parsed.
    assert [row["policy_version"] for row in rows(path)] == list(range(1, 2981))
    assert [row["policy_version"] for row in table(path)] == [str(version) for version in range(1, 2981)]
    write(path, 2980, *range(2981, 3000))
    assert (path.read_bytes(), path.with_suffix(".csv").read_bytes()) == before
