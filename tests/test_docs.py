"""The documentation: its commands work as printed, in the order of each page, and its links exist."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from launching import LAUNCH, ROOT, run_python

PAGES = sorted((ROOT / "docs").glob("*.md"))
ALL = [ROOT / "README.md", ROOT / "examples" / "README.md", *PAGES]
SHORT = ["--total-steps", "2048"]  # Replaces an hour of training.
ELSEWHERE = {  # Commands that need another machine, a window or minutes, and the tests that run them.
    "dashboard": "test_dashboard.py",
    "keys": "test_remote.py",
    "--listen": "test_remote.py",
    "--cluster": "test_cluster.py",
}


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)


def named_in(*blocks: str) -> list[list[str]]:
    """The words after `python launch.py`, in any folder, of each line in shell blocks."""
    lines = [line for block in blocks for line in re.findall(r"^python \S*launch\.py(.*)", block, re.M)]
    return [shlex.split(line, comments=True) for line in lines]


def commands_of(page: Path) -> list[list[str]]:
    """The commands of a page that can be run here."""
    return [words for words in named_in(*blocks_of(page)) if not ELSEWHERE.keys() & set(words)]


def run(words: list[str], folder: Path) -> None:
    """Run a command and check that it works; training is shortened."""
    trains = words[:1] != ["--help"] and (not words or words[0].startswith("--"))
    short = SHORT if trains and not {"--config", "--resume"} & set(words) else []
    done = run_python(ROOT / "launch.py", *words, *short, cwd=folder, environ={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, (words, done.stdout, done.stderr)


def write_files_of(page: Path, folder: Path) -> None:
    """Write each block that begins with a file's name to this file."""
    for name, text in re.findall(r"```(?:python|toml)\n# (\S+\.(?:py|toml))\n(.*?)```", page.read_text(), re.DOTALL):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)], ids=lambda page: page.stem)
def test_the_commands_of_a_page_work_in_their_order(page: Path, tmp_path: Path) -> None:
    write_files_of(page, tmp_path)
    for words in commands_of(page):
        run(words, tmp_path)


@pytest.mark.slow
def test_what_people_do_next_works_after_the_printed_install(tmp_path: Path) -> None:
    """What the second block of the README needs, its own line installs; the first block needs nothing."""
    start, tests, plain, extras, promise = blocks_of(ROOT / "README.md")
    assert "launch.py --actors 8" in start and "pytest" in tests
    (named,) = re.findall(r'pip install -c constraints.txt -e "\.\[(.*)\]"', extras)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(named.split(",")) <= project["optional-dependencies"].keys()
    run(["--actors", "2"], tmp_path)
    assert len(named_in(plain)) == 5 and "pip install" not in plain
    for words in named_in(plain, promise):
        run(words, tmp_path)


def test_what_people_do_with_extras_works(tmp_path: Path) -> None:
    for package in ("Box2D", "matplotlib", "moviepy", "starlette", "tensorboard"):
        pytest.importorskip(package, reason=f"{package} comes with an extra")
    run([], tmp_path)
    *_, extras, _ = blocks_of(ROOT / "README.md")
    found = [words for words in named_in(extras) if not ELSEWHERE.keys() & set(words)]
    assert len(found) == 3
    for words in found:
        run(words, tmp_path)


@pytest.mark.slow
def test_reproducibility_ends_with_equal_weights_as_it_says(tmp_path: Path) -> None:
    (first, second, compare) = commands_of(ROOT / "docs/reproducibility.md")[:3]
    for words in ([*first, *SHORT], [*second, *SHORT], compare):
        done = subprocess.run([*LAUNCH, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "the weights are equal, bit for bit" in done.stdout  # pyright: ignore[reportPossiblyUnboundVariable]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_shows_on_the_site_as_it_is_written(page: Path) -> None:
    assert f" {page.name}\n" in (ROOT / "mkdocs.yml").read_text() and "\\|" not in page.read_text()


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_flag_and_command_named_exists(page: Path) -> None:
    inline = re.findall(r"`python launch\.py ([^`]+)`", page.read_text())
    from commands import COMMANDS, HELP
    from commands.completion import flags_of

    for words in [*named_in(*blocks_of(page)), *(shlex.split(line) for line in inline)]:
        command = words[0] if words and not words[0].startswith("--") else "train"
        if command.isupper():  # The placeholder FLAGS.
            continue
        assert command in COMMANDS, words
        flags = {word.partition("=")[0] for word in words if word.startswith("--")} - HELP
        assert flags <= set(flags_of(command)), words
