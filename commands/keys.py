"""`keys DIR`: the keys with which a learner and its remote actors know each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from commands.helpers.command_line import parse
from protocol.errors import UserError
from protocol.keys import ALLOWED, make_keys
from protocol.lifeline import SUCCESS
from protocol.process import as_word


@dataclass(frozen=True)
class KeysCommand:
    """Make the keys for actors on other machines, and the learner's, unless it is there.

    Example:
      python launch.py keys keys --names laptop workstation
    """

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Directory of the keys, on the learner's machine."""
    names: tuple[str, ...] = ("actor",)
    """A key is made for each; machines may share one, but are then revoked together."""


def main(arguments: list[str]) -> int:
    """Make the keys, and say what to copy where; returns the exit code."""
    command = parse(KeysCommand, "launch.py keys", arguments)
    try:
        made = make_keys(command.directory, list(command.names))
    except OSError as error:
        raise UserError(f"the keys cannot be written: {error}") from None
    for path in made:
        print(f"{path}: copy it to the actor's machine, readable for you alone")
    print(f"learner: python launch.py --listen tcp://0.0.0.0:5555 --keys {as_word(command.directory)}")
    print(f"actors:  python -m actors --connect tcp://HOST:5555 --key {as_word(made[0].name)}")
    print(f"to revoke a key, remove its line from {command.directory / ALLOWED}")
    return SUCCESS
