"""The command line, grown from dataclasses; what tyro says of a mistake becomes one line, like every other mistake."""

import inspect
import io
import re
from contextlib import redirect_stderr
from typing import Any, TypeVar

import tyro

from protocol.errors import UserError

Command = TypeVar("Command")

_BOX = re.compile("[╭╮╰╯│]|─{2,}")
_RULE = re.compile(r"^[│\s]*─{3,}[│\s]*$", re.MULTILINE)


def parse(kind: type[Command], name: str, arguments: list[str], *, more_help: str = "", **options: Any) -> Command:
    """The `kind` that `arguments` describe, of the command `name`; `--help`, which tells the docstring of `kind` and
    then `more_help`, ends the process. Raises `UserError`."""
    about = "\n\n".join([inspect.cleandoc(kind.__doc__ or ""), more_help])
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(kind, prog=name, args=arguments, description=about, **options)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{_one_line(said.getvalue())} (`python {name} --help` lists everything)") from None


def _one_line(text: str) -> str:
    """What is wrong, and what may have been meant, from tyro's box of several paragraphs."""
    _, _, box = text.partition("\n")  # its first line is the title
    what, *more = (" ".join(_BOX.sub(" ", part).split()) for part in _RULE.split(box))
    what = what.partition(" Got errors:")[0].replace(" (required)", "")
    meant = next((part for part in more if part.startswith("Perhaps you meant:")), "")
    guess = re.search(r"--[a-z0-9-]+", meant)
    return what.removesuffix(".") + (f"; did you mean {guess[0]}?" if guess else "")
