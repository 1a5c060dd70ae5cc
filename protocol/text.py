"""Text that somebody else has written, made fit to travel and to be shown."""

from typing import Any

MAX_TEXT = 500  # So many characters of an environment's or a library's words are kept.
MAX_DIFFERENCES = 8  # So many differences are named.


def printable(text: str) -> str:
    """`text` without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def one_line(text: object, limit: int = MAX_TEXT) -> str:
    """`text` on one line, at most `limit` characters long, without anything that a terminal would obey.

    Takes any object, such as an error, even one whose own text cannot be made.
    """
    try:
        said = str(text)
    except BaseException as error:  # an error of the user's may fail at this, too
        said = f"{type(text).__name__}, whose text cannot be made ({type(error).__name__})"
    line = printable(" ".join(said[: 4 * limit].split()))  # cut first: a text may be longer than is worth looking at
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def error_line(error: BaseException) -> str:
    """An error on one line, its type first."""
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def differences_in_words(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The items that differ, theirs and ours, in a length that can be read."""
    names = sorted(name for name in ours | theirs if theirs.get(name) != ours.get(name))[:MAX_DIFFERENCES]
    return ", ".join(f"{name!s:.200} {theirs.get(name)!s:.200} instead of {ours.get(name)!s:.200}" for name in names)
