"""Terminal output: a live view that fits the terminal, plain lines, and few lines with --quiet."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
from pathlib import Path
from typing import Any, TextIO

import pytest
from gate import iterations
from hypothesis import given
from hypothesis import strategies as st
from launching import LAUNCH, SMALL, TIMEOUT, heed_hangups, launch, summary_of, wait_for
from test_launch import LONG
from test_status import Clock, facts, row, status_at

from supervisor.chart import ASCII, LEAST_COLUMNS, LEAST_ROWS, UNICODE, chart
from supervisor.status import Happening, Point, RunStatus
from supervisor.terminal import SafeConsole
from supervisor.view import draw
from supervisor.words import duration

SHAPES = [
    (80, 24),
    (120, 40),
    (200, 50),
    (60, 20),
    (59, 40),
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
        "CartPole-v1, seed 0", "training", "30%", "3,000 of 10,000", "3:30 left", "290.00", "34.5",
        " 300 ┤", " 0 ┤", "╰0 ─", " 3000 │",
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
        assert "success rate" in text and ("86%" in text or "85%" in text) and re.search("return +1.00", text), text
    assert "m2 long" in shown(status, 120, 40)


def test_what_is_not_known_is_a_dash() -> None:
    status = RunStatus("run", 100)
    status.actor_started("0", 1, 1)
    for width, height in ((80, 24), (40, 20)):
        text = shown(status, width, height)
        assert "– left" in text and "nan" not in text and "None" not in text
        assert re.search("return +–", text), text
    assert shown(status, 80, 24).count("–") >= 10
    assert "no episode has ended yet" in shown(status, 80, 24)


def number_of(label: str) -> float:
    return float(label.rstrip("kMG")) * {"k": 1e3, "M": 1e6, "G": 1e9}.get(label[-1], 1.0)


def drawn(points: list[Point], end: float, width: int, rows: int) -> tuple[list[float], list[str], str]:
    """The numbers of the vertical axis from the top, the rows of the curve, and the horizontal axis."""
    lines = [line.plain for line in chart(points, end, width, rows, ASCII)]
    assert len(lines) == rows and {len(line) for line in lines} == {width}
    cells = [re.fullmatch(r" *(\S*) [|+](.*)", line) for line in lines]
    found = [cell for cell in cells if cell is not None]
    assert len(found) == rows, lines
    return [number_of(cell[1]) for cell in found if cell[1]], [cell[2] for cell in found[:-1]], found[-1][2]


def test_the_curve_of_the_return_rises_with_it_from_the_beginning_until_now() -> None:
    points: list[Point] = [(1000.0 * i, 10.0 * i) for i in range(60)]
    numbers, rows, axis = drawn(points, 59_000, 40, 10)
    assert (numbers[0], numbers[-1]) == (600, 0)
    assert re.fullmatch("0 -+ 20k -+ 40k -+ 59k", axis), axis
    columns = [min(y for y, row in enumerate(rows) if row[x] != " ") for x in range(len(rows[0]))]
    assert columns == sorted(columns, reverse=True) and len(set(columns)) == 9
    later = drawn([point for point in points if point[0] > 30_000], 59_000, 40, 10)[1]
    earlier = drawn([point for point in points if point[0] < 28_000], 59_000, 40, 10)[1]
    half = len(later[0]) // 2
    assert not any(row[: half - 1].strip() for row in later)  # Where no episode had ended there is no curve.
    assert not any(row[half + 1 :].strip() for row in earlier)


VALUES = st.floats(-1e9, 1e9) | st.floats(-1e-3, 1e-3) | st.integers(-1000, 1000).map(float)


@given(st.lists(VALUES, min_size=1, max_size=40), st.integers(LEAST_ROWS, 30), st.integers(60, 150))
def test_what_is_drawn_lies_between_round_numbers(values: list[float], rows: int, width: int) -> None:
    numbers, lines, _ = drawn([(100.0 * i, value) for i, value in enumerate(values)], 100.0 * len(values), width, rows)
    assert 2 <= len(numbers) <= rows and numbers == sorted(numbers, reverse=True)
    size = 1e-9 * max(map(abs, numbers))
    assert numbers[-1] - size <= min(values) and max(values) <= numbers[0] + size
    assert any(line.strip() for line in lines)


def test_a_chart_for_which_there_is_no_room_or_no_number_is_left_out() -> None:
    points: list[Point] = [(1.0, 5.0), (2.0, 6.0)]
    room = LEAST_COLUMNS + 5
    assert chart(points, 2, room, LEAST_ROWS, ASCII)
    for some, width, rows in ((points, room, LEAST_ROWS - 1), (points, room - 1, LEAST_ROWS), ([], room, LEAST_ROWS)):
        assert chart(some, 2, width, rows, ASCII) == []
    assert chart([(0.0, -1e308), (1.0, 1e308)], 1, 80, 24, ASCII) == []
    assert len(chart([(0.0, 3.0)], 0, 80, 24, ASCII)) == 24


def test_the_curve_gets_the_spare_rows() -> None:
    def high(width: int, height: int) -> int:
        return sum("┤" in line or "│" in line for line in shown(status, width, height).splitlines())

    status = a_run(2)
    for width in (40, 100):
        rows = [high(width, height) for height in (24, 40, 60, 80)]
        assert rows == sorted(set(rows)), width
    assert any(ord(c) >= 0x2800 for c in shown(status, 60, 20))


def test_nothing_is_cut_in_a_word_or_number() -> None:
    status = a_run(3)
    status.lose_actor("1")
    status.happened(Happening(0.0, "actor_lost", "actor 1 was killed by SIGKILL; it starts again at once"))
    told = "evaluation of version 120: return 463.70 ± 29.88 over 20 episodes, the best so far"
    status.happened(Happening(0.0, "evaluation", told, "eval 120: 463.70 ± 29.88, best"))
    words = {str(500 * i) for i in range(7)}  # At the axis.
    words |= {"eval", "120:", "29.88,", "best", "3,000", "10k", "env-steps/s", "1,000/s", "290.00"}
    for width, height in ((300, 100), (59, 100)):  # With boxes and without, where everything has room.
        words |= set(shown(status, width, height).split())
    whole = words | {word.rstrip(",;") for word in words}
    for width in range(1, 130, 3):
        for height in (*range(1, 30, 2), 40):
            text = shown(status, width, height)
            for word in text.split():
                known = word in whole or not word.isascii() or re.fullmatch(r"[0-9]{1,3}|[0-9]k|╰0", word)
                assert known, (word, width, height, text)
            assert "…" not in text or width < 30, (width, height, text)


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
    assert "more: " not in shown(status, 200, 90)
    assert "actor 60" in shown(status, 40, 20)


def test_events_that_come_again_and_again_do_not_push_out_others() -> None:
    status = a_run(1)
    status.happened(Happening(0.0, "warning", "mind this"))
    for actor in range(150):
        status.happened(Happening(0.0, "actor_restarted", f"actor {actor} was started again"))
        status.happened(Happening(0.0, "actor_joined", f"actor {actor} has joined"))
    for version in range(150):
        status.happened(Happening(0.0, "checkpoint", f"checkpoint {version:08} saved"))
        status.happened(Happening(0.0, "evaluation", f"evaluation of version {version}"))
    for width, height in ((120, 40), (80, 24), (40, 30)):
        text = shown(status, width, height)
        assert text.count("checkpoint 0") == text.count("checkpoint 00000149 saved") == 1, text
        assert text.index("mind this") < text.index("evaluation of version 149"), text
    assert "evaluation of version 148" in shown(status, 120, 40)


def test_a_long_event_is_wrapped_and_then_told_without_its_end() -> None:
    status = a_run(1)
    status.happened(Happening(0.0, "warning", f"{'first ' * 12}end; {'second ' * 12}stop; third"))
    text = shown(status, 120, 40)
    assert "stop; third" in text and text.count("second") == 12
    assert text.count("first") == 12
    text = shown(status, 80, 24)
    assert text.count("first") == 12 and "end" in text and "stop" in text
    text = shown(status, 60, 20)
    assert text.count("first") == 12 and "end" in text and "second" not in text


def test_no_view_covers_what_is_no_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def shows(file: TextIO, **environment: str) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr("supervisor.terminal.output", lambda: file)
            for name in ("JPY_PARENT_PID", "MPLBACKEND", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
                patch.delenv(name, raising=False)
            for name, value in {"TERM": "xterm", **environment}.items():
                patch.setenv(name, value)
            return SafeConsole().can_show_views

    master, other = pty.openpty()
    with open(other, "w") as terminal, open(tmp_path / "file", "w") as file:
        assert shows(terminal)
        assert shows(terminal, MPLBACKEND="agg")
        assert not shows(terminal, TERM="dumb")
        assert not shows(terminal, JPY_PARENT_PID="1")  # What a notebook's `!` starts sees a terminal.
        assert not shows(terminal, MPLBACKEND="module://matplotlib_inline.backend_inline")
        assert not shows(file) and not shows(file, FORCE_COLOR="1")
    os.close(master)


def test_a_time_is_told_in_hours_minutes_and_seconds() -> None:
    assert [duration(s) for s in (0.4, 59.6, 3599, 3600, 90_061)] == ["0:00", "1:00", "59:59", "1:00:00", "25:01:01"]


def test_quiet_prints_warnings_and_the_end_alone(tmp_path: Path) -> None:
    flags = ["--env", "tests.environments:Raise-v0", *SMALL, "--quiet"]
    done = launch("--run-dir", tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("warning: ") for line in lines)
    assert [line.split()[0] for line in lines if not line.startswith(("warning: ", "  "))] == [
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
