"""The lines of the user's code in which an error of an environment arose."""

import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

import gymnasium

from protocol.text import one_line, printable_lines
from protocol.trajectory import MAX_TRACEBACK

MAX_FRAMES = 10
# Calls in these folders lead to the user's code, and say nothing about it.
_OUTER = (Path(__file__).parent, Path(gymnasium.__file__).parent)
_LIBRARIES = {Path(path) for name, path in sysconfig.get_paths().items() if name.endswith("lib") or name == "stdlib"}


def users_lines(error: BaseException | None) -> str:
    """Where `error` arose, in the form of Python's tracebacks: file, line and function of each call, from the first
    that is neither ours nor gymnasium's, at most `MAX_TRACEBACK` characters. Empty for None."""
    lines = printable_lines("".join(traceback.format_list(_users_frames(error)[-MAX_FRAMES:])))
    return lines[-MAX_TRACEBACK:]


def users_place(error: BaseException | None) -> str:
    """The innermost of these calls in no library, as ` (FILE, line N, in FUNCTION)`; empty where there is none."""
    frames = _users_frames(error)
    own = [frame for frame in frames if not _is_in(frame.filename, _LIBRARIES)] or frames
    return " " + one_line(f"({own[-1].filename}, line {own[-1].lineno}, in {own[-1].name})") if own else ""


def _users_frames(error: BaseException | None) -> list[traceback.FrameSummary]:
    try:
        frames = traceback.extract_tb(None if error is None else error.__traceback__)
    except Exception:  # The source is read by the loader of the user's module, which may be anything.
        return []
    outer = [_is_in(frame.filename, _OUTER) for frame in frames]
    return frames[outer.index(False) if False in outer else -1 :]


def _is_in(file: str, folders: Iterable[Path]) -> bool:
    return any(Path(file).is_relative_to(folder) for folder in folders)
