"""Makes text from outside this project, such as an environment's errors, safe to send and to show."""

from typing import Any

MAX_TEXT = 500  # Most characters that are kept of a text from an environment or a library.
MAX_DIFFERENCES = 8  # Most differences that are named.


def printable(text: str) -> str:
    """`text` without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def printable_lines(text: str) -> str:
    """`text` with its line ends, and without any other control characters."""
    return "\n".join(map(printable, text.splitlines()))


def one_line(text: object, limit: int = MAX_TEXT) -> str:
    """`text` on one line, at most `limit` characters long, without control characters, which a terminal would obey.

    Takes any object, such as an error, even if its `str` raises.
    """
    try:
        said = str(text)
    except BaseException as error:  # `str` may raise for a user's own error.
        said = f"{type(text).__name__}, whose text cannot be made ({type(error).__name__})"
    line = printable(" ".join(said[: 4 * limit].split()))  # Cut first: a text may be very long.
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def error_line(error: BaseException) -> str:
    """An error on one line, its type first."""
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def counted(number: int, thing: str) -> str:
    """A number of things: `1 lane`, `2 lanes`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def differences_in_words(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The items that differ between `theirs` and `ours`, as a text short enough to read."""
    names = sorted(name for name in ours | theirs if theirs.get(name) != ours.get(name))[:MAX_DIFFERENCES]
    return ", ".join(f"{name!s:.200} {theirs.get(name)!s:.200} instead of {ours.get(name)!s:.200}" for name in names)
