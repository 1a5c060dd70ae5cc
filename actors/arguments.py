"""Read the arguments of environments and wrappers, which a command line gives as text."""

import ast
import importlib
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

from actors.interrupts import let_users_interrupt
from protocol.errors import UserError
from protocol.process import taken_names
from protocol.text import error_line, one_line

WORDS = {  # JSON, TOML and floats have these words; Python's own are known anyway.
    "true": True,
    "false": False,
    "null": None,
    "none": None,
    "nan": math.nan,
    "inf": math.inf,
}
# Alone, these are texts, since people call modes that. None, null and -inf are values.
NAMES_TOO = {"none", "nan", "inf"}
BRACKETS = {")": "(", "]": "[", "}": "{"}


def parse_env_kwargs(items: tuple[str, ...]) -> dict[str, Any]:
    """Keyword arguments from `name=value` each, as `parse_value` reads the values. Raises `UserError`."""
    kwargs: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--env-kwargs {one_line(item)} is not name=value")
        if name in kwargs:
            raise UserError(f"--env-kwargs gives {name} twice: the second time {one_line(item)}")
        try:
            kwargs[name] = parse_value(value)
        except ValueError as error:
            raise UserError(f"--env-kwargs {one_line(item)}: {error}") from None
    return kwargs


def parse_value(text: str) -> Any:
    """A Python or JSON literal, in which `true`, `null` and `-inf` are what they say, or else the text itself. Alone,
    `none`, `nan` and `inf` are texts.

    Raises `ValueError` on a text that looks like a literal which is damaged.
    """
    if text.strip() in NAMES_TOO:
        return text
    try:
        return _literal(_parse(text))
    except ValueError as error:
        if _looks_damaged(text):
            what = f"it is neither a literal ({error}) nor a plain text; quotes make a text, as in \"['a', 'b']\""
            raise ValueError(what) from None
        return text


def _parse(text: str) -> ast.expr:
    """The expression that `text` is. Raises `ValueError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of odd escapes in a path.
            return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(error.msg) from None
    except (MemoryError, RecursionError):
        raise ValueError("too deep") from None


def _literal(tree: ast.expr) -> Any:
    """The value of a literal. Raises `ValueError` on any other expression."""
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            parts = value if isinstance(value, list) else [value]
            known = [_constant(part) for part in parts]
            setattr(node, field, known if isinstance(value, list) else known[0])
    try:
        return ast.literal_eval(_constant(tree))
    except (TypeError, RecursionError, MemoryError) as error:  # such as a dict whose key is a list
        raise ValueError(str(error)) from None
    except ValueError:
        raise ValueError("a word or a formula is in it that is no value") from None


def _constant(node: Any) -> Any:
    """A name that is one of `WORDS` as its value; anything else as it is."""
    if isinstance(node, ast.Name) and node.id.lower() in WORDS:
        return ast.copy_location(ast.Constant(WORDS[node.id.lower()]), node)
    return node


def _looks_damaged(text: str) -> bool:
    """Whether a text that is no literal seems meant as one: its brackets or quotes do not match, or it begins so."""
    opened: list[str] = []
    for character in text:
        if character in BRACKETS.values():
            opened.append(character)
        elif character in BRACKETS and (not opened or opened.pop() != BRACKETS[character]):
            return True
    quotes = re.sub(r"(?<=\w)'(?=\w)", "", text)  # An apostrophe in a word is no quote.
    odd = any(quotes.count(quote) % 2 for quote in "'\"")
    return bool(opened) or odd or text.strip()[:1] in ("[", "(", "{", "'", '"')


def load_wrapper(text: str) -> tuple[Callable, dict[str, Any]]:
    """The wrapper class and its keyword arguments, from `module:Class` or `module:Class(name=value, …)`."""
    module, _, call = text.partition(":")
    try:
        name, kwargs = parse_call(call if "(" in call else f"{call}()")
        return getattr(importlib.import_module(module), name), kwargs
    except (ValueError, ImportError, AttributeError) as error:
        reason = one_line(error)
    except BaseException as error:  # whatever the user's module raises
        let_users_interrupt(error)
        reason = f"{module} raised {error_line(error)}"
    form = "module:Class or module:Class(name=value, …)"
    raise UserError(f"--wrapper {one_line(text)} is no {form}: {reason}{taken_names()}") from None


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """(name, keyword arguments) of a Python call whose arguments are literals; raises `ValueError` on anything else."""
    match _parse(text):
        case ast.Call(func=ast.Name(id=name), args=[], keywords=given) if all(item.arg for item in given):
            kwargs: dict[str, Any] = {}
            for item in given:
                argument = str(item.arg)
                if argument in kwargs:
                    raise ValueError(f"{argument} is given twice")
                try:
                    kwargs[argument] = _literal(item.value)
                except ValueError as error:
                    raise ValueError(f"{argument}: {error}; quotes make a text") from None
            return name, kwargs
    raise ValueError(f"{text!r} is not a name with keyword arguments")
