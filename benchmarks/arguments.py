"""Command-line parsing for the benchmarks: a mistake gives one line of text, and numbers must be above 0."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from protocol.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` for a mistake, which the caller handles."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """A function that parses a number above 0."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is no {'whole ' * (kind is int)}number above 0")
        return value

    return read
