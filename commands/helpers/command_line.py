"""The command line, grown from dataclasses; what tyro says of a mistake becomes one line, like every other mistake."""

import dataclasses
import inspect
import io
import re
import typing
from contextlib import redirect_stderr
from typing import Any, TypeVar

import tyro

from protocol.errors import UserError

Command = TypeVar("Command")

_BOX = re.compile("[╭╮╰╯│]|─{2,}")
_FLAG = re.compile("-(-|[a-zA-Z])")
_RULE = re.compile(r"^[│\s]*─{3,}[│\s]*$", re.MULTILINE)


def parse(kind: type[Command], name: str, arguments: list[str], *, more_help: str = "", **options: Any) -> Command:
    """The `kind` that `arguments` describe, of the command `name`; `--help`, which tells the docstring of `kind` and
    then `more_help`, ends the process. Raises `UserError`."""
    arguments = _gathered(kind, arguments)
    about = "\n\n".join([inspect.cleandoc(kind.__doc__ or ""), more_help])
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(kind, prog=name, args=arguments, description=about, **options)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{_one_line(said.getvalue())} (`python {name} --help` lists everything)") from None


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
            elif kinds[flag] is not str:
                raise UserError(f"{flag} is given twice, and takes all its numbers at once")
            open_list = values[flag]
            open_list += [value] if separator else []
        elif _FLAG.match(argument) or open_list is None:
            gathered.append(argument)
            open_list = None
        else:
            open_list.append(argument)
    return [word for part in gathered for word in (part if isinstance(part, list) else [part])]


def _tuples(kind: type) -> dict[str, type]:
    """The flags that take several values, and whether these are texts (`str`) or something else."""
    found: dict[str, type] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found |= _tuples(typing.cast(type, hint))
        for part in (hint, *typing.get_args(hint)):
            if typing.get_origin(part) is tuple:
                item = typing.get_args(part)[0]
                texts = item is str or typing.get_origin(item) is typing.Literal
                found[f"--{name.replace('_', '-')}"] = str if texts else item
    return found


def _one_line(text: str) -> str:
    """What is wrong, and what may have been meant, from tyro's box of several paragraphs."""
    _, _, box = text.partition("\n")  # The first line is the title.
    what, *more = (" ".join(_BOX.sub(" ", part).split()) for part in _RULE.split(box))
    what = what.partition(" Got errors:")[0].replace(" (required)", "")
    meant = next((part for part in more if part.startswith("Perhaps you meant:")), "")
    guess = re.search(r"--[a-z0-9-]+", meant)
    return what.removesuffix(".") + (f"; did you mean {guess[0]}?" if guess else "")
