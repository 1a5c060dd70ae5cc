"""Strangers at an open port change nothing: a short version of `python -m tests.hostile`."""

from pathlib import Path

from hostile import FLAGS, GROWTH, attack
from launching import train

STEPS = ["--total-steps", 512 * 120]


def test_strangers_at_an_open_port_change_nothing(tmp_path: Path) -> None:
    outcome = attack(tmp_path / "run", 3000, 100, 3, 0, *STEPS)
    undisturbed = train(tmp_path / "undisturbed", *FLAGS, *STEPS, "--in-process")
    assert outcome.summary["weights_digest"] == undisturbed["weights_digest"]
    assert outcome.summary["refused"].keys() >= {"malformed", "wrong kind", "name", "handshake"}
    assert outcome.summary["samples"]["dropped"]["stale"] > 0
    assert outcome.growth < GROWTH
