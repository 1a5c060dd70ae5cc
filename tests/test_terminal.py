"""Terminal output: a live view that fits the terminal, plain lines, and few lines with --quiet."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import threading
from pathlib import Path
from typing import Any

import pytest
from gate import iterations
from launching import LAUNCH, SMALL, TIMEOUT, heed_hangups, launch, summary_of, wait_for
from test_launch import LONG
from test_status import Clock, facts, row, status_at

from supervisor.status import Happening, RunStatus
from supervisor.view import ASCII, UNICODE, draw
from supervisor.words import duration

SHAPES = [
    (80, 24),
    (120, 40),
    (200, 50),
    (40, 20),
    (20, 8),
    (1, 1),
    (60, 18),
    (61, 19),
    (116, 22),
    (300, 100),
    (90, 33),
]
TRAINING = {
    "policy_version": 7,
    "rollout/episode_length_mean": 34.5,
    "train/policy_loss": -0.0123,
    "train/value_loss": 0.5,
    "train/entropy": 0.625,
    "train/approx_kl": 0.0078,
    "train/clip_fraction": 0.125,
    "train/explained_variance": 0.875,
    "train/learning_rate": 0.001,
    "policy/lag_mean": 1.0,
}


def a_run(actors: int, title: str = "CartPole-v1, seed 0, pipelined: 8 actors over ipc") -> RunStatus:
    clock = Clock()
    status = status_at(clock)
    status.title = title
    for index in range(actors):
        status.actor_started(str(index), 0, 1)
    told = [facts(str(i), 1, lanes=(i,), env_steps=1000 * i) for i in range(actors)]
    status.begin_training()
    status.take_actors(told)
    for i in range(30):
        clock.now += 3
        status.take_row(row(100 * (i + 1), **TRAINING, **{"rollout/episode_return_mean": 10.0 * i}))
    return status


def shown(status: RunStatus, width: int, height: int) -> str:
    return "\n".join(line.plain for line in draw(status, width, height))


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
@pytest.mark.parametrize("actors", [0, 1, 8, 200])
def test_the_view_fits_every_terminal(actors: int, glyphs: Any) -> None:
    for title in ("short", "訓練" * 40):
        status = a_run(actors, title)
        name = "a-machine-whose-name-is-very-long-indeed-0123abcd"
        status.take_actors([facts(name, 1, lanes=tuple(range(0, 60, 2)))])
        status.happened(Happening(0.0, "warning", "long " * 100))
        for fresh in (RunStatus(title, 100), status):
            for width, height in SHAPES:
                lines = draw(fresh, width, height, glyphs)
                assert len(lines) <= height, (width, height)
                assert max(line.cell_len for line in lines) <= width, (width, height)
                if width >= 60 and height >= 18:
                    assert len(lines) == height and len({line.cell_len for line in lines}) == 1, (width, height)
                    # The frame is complete.
                    assert lines[-1].plain[0] == glyphs.corners[2] and lines[-1].plain[-1] == glyphs.corners[3]
                assert not any("\n" in line.plain for line in lines)


def test_where_a_terminal_knows_no_unicode_none_is_drawn() -> None:
    status = a_run(30)
    for width, height in SHAPES:
        assert all(line.plain.isascii() for line in draw(status, width, height, ASCII))


def test_what_is_shown_is_what_was_told() -> None:
    status = a_run(2)
    status.happened(Happening(0.0, "actor_lost", "actor 1 was killed by SIGKILL"))
    wide = shown(status, 120, 40)
    for text in (
        "CartPole-v1, seed 0", "training", "30%", "3,000 of 10,000", "3:30 left", "return 290.00", "0 to 290", "34.5",
        "1,000", "policy lag", "25%", "50%", "12%", "-0.0123", "0.625", "0.0078", "0.875", "0.001", "actors: 2 working",
        "actor 1 was killed by SIGKILL",
    ):  # fmt: skip
        assert text in wide, text
    for text in ("return 290.00", "3:30 left", "2 working", "30%", "waiting 25%"):
        assert text in shown(status, 40, 20), text


def test_episode_metrics_have_lines_and_the_success_rate_the_first() -> None:
    metrics = {f"episode/m{i} " + "long " * 9: i / 3 for i in range(9)} | {"episode/is_success": 0.855}
    status = a_run(2)
    status.take_row(row(3100, **TRAINING, **metrics, **{"rollout/episode_return_mean": 1.0}))
    for width, height in SHAPES:
        lines = draw(status, width, height)
        assert len(lines) <= height and max(line.cell_len for line in lines) <= width, (width, height)
    for width, height in ((120, 40), (80, 24), (40, 20)):
        text = shown(status, width, height)
        assert "success rate" in text and ("86%" in text or "85%" in text) and "return 1.00" in text, text
    assert "m2 long" in shown(status, 120, 40)


def test_what_is_not_known_is_a_dash() -> None:
    status = RunStatus("run", 100)
    status.actor_started("0", 1, 1)
    for width, height in ((80, 24), (40, 20)):
        text = shown(status, width, height)
        assert "– left" in text and "return –" in text and "nan" not in text and "None" not in text
    assert shown(status, 80, 24).count("–") >= 10


def test_the_curve_of_the_return_rises_with_it() -> None:
    text = shown(a_run(1), 40, 20).splitlines()
    (curve,) = [line for line in text if "█" in line]
    assert curve.strip() == "".join(sorted(curve.strip()))
    assert set(curve.strip()) == set("▁▂▃▄▅▆▇█")


def test_actors_in_trouble_come_first_where_not_all_fit() -> None:
    status = a_run(64)
    status.lose_actor("60")
    text = shown(status, 80, 24)
    rows = text.splitlines()
    first = next(i for i, line in enumerate(rows) if "steps/s acting" in line) + 1
    assert "60 " in rows[first] and "lost" in rows[first]
    listed = sum("working " in line and "actors:" not in line and "more:" not in line for line in rows)
    assert f"and {63 - listed} more: all working" in text
    assert "63 working, 1 lost" in text
    assert "more: " not in shown(status, 200, 60)
    assert "actor 60" in shown(status, 40, 20)


def test_a_time_is_told_in_hours_minutes_and_seconds() -> None:
    assert [duration(s) for s in (0.4, 59.6, 3599, 3600, 90_061)] == ["0:00", "1:00", "59:59", "1:00:00", "25:01:01"]


def test_quiet_prints_warnings_and_the_end_alone(tmp_path: Path) -> None:
    flags = ["--env", "tests.environments:Raise-v0", *SMALL, "--quiet"]
    done = launch("--run-dir", tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("warning: ") for line in lines)
    assert [line.split()[0] for line in lines if not line.startswith("warning: ")] == [
        "finished:",
        "weights",
        "evaluate",
    ]
    assert (tmp_path / "run" / "events.jsonl").exists() and (tmp_path / "run" / "status.json").exists()


class Tty:
    """A run in its own terminal, and everything that was written to the terminal."""

    def __init__(self, width: int, height: int, *flags: object) -> None:
        self.master, other = pty.openpty()
        self.written = b""
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.process = subprocess.Popen(
            [*LAUNCH, *map(str, flags)],
            stdin=other,
            stdout=other,
            stderr=other,
            env={k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")} | {"TERM": "xterm"},
            start_new_session=True,
            preexec_fn=heed_hangups,
        )
        os.close(other)
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """Read until the terminal is closed at either end."""
        while not self._closing.is_set():
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    data = os.read(self.master, 65536)
                except OSError:  # Linux reports in this way that the other end is closed.
                    return
                if not data:
                    return
                self.written += data

    def everything(self) -> bytes:
        """Everything that was written; waits until the run has ended."""
        self._reader.join(timeout=TIMEOUT)
        return self.written

    def hang_up(self) -> None:
        self._closing.set()
        self._reader.join()
        os.close(self.master)


ALTERNATE, BACK = b"\x1b[?1049h", b"\x1b[?1049l"


@pytest.mark.slow
def test_in_a_terminal_the_view_stands_and_what_was_said_stays(tmp_path: Path) -> None:
    tty = Tty(80, 24, "--run-dir", tmp_path / "run", "--actors", 2, *SMALL, "--total-steps", 512 * 40)
    with tty.process:
        assert tty.process.wait(timeout=TIMEOUT) == 0
    before, rest = tty.everything().split(ALTERNATE)
    tty.hang_up()
    during, after = rest.split(BACK)
    assert b"CartPole-v1, seed 0" in before
    for text in (b"where the time goes", b"actors: ", b"what happened", b"policy lag"):
        assert text in during, text
    kept = after.decode()
    assert kept.index("learning: ") < kept.index("finished: ") < kept.index("weights ")
    assert summary_of(tmp_path / "run")["weights_digest"] in kept
    assert "\x1b[?25h" in kept  # The cursor is visible again.


def test_a_terminal_that_is_closed_ends_the_run_with_all_saved(tmp_path: Path) -> None:
    tty = Tty(80, 24, "--run-dir", tmp_path / "run", "--actors", 1, *SMALL, *LONG)
    with tty.process:
        wait_for(lambda: iterations(tmp_path / "run") >= 3, tty.process)
        tty.hang_up()
        tty.process.send_signal(signal.SIGHUP)
        assert tty.process.wait(timeout=TIMEOUT) == 0
    assert summary_of(tmp_path / "run")["status"] == "stopped"
    assert '"ended"' in (tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1]
