"""The dashboard: reading of run files, access control, and the page in a real browser."""

import http.client
import importlib.util
import json
import math
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from browsing import Page, browser, chromium
from gate import iterations
from launching import LAUNCH, SMALL, TIMEOUT, launch, metrics_of, running, train, wait_for

from dashboard.curves import LEAST_BLOCKS, MAX_BLOCKS, METRICS, Curves, extremes
from dashboard.reading import RunReader
from dashboard.runs import Runs
from dashboard.server import finite
from protocol.extras import how_to_install
from rundir.growing import GrowingFile

MISSING = [name for name in ("starlette", "uvicorn", "plotly") if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(MISSING), reason=f'{MISSING} missing: pip install -e ".[dashboard]"')
needs_browser = pytest.mark.skipif(
    bool(MISSING) or chromium() is None, reason="no Chromium here, or the extra `dashboard` is missing"
)
RETURN, SUCCESS = "rollout/episode_return_mean", "episode/is_success"
NOW = time.time()


@pytest.fixture(autouse=True)
def time_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the reading limit of half a second, which on a busy machine may be too short for the rows of a test."""
    monkeypatch.setattr("dashboard.runs.READING_SECONDS", 60.0)


@contextmanager
def served(*run_dirs: Path) -> Iterator[str]:
    """Run `launch.py dashboard RUN_DIRS`; yields its address, including the token."""
    arguments = [*LAUNCH, "dashboard", *map(str, run_dirs)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), process.communicate()
            yield line.split()[0]
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=TIMEOUT)
            assert errors == ""


class Visitor:
    """Sends requests unchanged, even requests that a browser or a library would reject."""

    def __init__(self, address: str) -> None:
        self.host, self.query = urlsplit(address).netloc, urlsplit(address).query
        self.cookie = ""

    def ask(self, target: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.host, timeout=TIMEOUT)
        connection.putrequest(method, target, skip_host=True)
        for name, value in ({"Host": self.host, "Cookie": self.cookie} | headers).items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        self.text = answer.read().decode()
        connection.close()
        return answer

    def enter(self) -> None:
        """Send the token, and keep the cookie from the answer."""
        answer = self.ask(f"/?{self.query}")
        assert (answer.status, answer.headers["Location"]) == (303, "/")
        self.cookie = answer.headers["Set-Cookie"].partition(";")[0]

    def data(self, question: str = "") -> dict[str, Any]:
        assert self.ask(f"/data?{question}").status == 200
        return json.loads(self.text)


@pytest.fixture(scope="module")
def visited(small_run: Path) -> Iterator[str]:
    with served(small_run) as address:
        yield address


def row(version: int, **metrics: Any) -> dict[str, Any]:
    return {"policy_version": version, "env_steps": 512 * version, "time/seconds": 0.5 * version, **metrics}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


def make_run(run_dir: Path, rows: list[dict[str, Any]], config: str = 'env = "CartPole-v1"\n') -> Path:
    run_dir.mkdir(parents=True)
    (run_dir / "config.toml").write_text(config)
    write_rows(run_dir / "metrics.jsonl", rows)
    return run_dir


def look(run: RunReader, cursor: str = "") -> dict[str, Any]:
    """All that there is of a run, or all after `cursor`."""
    assert run.refresh(math.inf)
    shown = run.since(cursor, [*METRICS, SUCCESS], MAX_BLOCKS, True)
    assert shown is not None
    return shown


# Reading


def test_half_a_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    file = GrowingFile(path)
    assert list(file.read(pytest.fail)) == []
    path.write_text('{"a": 1}\n{"a": ')
    assert list(file.read(pytest.fail)) == [{"a": 1}]
    with open(path, "a") as grown:
        grown.write('2}\nnot JSON\n[3]\n{"a": 4}\n')
    assert list(file.read(pytest.fail)) == [{"a": 2}, {"a": 4}]
    assert list(file.read(pytest.fail)) == []


@pytest.mark.parametrize("replace", [True, False])
def test_a_file_that_was_replaced_or_cut_is_read_from_its_beginning(tmp_path: Path, replace: bool) -> None:
    path, forgotten = tmp_path / "rows.jsonl", []
    write_rows(path, [row(1), row(2), row(3)])
    file = GrowingFile(path)
    assert len(list(file.read(pytest.fail))) == 3
    target = tmp_path / "new" if replace else path
    write_rows(target, [row(1)])
    target.replace(path)
    assert list(file.read(lambda: forgotten.append(True))) == [row(1)]
    assert forgotten == [True]


def test_a_file_that_was_cut_and_grew_again_is_read_from_its_beginning(tmp_path: Path) -> None:
    path, forgotten = tmp_path / "rows.jsonl", []
    write_rows(path, [row(1), row(2)])
    file = GrowingFile(path)
    assert len(list(file.read(pytest.fail))) == 2
    write_rows(path, [row(1), row(2, **{RETURN: 7.25}), row(3)])
    assert list(file.read(lambda: forgotten.append(True))) == [row(1), row(2, **{RETURN: 7.25}), row(3)]
    assert forgotten == [True]


def test_rows_that_nobody_here_wrote_are_left_out(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", [row(1), row(2)])
    foreign = [b"\xff\n", b"null\n", b"[" * 100_000 + b"\n", b'{"policy_version": "x", "env_steps": 1}\n', b"{}\n"]
    foreign += [b'{"policy_version": 3, "env_steps": 4, "policy/lag_histogram": ["x"]}\n']
    foreign += [b'{"policy_version": 1, "episodes": [], "return_mean": {}}\n']
    for name in ("metrics", "evaluations", "events"):
        with open(run_dir / f"{name}.jsonl", "ab") as file:
            file.writelines(foreign)
    run = RunReader(run_dir)
    shown = look(run)
    assert shown["newest"]["policy_version"] == 3
    assert json.loads(json.dumps(shown["evaluations"]))


def test_a_run_without_most_of_its_files_is_shown_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "trai')
    (tmp_path / "summary.json").write_text("[]")
    (tmp_path / "config.toml").write_text("no = ")
    run = RunReader(tmp_path)
    shown = look(run)
    assert (shown["status"], shown["summary"], shown["settings"], shown["evaluations"]) == (None, None, {}, [])
    assert shown["newest"][RETURN] is None
    assert all(len(curve["values"]) == 0 for curve in shown["settled"].values())


def test_a_run_is_read_piece_by_piece(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", [row(1, **{RETURN: None}), row(2, **{RETURN: 9.5})])
    run = RunReader(run_dir)
    first = look(run)
    assert first["anew"]
    assert finite(first["settled"][RETURN]["values"]) == [None, 9.5]
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row(3, **{RETURN: 3})) + "\n")
        file.write(json.dumps(row(4, **{RETURN: 4.5})) + "\n")
    second = look(run, first["cursor"])
    assert not second["anew"]
    assert second["settled"][RETURN]["values"].tolist()[-1] == second["newest"][RETURN] == 4.5
    assert second["settled"][RETURN]["env_steps"].tolist()[-1] == 2048


def test_episode_metrics_are_read_as_soon_as_they_come(tmp_path: Path) -> None:
    success = "episode/is_success"
    run_dir = make_run(tmp_path / "run", [row(1, **{RETURN: None}), row(2, **{RETURN: 9.5})])
    run = RunReader(run_dir)
    first = look(run)
    assert success not in first["settled"]
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row(3, **{RETURN: 3.0, success: 0.25})) + "\n")
    write_rows(
        run_dir / "evaluations.jsonl", [{"policy_version": 3, "env_steps": 1536, "return_mean": 1.0, success: 0.5}]
    )
    second = look(run, first["cursor"])
    assert finite(second["settled"][success]["values"]) == [0.25] and second["newest"][success] == 0.25
    assert second["evaluations"][0][success] == 0.5
    again = RunReader(run_dir)
    assert finite(look(again)["settled"][success]["values"]) == [None, None, 0.25]


def test_a_cursor_from_before_a_resume_gets_everything_anew(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", [row(n, **{RETURN: n}) for n in range(1, 6)])
    run = RunReader(run_dir)
    cursor = look(run)["cursor"]
    write_rows(tmp_path / "resumed", [row(n, **{RETURN: 10 * n}) for n in range(1, 9)])
    (tmp_path / "resumed").replace(run_dir / "metrics.jsonl")
    resumed = look(run, cursor)
    assert resumed["anew"]
    assert resumed["settled"][RETURN]["values"].tolist() == [10.0 * n for n in range(1, 9)]


@pytest.mark.parametrize("cursor", ["nonsense", "1.1.99999", "1.1.-1", "9.1.0", "1.1.", "1.1.²"])
def test_a_cursor_that_fits_nothing_gets_everything(tmp_path: Path, cursor: str) -> None:
    run = RunReader(make_run(tmp_path / "run", [row(1, **{RETURN: 3.0})]))
    assert look(run, cursor)["settled"][RETURN]["values"].tolist() == [3.0]


def test_the_pieces_of_a_growing_run_make_up_the_whole(tmp_path: Path) -> None:
    values = np.random.Generator(np.random.Philox(1)).normal(size=2 * MAX_BLOCKS + 600)
    values[1234] = 77.0
    run_dir = make_run(tmp_path / "run", [])
    run = RunReader(run_dir)
    cursor, points = "", []
    with open(run_dir / "metrics.jsonl", "a") as file:
        for index, value in enumerate(values, start=1):
            file.write(json.dumps(row(index, **{RETURN: value})) + "\n")
            if index % 97 == 0 or index == len(values):
                file.flush()
                piece = look(run, cursor)
                cursor = piece["cursor"]
                points = [] if piece["anew"] else points
                points += zip(*(piece["settled"][RETURN][name] for name in ("env_steps", "values")), strict=True)
                shown = [*points, *zip(*(piece["tail"][RETURN][n] for n in ("env_steps", "values")), strict=True)]
                assert len(shown) <= 2 * MAX_BLOCKS + 2
                assert shown == [(512.0 * (round(steps) // 512), values[round(steps) // 512 - 1]) for steps, _ in shown]
                assert max(value for _, value in shown) == values[:index].max()
                assert min(value for _, value in shown) == values[:index].min()
    every = look(RunReader(run_dir))
    assert points == list(zip(*(every["settled"][RETURN][name] for name in ("env_steps", "values")), strict=True))
    assert every["newest"][RETURN] == values[-1]


def test_blocks_keep_their_extremes_and_skip_what_is_unknown() -> None:
    nan = np.nan
    assert extremes(np.array([3.0, 1.0, 2.0, 5.0, nan, 4.0, 0.5]), 4).tolist() == [1, 3, 5, 6]
    assert extremes(np.array([1.0, nan, 2.0]), 1).tolist() == [0, 1, 2]
    assert extremes(np.array([]), 8).tolist() == []
    assert len(extremes(np.full(8, nan), 4)) == 2  # These points make a gap in the curve.


def test_evaluations_find_their_time_and_lags_are_summed(tmp_path: Path) -> None:
    rows = [row(n, **{"policy/lag_histogram": [n, 0, 2][: 1 + n]}) for n in (1, 2, 3)]
    run_dir = make_run(tmp_path / "run", rows)
    evaluations = [{"policy_version": n, "env_steps": 512 * n, "return_mean": 1.0 * n} for n in (2, 7)]
    write_rows(run_dir / "evaluations.jsonl", evaluations)
    shown = look(RunReader(run_dir))
    assert shown["lags"] == [6, 0, 4]
    assert finite([point["seconds"] for point in shown["evaluations"]]) == [1.0, None]


def test_a_run_among_others_tells_no_more_of_its_actors_than_is_shown(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", [row(1)])
    actors = [{"name": "0", "state": "working", "lanes": [0], "memory": 5}]
    (run_dir / "status.json").write_text(json.dumps({"state": "training", "actors": actors}))
    run = RunReader(run_dir)
    assert look(run)["status"]["actors"] == actors
    among_others = run.since("", [], MAX_BLOCKS, False)
    assert among_others is not None and among_others["status"]["actors"] == [{"memory": 5}]
    (run_dir / "status.json").write_text('{"state": "finished", "actors": [3]}')
    assert look(RunReader(run_dir))["status"]["actors"] == [3]


# Several runs


def ask(runs: Runs, known: dict[str, Any] | None = None, *, axis: str = "env_steps", view: str = "groups") -> Any:
    """What a page is told that knows an earlier answer."""
    cursors = [run and run["cursor"] for run in known["runs"]] if known else []
    groups = [group["cursor"] for group in known["groups"] or []] if known else []
    return finite(runs.since(cursors, groups, [RETURN], axis, view == "groups"))


def make_seeds(folder: Path) -> Path:
    """Two seeds, and a run of another learning rate, of which one run has twice the steps."""
    for name, seed, rate, slope, count in (("a/0", 0, 1, 1.0, 2), ("a/1", 1, 1, 3.0, 4), ("b/0", 0, 2, 5.0, 2)):
        config = f'env = "CartPole-v1"\nseed = {seed}\nlearning_rate = {rate}\ntotal_steps = {count}\n'
        make_run(folder / name, [row(n, **{RETURN: slope * n}) for n in range(1, count + 1)], config)
    return folder


def test_seeds_are_shown_as_their_mean(tmp_path: Path) -> None:
    folder = make_seeds(tmp_path / "sweep")
    evaluation = {"policy_version": 2, "env_steps": 1024, "return_mean": 7.0}
    write_rows(folder / "a" / "0" / "evaluations.jsonl", [evaluation])
    write_rows(folder / "a" / "1" / "evaluations.jsonl", [evaluation | {"return_mean": 9.0}])
    shown = ask(Runs([folder]))
    assert [(group["env"], group["label"], group["runs"]) for group in shown["groups"]] == [
        ("CartPole-v1", "learning rate 1", [0, 1]),
        ("CartPole-v1", "learning rate 2", [2]),
    ]
    mean = shown["groups"][0]["curves"][RETURN]
    assert (mean["x"][0], mean["x"][-1]) == (512, 2048)
    assert (mean["values"][0], mean["low"][0], mean["high"][0]) == (2, 1, 3)
    assert mean["values"][-1] == mean["low"][-1] == 12  # The other seed has not come so far.
    assert mean["evaluations"] == {"x": [1024], "values": [8]}
    assert [run["settled"] for run in shown["runs"]] == [{}] * 3
    assert ask(Runs([folder]), axis="seconds")["groups"][0]["curves"][RETURN]["x"][-1] == 2.0


def test_what_the_page_knows_is_not_sent_again(tmp_path: Path) -> None:
    folder = make_seeds(tmp_path / "sweep")
    runs = Runs([folder])
    first = ask(runs)
    again = ask(runs, first)
    assert again["runs"] == [None] * 3 and not any("curves" in group for group in again["groups"])
    with open(folder / "b" / "0" / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row(3, **{RETURN: 15.0})) + "\n")
    grown = ask(runs, first)
    assert [run is not None for run in grown["runs"]] == [False, False, True]
    assert ["curves" in group for group in grown["groups"]] == [False, True]
    assert "settings" not in grown["runs"][2]  # The page has them.


def test_single_runs_have_their_own_curves(tmp_path: Path) -> None:
    shown = ask(Runs([make_seeds(tmp_path / "sweep")]), view="runs")
    assert shown["groups"] is None
    assert [run["settled"][RETURN]["values"] for run in shown["runs"]] == [[1, 2], [3, 6, 9, 12], [5, 10]]
    assert all(run["settled"].keys() == {RETURN} and "events" not in run for run in shown["runs"])
    assert shown["metrics"][RETURN] == "episode return"


def test_many_runs_have_fewer_points_each(tmp_path: Path) -> None:
    for seed in range(20):
        rows = [row(n, **{RETURN: 1.0 * n}) for n in range(1, 301)]
        make_run(tmp_path / f"seed-{seed}", rows, f"seed = {seed}\n")
    shown = ask(Runs([tmp_path]), view="runs")
    drawn = [len(run["settled"][RETURN]["values"]) + len(run["tail"][RETURN]["values"]) for run in shown["runs"]]
    assert len(drawn) == 20 and max(drawn) <= 2 * LEAST_BLOCKS + 2


def test_a_run_that_appears_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboard.runs.WATCH_SECONDS", 0.0)
    runs = Runs([tmp_path / "sweep"])
    assert ask(runs)["runs"] == []
    make_run(tmp_path / "sweep" / "b" / "seed-0", [row(1)])
    first = wait_for(lambda: (found := ask(runs))["runs"] and found)
    assert first["runs"][0]["name"] == "seed-0" and first["groups"] is None
    make_run(tmp_path / "sweep" / "a" / "seed-0", [row(1)])
    names = wait_for(lambda: len(found := ask(runs)["runs"]) == 2 and [run["name"] for run in found])
    assert names == ["b/seed-0", "a/seed-0"]  # The place of the first is the same.


def test_foreign_settings_are_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [row(1)], "env = [1]\nseed = 0\n")
    make_run(tmp_path / "b", [row(1)], "no = ")
    assert [group["env"] for group in ask(Runs([tmp_path]))["groups"]] == ["[1]", ""]


def test_what_json_cannot_hold_becomes_null() -> None:
    assert finite({"a": [np.nan, np.inf, 1.5], "b": np.array([np.nan, 2.0]), "c": True}) == {
        "a": [None, None, 1.5],
        "b": [None, 2.0],
        "c": True,
    }


def test_a_hundred_thousand_iterations_leave_a_few_thousand_points() -> None:
    curves = Curves()
    for n in range(100_000):
        curves.append(row(n, **{RETURN: float(n)}))
    points = curves.points(0, len(curves), curves.stride(MAX_BLOCKS), METRICS)
    assert points.keys() == set(METRICS)
    assert 1000 <= len(points[RETURN]["values"]) <= 2 * MAX_BLOCKS
    assert points[RETURN]["values"][-1] == 99_999


# Access control


@needs_extra
def test_without_the_token_nothing_is_shown(visited: str) -> None:
    visitor = Visitor(visited)
    port = urlsplit(visited).port
    for target in ("/", "/data", "/page.js", "/plotly.js", "/?token=", "/?token=%C3%A9", "/?token=guess", "/nowhere"):
        for cookie in ("", f"dashboard-{port}=guess", f"dashboard-{port}=", f"dashboard-{port}=\u00e9"):
            visitor.cookie = cookie
            assert visitor.ask(target).status == 403, (target, cookie)
            assert visitor.text == "open the address that the terminal shows, token included\n"
    assert visitor.ask(f"/data?{visitor.query}").status == 403  # The token gives access only to the page.


@needs_extra
def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(visited: str) -> None:
    visitor = Visitor(visited)
    flags = {part.strip().lower() for part in visitor.ask(f"/?{visitor.query}").headers["Set-Cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= flags
    visitor.enter()
    assert visitor.ask("/").status == 200
    assert [run["name"] for run in visitor.data()["runs"]] == ["run"]


@needs_extra
@pytest.mark.parametrize("host", ["evil.example", "evil.example:PORT", "127.0.0.1", "127.0.0.1:1", "[::1]:PORT", ""])
def test_a_page_that_resolves_its_own_name_to_this_machine_gets_nothing(visited: str, host: str) -> None:
    visitor = Visitor(visited)
    visitor.enter()
    for target in ("/", "/data", f"/?{visitor.query}"):
        assert visitor.ask(target, Host=host.replace("PORT", str(urlsplit(visited).port))).status == 421


@needs_extra
def test_localhost_is_a_name_of_this_machine(visited: str) -> None:
    visitor = Visitor(visited)
    visitor.enter()
    assert visitor.ask("/", Host=f"localhost:{urlsplit(visited).port}").status == 200


@needs_extra
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(visited: str, method: str) -> None:
    visitor = Visitor(visited)
    visitor.enter()
    assert visitor.ask("/data", method).status == 405


@needs_extra
@pytest.mark.parametrize(
    "target",
    ["/../pyproject.toml", "/%2e%2e/server.py", "/..%2fserver.py", "/page/../../server.py", "//etc/passwd", "/page"],
)
def test_no_file_but_the_page_is_served(visited: str, target: str) -> None:
    visitor = Visitor(visited)
    visitor.enter()
    assert visitor.ask(target).status == 404


@needs_extra
def test_the_browser_is_told_to_load_nothing_from_elsewhere(visited: str) -> None:
    visitor = Visitor(visited)
    visitor.enter()
    for target in ("/", "/page.js", "/data", "/nowhere"):
        headers = visitor.ask(target).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; ")
        assert "frame-ancestors 'none'" in policy and "http" not in policy
        assert (headers["Referrer-Policy"], headers["X-Content-Type-Options"]) == ("no-referrer", "nosniff")
        assert (headers["Cache-Control"], headers["Cross-Origin-Resource-Policy"]) == ("no-store", "same-origin")


@needs_extra
def test_only_the_loopback_is_listened_on(visited: str) -> None:
    port = urlsplit(visited).port
    listening = [
        connection.laddr
        for child in psutil.Process().children()
        for connection in child.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    ]
    assert [address.ip for address in listening] == ["127.0.0.1"]


@needs_extra
def test_mistakes_get_a_line_each(small_run: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, expected in (
            ([], "name the directory of at least one run"),
            ([tmp_path], f"{tmp_path}: there is no run here"),
            ([small_run, "--port", 80], "--port must lie between 1024 and 65535"),
            ([small_run, "--port", port], f"port {port} of 127.0.0.1 cannot be had"),
        ):
            done = launch("dashboard", *arguments)
            assert done.returncode == 2
            assert expected in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_what_is_missing_is_named_before_a_run_begins(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as util; find = util.find_spec; sys.argv[0] = 'launch.py'\n"
        "found = {'starlette': True, 'uvicorn': True, 'plotly': None}\n"
        "util.find_spec = lambda name, *rest: found[name] if name in found else find(name, *rest)\n"
        f"import launch; sys.exit(launch.main(['--dashboard', '--run-dir', {str(tmp_path / 'run')!r}]))"
    )
    done = subprocess.run([LAUNCH[0], "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path.cwd())
    assert done.returncode == 2
    assert done.stderr == f"launch.py: the dashboard needs plotly; {how_to_install('dashboard')}\n"
    assert not (tmp_path / "run").exists()


# A run that serves the dashboard


def lines_of(process: subprocess.Popen[str]) -> list[str]:
    """The lines that a process prints, appended to the list in the background."""
    lines: list[str] = []

    def gather() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)

    threading.Thread(target=gather, daemon=True).start()
    return lines


def address_in(lines: list[str]) -> str | None:
    return next((line.split()[1] for line in lines if line.startswith("dashboard: http://127.0.0.1:")), None)


def dashboard_of(launcher: subprocess.Popen[str]) -> psutil.Process:
    (child,) = (c for c in psutil.Process(launcher.pid).children() if "dashboard" in c.cmdline())
    return child


LONG = [*SMALL, "--total-steps", 10_000_000, "--actors", 1, "--dashboard"]


@needs_extra
def test_a_run_serves_its_page_until_it_ends(tmp_path: Path) -> None:
    with running(tmp_path / "run", *LONG) as process:
        lines = lines_of(process)
        visitor = Visitor(wait_for(lambda: address_in(lines)))
        visitor.enter()
        wait_for(lambda: visitor.data()["runs"][0]["newest"]["policy_version"])
        child = dashboard_of(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=TIMEOUT) == 0
        assert not child.is_running()
        assert not any("warning" in line for line in lines)
        with pytest.raises(ConnectionRefusedError):
            visitor.ask("/")


@needs_extra
def test_a_dashboard_that_dies_takes_nothing_with_it(tmp_path: Path) -> None:
    with running(tmp_path / "run", *LONG) as process:
        lines = lines_of(process)
        wait_for(lambda: address_in(lines))
        dashboard_of(process).kill()
        wait_for(lambda: any("the dashboard has ended" in line and "training goes on" in line for line in lines))
        before = iterations(tmp_path / "run")
        wait_for(lambda: iterations(tmp_path / "run") > before + 3, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=TIMEOUT) == 0


@needs_extra
def test_the_dashboard_ends_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    with running(tmp_path / "run", *LONG) as process:
        lines = lines_of(process)
        wait_for(lambda: address_in(lines))
        children = psutil.Process(process.pid).children()
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=TIMEOUT)
        assert not alive


@needs_extra
def test_the_dashboard_does_not_change_the_weights(small_run: Path, tmp_path: Path) -> None:
    summary = train(tmp_path / "run", *SMALL, "--actors", 2, "--dashboard")
    assert summary["weights_digest"] == json.loads((small_run / "summary.json").read_text())["weights_digest"]


# In a browser

TRACES = "card.querySelector('.plot').data"
CHARTS = "[...document.querySelectorAll('article[data-metric]')]"
DRAWN = "document.querySelectorAll('.plot .main-svg').length > 0"


def curve_on(page: Page, metric: str, trace: int = 0) -> dict[str, list[float]]:
    plot = f"document.querySelector('article[data-metric=\"{metric}\"] .plot')"
    return page.evaluate(f"(({{x, y}}) => ({{x, y}}))({plot}.data[{trace}])")


def choose(page: Page, *metrics: str) -> None:
    """Have the page draw these metrics as well, by their words; all without any."""
    page.evaluate(
        f"for (const label of document.querySelectorAll('#metrics label')) if (!label.firstChild.checked &&"
        f" ({json.dumps(metrics)}.includes(label.textContent) || {len(metrics)} === 0)) label.firstChild.click()"
    )


def turn(page: Page, control: str, value: object) -> None:
    """Give a control of the page another value."""
    page.evaluate(
        f"{{ const one = document.getElementById('{control}'); one.value = {json.dumps(value)};"
        " for (const kind of ['input', 'change']) one.dispatchEvent(new Event(kind)) }"
    )


def newest_on(page: Page, metric: str) -> list[float]:
    values = f"document.querySelectorAll('article[data-metric=\"{metric}\"] .newest data')"
    return page.evaluate(f"[...{values}].map((one) => Number(one.value))")


def table_on(page: Page, name: str) -> list[list[str]]:
    rows = f"document.querySelectorAll('article.{name} tbody tr')"
    return page.evaluate(f"[...{rows}].map((row) => [...row.cells].map((cell) => cell.innerText.trim()))")


def colors_on(page: Page) -> list[str]:
    return page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
        " document.querySelector('.plot')._fullLayout.font.color]"
    )


@needs_browser
def test_the_page_shows_what_metrics_jsonl_holds(small_run: Path, visited: str, tmp_path: Path) -> None:
    rows = metrics_of(small_run)
    with browser(tmp_path) as page:
        page.open(visited)
        page.wait_for(DRAWN)
        assert page.evaluate(f"{CHARTS}.map((card) => card.dataset.metric)") == [RETURN]
        choose(page)
        page.wait_for(
            f"{CHARTS}.length === {len(METRICS) + 1} && {CHARTS}.every((card) => {TRACES}?.[0]?.x.length > 1)"
        )
        # The token is no longer in the address.
        assert page.evaluate("location.href") == f"http://{urlsplit(visited).netloc}/"
        for metric in METRICS:
            curve = curve_on(page, metric)
            assert curve["x"] == [one["env_steps"] for one in rows]
            assert curve["y"] == [one[metric] for one in rows]
            assert newest_on(page, metric) == [rows[-1][metric]]
        lags = page.evaluate(
            "document.querySelector('article[data-metric=\"policy/lag_mean\"] .plot').data[0].customdata"
        )
        histograms = [one["policy/lag_histogram"] for one in rows]
        assert lags == [sum(h[lag] for h in histograms if lag < len(h)) for lag in range(max(map(len, histograms)))]
        shown = page.evaluate("document.body.innerText")
        assert "2,048 of 2,048" in shown and "finished" in shown and "CartPole-v1, seed 0, pipelined" in shown
        assert "nan" not in shown.lower() and "undefined" not in shown and "null" not in shown
        turn(page, "axis", "seconds")
        page.wait_for(f"{CHARTS}[0].querySelector('.plot').layout.xaxis.title.text === 'seconds of training'")
        assert curve_on(page, RETURN)["x"] == [one["time/seconds"] for one in rows]
        assert page.complaints == []
        assert {urlsplit(address).netloc for address in page.requests} == {urlsplit(visited).netloc}


@needs_browser
def test_what_is_written_while_one_looks_appears(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", [row(1, **{RETURN: 1.5, "train/entropy": None})])
    with served(run_dir) as address, browser(tmp_path / "profile") as page:
        page.open(address)
        page.wait_for(DRAWN)
        assert curve_on(page, RETURN)["y"] == [1.5]
        choose(page, "entropy")
        page.wait_for("document.querySelector('article[data-metric=\"train/entropy\"]') !== null")
        assert "–" in page.evaluate(
            "document.querySelector('article[data-metric=\"train/entropy\"] .newest').innerText"
        )
        with open(run_dir / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row(2, **{RETURN: 2.25})) + "\n" + json.dumps(row(3, **{RETURN: 99.0}))[:20])
        status = {"time": time.time(), "state": "training", "env_steps": 1024, "total_steps": 4096}
        actor = {"name": "a0", "state": "working", "lanes": [0, 1], "env_steps": 1024, "restarts": 3, "memory": 2**20}
        (run_dir / "status.json").write_text(json.dumps(status | {"actors": [actor]}))
        write_rows(run_dir / "events.jsonl", [{"time": NOW, "event": "actor_lost", "text": "actor 0 <b>fell</b>"}])
        write_rows(run_dir / "evaluations.jsonl", [{"policy_version": 2, "env_steps": 1024, "return_mean": 7.5}])
        page.wait_for(f"document.querySelector('article[data-metric=\"{RETURN}\"] .newest data')?.value === '2.25'")
        page.wait_for("document.querySelectorAll('article.events tbody tr').length === 1")
        assert curve_on(page, RETURN) == {"x": [512, 1024], "y": [1.5, 2.25]}
        page.wait_for(f"document.querySelector('article[data-metric=\"{RETURN}\"] .plot').data.length === 2")
        assert curve_on(page, RETURN, 1) == {"x": [1024], "y": [7.5]}
        assert table_on(page, "actors") == [["a0", "working", "2", "1,024", "–", "–", "3", "1 MB", "–"]]
        assert [cells[:1] + cells[2:] for cells in table_on(page, "lanes")] == [
            ["0", "a0", "working"],
            ["1", "a0", "working"],
        ]
        assert table_on(page, "events")[0][1:] == ["actor lost", "actor 0 <b>fell</b>"]
        assert "1,024 of 4,096" in page.evaluate("document.body.innerText")
        assert page.complaints == []


@needs_browser
def test_episode_metrics_have_charts_of_their_own(tmp_path: Path) -> None:
    success, other = "episode/is_success", "episode/<b>fuel</b>"
    run_dir = make_run(tmp_path / "run", [row(1, **{RETURN: 1.5})])
    with served(run_dir) as address, browser(tmp_path / "profile") as page:
        page.open(address)
        page.wait_for(DRAWN)
        with open(run_dir / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row(2, **{RETURN: 2.0, success: 0.5, other: 3.0})) + "\n")
        write_rows(
            run_dir / "evaluations.jsonl", [{"policy_version": 2, "env_steps": 1024, "return_mean": 7.5, success: 1}]
        )
        page.wait_for("document.querySelector('#metrics').textContent.includes('success rate')")
        choose(page, "success rate", "<b>fuel</b>")
        page.wait_for(f"document.querySelector('article[data-metric=\"{success}\"] .plot')?.data?.length === 2")
        assert curve_on(page, success) == {"x": [512, 1024], "y": [None, 0.5]}
        assert curve_on(page, success, 1) == {"x": [1024], "y": [1]}
        titles = page.evaluate("[...document.querySelectorAll('#charts h2')].map((title) => title.innerText)")
        assert titles == ["Episode return", "Success rate", "<b>fuel</b>"], titles
        assert page.complaints == []


@needs_browser
def test_runs_are_laid_over_each_other_and_their_names_are_only_text(tmp_path: Path) -> None:
    names = ["<script>document.title = 'taken'<", "b<img src=x onerror=\"document.title='taken'\">"]
    paths = [
        make_run(tmp_path / names[0], [row(n, **{RETURN: 1.0 * n}) for n in (1, 2)], "seed = 0\n"),
        make_run(tmp_path / names[1], [row(n, **{RETURN: 9.0 * n}) for n in (1, 2, 3)], "seed = 1\n"),
    ]
    with served(*paths) as address, browser(tmp_path / "profile") as page:
        page.open(address)
        page.wait_for(DRAWN)
        assert page.evaluate("document.getElementById('legend').hidden")  # There is one mean.
        turn(page, "view", "runs")
        page.wait_for("document.querySelectorAll('#legend label').length === 2")
        assert curve_on(page, RETURN, 0)["y"] == [1, 2]
        assert curve_on(page, RETURN, 1)["y"] == [9, 18, 27]
        assert newest_on(page, RETURN) == [2, 27]
        legend = page.evaluate("[...document.querySelectorAll('#legend label')].map((one) => one.innerText.trim())")
        assert legend == names
        assert page.evaluate("document.title") == "2 runs"
        assert page.evaluate("document.querySelectorAll('img, b, body script').length") == 0
        plot = f"document.querySelector('article[data-metric=\"{RETURN}\"] .plot')"
        page.evaluate(f"Plotly.Fx.hover({plot}, [{{curveNumber: 0, pointNumber: 1}}])")
        assert names[0] in page.wait_for(f"{plot}.querySelector('.hoverlayer').textContent")
        page.evaluate("document.querySelector('#legend input').click()")
        assert curve_on(page, RETURN, 0)["y"] == [9, 18, 27]
        assert page.complaints == []


@needs_browser
def test_means_of_seeds_are_drawn_with_their_spread(tmp_path: Path) -> None:
    folder = make_seeds(tmp_path / "sweep")
    with served(folder) as address, browser(tmp_path / "profile") as page:
        page.open(address)
        page.wait_for(DRAWN)
        plot = f"document.querySelector('article[data-metric=\"{RETURN}\"] .plot')"
        mean = curve_on(page, RETURN, 0)
        assert (mean["x"][0], mean["x"][-1], mean["y"][0], mean["y"][-1]) == (512, 2048, 2, 12)
        assert page.evaluate(f"{plot}.data.filter((trace) => trace.fill === 'toself').length") == 1
        legend = page.evaluate("[...document.querySelectorAll('#legend label')].map((one) => one.innerText.trim())")
        assert [" ".join(entry.split()) for entry in legend] == ["learning rate 1 2 runs", "learning rate 2 b/0"]
        turn(page, "smooth", 101)
        page.wait_for(f"{plot}.data[0].y[0] > 2")
        page.evaluate("document.getElementById('log').click()")
        page.wait_for(f"{plot}.layout.yaxis.type === 'log'")
        assert table_on(page, "differences") == [["a/0", "0", "1", "2"], ["1", "1", "1", "4"], ["b/0", "0", "2", "2"]]
        assert table_on(page, "settings") == [
            ["seed", "0"],
            ["learning_rate", "1"],
            ["total_steps", "2"],
            ["env", "CartPole-v1"],
        ]
        make_run(folder / "c", [row(1, **{RETURN: 8.0})], 'env = "Acrobot-v1"\nlearning_rate = 3\n')
        page.wait_for(f"{CHARTS}.length === 2")
        assert page.evaluate("[...document.querySelectorAll('#charts h2')].map((title) => title.innerText)") == [
            "CartPole-v1: episode return",
            "Acrobot-v1: episode return",
        ]
        page.evaluate("document.querySelector('#legend input').click()")
        page.wait_for(f"{plot}.data.length === 1")
        assert page.complaints == []


@needs_browser
def test_light_and_dark_and_narrow_windows(visited: str, tmp_path: Path) -> None:
    with browser(tmp_path) as page:
        page.open(visited, width=400)
        page.wait_for(DRAWN)
        light = colors_on(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 400  # Nothing is wider than the window.
        page.colors("dark")
        dark = page.wait_for(f"document.querySelector('.plot')._fullLayout.font.color !== '{light[2]}'") and colors_on(
            page
        )
        assert all(one != other for one, other in zip(light, dark, strict=True))
        assert page.complaints == []


@needs_browser
def test_the_page_says_that_the_dashboard_has_ended(small_run: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as page:
        with served(small_run) as address:
            page.open(address)
            page.wait_for(DRAWN)
            assert page.evaluate("document.getElementById('banner').hidden")
        page.wait_for("!document.getElementById('banner').hidden")
        assert "The dashboard has ended" in page.evaluate("document.getElementById('banner').innerText")
        assert curve_on(page, RETURN)["y"]  # The curve is still shown.
