"""The command line, grown from dataclasses; what tyro says of a mistake becomes one line, like every other mistake."""

import dataclasses
import io
import re
import typing
from contextlib import redirect_stderr
from typing import TypeVar

import tyro

from commands import HELP
from commands.helpers.help_text import full_help, short_help
from protocol.errors import UserError
from protocol.lifeline import SUCCESS
from protocol.output import say

Command = TypeVar("Command")

_BOX = re.compile("[╭╮╰╯│]|─{2,}")
_FLAG = re.compile("-(-|[a-zA-Z])")
_RULE = re.compile(r"^[│\s]*─{3,}[│\s]*$", re.MULTILINE)


def parse(
    kind: type[Command],
    name: str,
    arguments: list[str],
    *,
    default: Command | None = None,
    short: dict[str, str] | None = None,
    more_help: str = "",
) -> Command:
    """The `kind` that `arguments` describe, of the command `name`; its defaults are those of `default`.

    `--help` ends the process. It tells all flags, or those that `short` has a sentence for and `--help-all` the others,
    and then `more_help`. Raises `UserError`.
    """
    if asked := HELP.intersection(arguments):
        if short is None or "--help-all" in asked:
            say(full_help(kind, name, default, more_help))
        else:
            say(short_help(kind, name, default, short, more_help))
        raise SystemExit(SUCCESS)
    arguments = _gathered(kind, arguments)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            if default is None:
                return tyro.cli(kind, prog=name, args=arguments)
            return tyro.cli(kind, prog=name, args=arguments, default=default)
    except SystemExit as end:
        if not end.code:
            raise
        every = "--help" if short is None else "--help-all"
        raise UserError(f"{_one_line(said.getvalue())} (`python {name} {every}` lists everything)") from None


def value_of(flag: str, arguments: list[str]) -> str | None:
    """The value that counts of those given to `flag`, the last; for what must be known before all is parsed."""
    found = None
    for i, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if name == flag:
            found = value if separator else next(iter(arguments[i + 1 :]), None)
    return found


def _gathered(kind: type, arguments: list[str]) -> list[str]:
    """`arguments`, where the texts given to one flag at several places stand together; otherwise the last would count
    alone, silently. Raises `UserError` where a flag that takes several numbers, which are one value, is repeated."""
    kinds = _tuples(kind)
    values: dict[str, list[str]] = {}
    gathered: list[str | list[str]] = []
    open_list: list[str] | None = None
    for argument in arguments:
        name, separator, value = argument.partition("=")
        flag = f"--{name[2:].replace('_', '-')}" if name.startswith("--") else ""
        if flag in kinds:
            if flag not in values:
                values[flag] = []
                gathered += [flag, values[flag]]
            elif kinds[flag] in (int, float):
                raise UserError(f"{flag} is given twice, and takes all its numbers at once")
            open_list = values[flag]
            open_list += [value] if separator else []
        elif _FLAG.match(argument) or open_list is None:
            gathered.append(argument)
            open_list = None
        else:
            open_list.append(argument)
    for flag, words in values.items():
        _refuse_commas(flag, words if kinds[flag] is not str else [])
    return [word for part in gathered for word in (part if isinstance(part, list) else [part])]


def _tuples(kind: type) -> dict[str, type]:
    """The flags that take several values, and what kind each of these is."""
    found: dict[str, type] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found |= _tuples(typing.cast(type, hint))
        for part in (hint, *typing.get_args(hint)):
            if typing.get_origin(part) is tuple:
                found[f"--{name.replace('_', '-')}"] = typing.get_args(part)[0]
    return found


def _refuse_commas(flag: str, words: list[str]) -> None:
    """Raise `UserError` on numbers or choices between which there are commas or brackets, as Python writes a list."""
    text = " ".join(words)
    if re.search(r"[\[\](),]", text):
        parts = " ".join(re.findall(r"[^\[\](),\s]+", text))
        raise UserError(f"{flag} takes its values with spaces between them: {flag} {parts}".rstrip())


def _one_line(text: str) -> str:
    """What is wrong, and what may have been meant, from tyro's box of several paragraphs."""
    _, _, box = text.partition("\n")  # The first line is the title.
    what, *more = (" ".join(_BOX.sub(" ", part).split()) for part in _RULE.split(box))
    what = what.partition(" Got errors:")[0].replace(" (required)", "")
    meant = next((part for part in more if part.startswith("Perhaps you meant:")), "")
    guess = re.search(r"--[a-z0-9-]+", meant)
    return what.removesuffix(".") + (f"; did you mean {guess[0]}?" if guess else "")
