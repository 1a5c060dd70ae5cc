"""`completion SHELL`: a script with which a shell completes the commands, flags and choices of launch.py."""

import dataclasses
import importlib
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from commands import COMMANDS
from commands.helpers.command_line import parse
from protocol.lifeline import SUCCESS

BASH = """\
_launch_py() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command=train i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in {commands}) command=${{COMP_WORDS[i]}}; break ;; esac
    done
    case "$command $before" in
{choices}
    esac
    case "$word" in
        -*) case $command in
{flags}
            esac ;;
        *) [ "$COMP_CWORD" -le "${{_launch_py_first:-1}}" ] && COMPREPLY=($(compgen -W "{words}" -- "$word")) ;;
    esac
}}
complete -o default -F _launch_py launch.py ./launch.py
_launch_py_python() {{  # `python launch.py …`: the same, one word further on
    if [ "${{COMP_WORDS[1]##*/}}" = launch.py ]; then _launch_py_first=2 _launch_py; fi
}}
complete -o default -F _launch_py_python python python3
"""


@dataclass(frozen=True)
class CompletionCommand:
    """Print a script that lets a shell complete the commands and flags of `launch.py` and `python launch.py`.

    Examples:
      source <(python launch.py completion bash)
      source <(python launch.py completion zsh)
    """

    shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional]
    """Shell that is to read it."""


def main(arguments: list[str]) -> int:
    """Print the script; returns the exit code."""
    command = parse(CompletionCommand, "launch.py completion", arguments)
    if command.shell == "zsh":
        print("autoload -U +X compinit && compinit && autoload -U +X bashcompinit && bashcompinit")
    print(script(), end="")
    return SUCCESS


def script() -> str:
    """The script, for bash; zsh reads it, too."""
    flags, choices = [], []
    for name in COMMANDS:
        found = flags_of(name)
        flags.append(
            f"                {name}) COMPREPLY=($(compgen -W '{' '.join([*found, '--help'])}' -- \"$word\")) ;;"
        )
        for flag, values in found.items():
            if values:
                reply = f"COMPREPLY=($(compgen -W '{' '.join(values)}' -- \"$word\")); return"
                choices.append(f"        '{name} {flag}') {reply} ;;")
    return BASH.format(
        commands="|".join(COMMANDS), words=" ".join(COMMANDS), flags="\n".join(flags), choices="\n".join(choices)
    )


def flags_of(command: str) -> dict[str, tuple[str, ...]]:
    """The flags of a command, each with the words it takes, if these are known."""
    module = importlib.import_module(f"commands.{command.replace('-', '_')}")
    own = [
        kind for name, kind in vars(module).items() if name.endswith("Command") and kind.__module__ == module.__name__
    ]
    return {flag: values for kind in own for flag, values in _flags(kind).items()}


def _flags(kind: Any) -> dict[str, tuple[str, ...]]:
    flags: dict[str, tuple[str, ...]] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        flag = f"--{name.replace('_', '-')}"
        kinds = [hint, *typing.get_args(hint)]  # Annotated holds the hint.
        if any(tyro.conf.Positional is marker for marker in getattr(hint, "__metadata__", ())):
            continue
        if part := next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None):
            flags |= _flags(part)
        elif hint is bool:
            flags |= {flag: (), flag.replace("--", "--no-", 1): ()}
        else:
            flags[flag] = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    return flags
