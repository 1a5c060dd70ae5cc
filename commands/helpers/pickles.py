"""Reads pickles as data: nothing that a pickle names is ever imported or called.

A subclass says which opcodes may come, and what stands for the things that a pickle would make.
"""

import pickletools
from typing import Any, NamedTuple

PLAIN = """
    PROTO FRAME NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINUNICODE SHORT_BINUNICODE EMPTY_DICT EMPTY_TUPLE
    MARK TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET REDUCE SETITEM SETITEMS BUILD STOP
"""  # Opcodes of plain data, and of a call.


class Name(NamedTuple):
    """What a pickle would import: module and name, with a space between them."""

    name: str


class PickleReader:
    """A stack machine. Raises `ValueError` on any opcode that is not `ALLOWED`."""

    ALLOWED = frozenset(PLAIN.split())

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        """What the pickle describes. Raises `ValueError` on one that is malformed, or describes something else."""
        try:
            for opcode, argument, _ in pickletools.genops(data):
                if opcode.name not in self.ALLOWED:
                    raise ValueError(f"its pickle has the opcode {opcode.name}, which is not allowed")
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._do(opcode.name, argument)
        except (IndexError, TypeError, AttributeError, KeyError, OverflowError) as error:
            raise ValueError(f"its pickle is malformed: {type(error).__name__}") from None
        raise ValueError("its pickle has no end")

    def named(self, name: str) -> Any:
        """What stands for a thing that the pickle would import."""
        raise NotImplementedError

    def called(self, function: Any, arguments: Any) -> Any:
        """What stands for the result of a call."""
        raise NotImplementedError

    def built(self, thing: Any, state: Any) -> None:
        """Take in the attributes of something that was called."""
        raise NotImplementedError

    def persistent(self, identity: Any) -> Any:
        """What stands for something that lies outside the pickle."""
        raise NotImplementedError

    def _do(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
            case "MARK":
                self._marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS":
                items = self._since_mark() if name == "APPENDS" else [stack.pop()]
                as_kind(list, stack[-1]).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                for key in items[::2]:
                    as_kind(str, key)  # Hashing nested tuples may never end.
                as_kind(dict, stack[-1]).update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(self.named(argument))
            case "STACK_GLOBAL":
                last, module = as_kind(str, stack.pop()), as_kind(str, stack.pop())
                stack.append(self.named(f"{module} {last}"))
            case "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(self.called(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                self.built(stack[-1], state)
            case _:  # A plain value.
                stack.append(argument)

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items


def as_kind(kind: type, value: Any) -> Any:
    """`value`, if it is of this type. Raises `ValueError`."""
    if type(value) is not kind:
        raise ValueError(f"its pickle has a {type(value).__name__} in the place of a {kind.__name__}")
    return value
