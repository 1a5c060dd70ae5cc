"""Converts dataclasses to plain data and back. On the way back, a field of another type than declared is refused."""

import dataclasses
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any

from protocol.errors import ProtocolError


def plain(record: Any) -> dict[str, Any]:
    """A dataclass as a map, with lists for tuples and strings for paths. Arrays stay arrays."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain_value(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return plain(value) if dataclasses.is_dataclass(value) else value


@cache
def _hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name. Cached, since finding them is slow and every message needs them."""
    return typing.get_type_hints(kind)


def typed(value: Any, hint: Any, where: str) -> Any:
    """`value`, if it has exactly the type `hint`; a dataclass is built from its map. Else raises `ProtocolError`."""
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = _hints_of(typing.cast(type, hint))
        if not isinstance(value, dict) or value.keys() != hints.keys():
            raise ProtocolError(f"{where} does not have exactly the fields {', '.join(hints)}")
        return typing.cast(Any, hint)(**{k: typed(value[k], kind, f"{where}.{k}") for k, kind in hints.items()})
    if origin is types.UnionType:  # X | None, or plain types such as str | int
        if value is None and types.NoneType in arguments:
            return None
        return typed(value, type(value) if type(value) in arguments else arguments[0], where)
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in arguments:
            raise ProtocolError(f"{where} is not one of {', '.join(arguments)}")
        return value
    if origin is tuple:  # tuple[X, ...]
        if not isinstance(value, list):
            raise ProtocolError(f"{where} is not a list")
        return tuple(typed(item, arguments[0], where) for item in value)
    if origin is dict:  # dict[str, X]
        if not isinstance(value, dict):
            raise ProtocolError(f"{where} is not a map")
        return {k: typed(v, arguments[1], f"{where}[{k:.40}]") for k, v in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    if type(value) is not hint:
        raise ProtocolError(f"{where} is a {type(value).__name__} instead of a {hint.__name__}")
    if hint is int and not -(2**63) <= value < 2**63:
        raise ProtocolError(f"{where} is out of range")
    return value
