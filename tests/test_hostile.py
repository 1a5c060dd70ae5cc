"""Strangers at an open port change nothing: a short version of `python -m tests.hostile`."""

from pathlib import Path

from hostile import GROWTH, attack, undisturbed


def test_strangers_at_an_open_port_change_nothing(tmp_path: Path) -> None:
    outcome = attack(tmp_path / "run", messages=3000, connections=100, holders=3, seed=0)
    assert outcome.summary["weights_digest"] == undisturbed(tmp_path / "undisturbed", outcome)
    assert outcome.summary["refused"].keys() >= {"malformed", "wrong kind", "name", "handshake"}
    assert outcome.summary["samples"]["dropped"]["stale"] > 0
    assert outcome.growth < GROWTH
