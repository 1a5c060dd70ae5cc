"""The text of `--help`: the flags of a command with their sentences and defaults, from its dataclass."""

import dataclasses
import inspect
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docstring_parser
import tyro

INDENT = 28  # Columns before a flag's sentence.
WIDEST = 100  # Columns; longer lines are hard to read.
KINDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclasses.dataclass(frozen=True)
class Option:
    """A flag, or an argument without one."""

    name: str  # `--flag`, or what stands for the argument
    value: str  # what stands for its value; empty for one that takes none
    sentence: str
    default: str  # as it would be typed; empty where there is none
    positional: bool

    @property
    def shown(self) -> str:
        switch = f"--[no-]{self.name[2:]}" if not self.value and not self.positional else self.name
        return f"  {switch} {self.value}".rstrip()


def full_help(kind: type, name: str, default: Any = None, more: str = "") -> str:
    """All that a command takes, in groups; `default` is an instance of `kind` whose values are the defaults."""
    groups = list(_groups(kind, default))
    positional = " ".join(option.name for _, options in groups for option in options if option.positional)
    lines = [f"usage: python {name} {positional}".rstrip() + " [FLAG …]", "", *_about(kind, more)]
    for title, options in groups:
        lines += ["", *_wrapped(title)] if title else [""]
        for option in options:
            sentence = option.sentence + (f" (default: {option.default})" if option.default else "")
            lines += _in_columns(option.shown, sentence)
    return "\n".join(lines)


def short_help(kind: type, name: str, default: Any, sentences: dict[str, str], more: str = "") -> str:
    """Those flags of a command that have one of the `sentences`, a line each, in their order."""
    options = {option.name: option for _, group in _groups(kind, default) for option in group}
    lines = [f"usage: python {name} [FLAG …]", "", *_about(kind), ""]
    for flag, sentence in sentences.items():
        option = options[flag]
        left = f"  {flag} {option.value}".rstrip()
        if len(left) >= INDENT:  # Too many choices.
            left = f"  {flag} NAME" + (" …" if option.value.endswith("…") else "")
        lines.append(f"{left:<{INDENT}}{sentence}" + (f" ({option.default})" if option.default else ""))
    return "\n".join([*lines, "", *_wrapped(more)])


def _about(kind: type, more: str = "") -> list[str]:
    """A command's docstring and `more`, by paragraphs; examples, which are indented, keep their lines."""
    lines: list[str] = []
    for paragraph in filter(None, [*inspect.cleandoc(kind.__doc__ or "").split("\n\n"), more]):
        examples = "\n " in paragraph
        lines += ["", *(paragraph.splitlines() if examples else _wrapped(" ".join(paragraph.split())))]
    return lines[1:]


def _groups(kind: type, default: Any) -> Iterator[tuple[str, list[Option]]]:
    """(title, options) of a command's own fields, then of each dataclass in it."""
    hints = typing.get_type_hints(kind, include_extras=True)
    sentences = {param.arg_name: param.description for param in docstring_parser.parse_from_object(kind).params}
    own, nested = [], []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        value = _default_of(field) if default is None else getattr(default, field.name)
        part = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        if dataclasses.is_dataclass(part):
            title = " ".join(inspect.cleandoc(part.__doc__ or "").split())
            nested += [(title, options) for _, options in _groups(typing.cast(type, part), value)]
        else:
            own.append(_option(field.name, hint, " ".join((sentences.get(field.name) or "").split()), value))
    yield from [("", own)] if own else []
    yield from nested


def _option(name: str, hint: Any, sentence: str, value: Any) -> Option:
    marks = getattr(hint, "__metadata__", ())
    named = next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), None)
    plain = typing.get_args(hint)[0] if marks else hint
    stands_for = named or _stands_for(plain)
    if any(mark is tyro.conf.Positional for mark in marks):
        default = "" if value in (dataclasses.MISSING, None, ()) else _typed(value)
        return Option(stands_for, "", sentence, default, True)
    return Option(f"--{name.replace('_', '-')}", stands_for, sentence, _typed(value), False)


def _stands_for(hint: Any) -> str:
    """What stands for a value in the help, such as `N` for a whole number."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return ""
    if origin is typing.Literal:
        return "|".join(map(str, parts))
    if origin is tuple:
        return f"{_stands_for(parts[0])} …"
    if origin in (types.UnionType, typing.Union):
        return "|".join(_stands_for(part) for part in parts if part is not types.NoneType)
    return KINDS.get(hint, "VALUE")


def _typed(value: Any) -> str:
    """A default as one would type it; empty for none, and for a switch that is off."""
    if value is None or value is False or value is dataclasses.MISSING or value == ():
        return ""
    if value is True:
        return "on"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _default_of(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _in_columns(left: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, max(20, _width() - INDENT), break_on_hyphens=False, break_long_words=False)
    first = [f"{left:<{INDENT}}{lines.pop(0)}"] if lines and len(left) < INDENT else [left]
    return first + [" " * INDENT + line for line in lines]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _width(), break_on_hyphens=False, break_long_words=False)


def _width() -> int:
    return max(40, min(WIDEST, shutil.get_terminal_size().columns))
