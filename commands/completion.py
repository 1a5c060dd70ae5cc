"""`completion SHELL`: a script with which a shell completes the commands, flags and choices of launch.py."""

import dataclasses
import importlib
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from commands import COMMANDS, HELP
from commands.helpers.command_line import parse
from commands.helpers.presets import preset_names
from protocol.experiment import NETWORKS
from protocol.lifeline import SUCCESS
from rundir.schedules import ADAPTIVE, NAMED

BASH = """\
_launch_py() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command=train flag= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in {commands}) command=${{COMP_WORDS[i]}}; break ;; esac
    done
    for ((i = COMP_CWORD - 1; i > 0; i--)); do  # The flag whose values stand before the word.
        case ${{COMP_WORDS[i]}} in --*) flag=${{COMP_WORDS[i]}}; break ;; esac
    done
    case "$word" in
        -*) ;;
        *) case "$command $before" in
{choices}
            esac
            case "$command $flag" in
{several}
            esac ;;
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


SUGGESTED = {  # Words of flags that take others, too.
    "--env": tuple(sorted(name for name in preset_names() if "*" not in name)),
    "--network": ("auto", *NETWORKS),
    "--learning-rate-schedule": (*NAMED, ADAPTIVE),
    "--clip-range-schedule": tuple(NAMED),
    "--entropy-coef-schedule": tuple(NAMED),
}


@dataclass(frozen=True)
class Values:
    """What a flag takes."""

    words: tuple[str, ...] = ()
    several: bool = False  # whether it takes more than one


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
    flags: list[str] = []
    choices: dict[bool, list[str]] = {False: [], True: []}  # By whether the flag takes several.
    for name in COMMANDS:
        found = flags_of(name)
        every = " ".join([*found, *sorted(HELP - {"-h"})])
        flags.append(f"                {name}) COMPREPLY=($(compgen -W '{every}' -- \"$word\")) ;;")
        for flag, values in found.items():
            if values.words:
                reply = f"COMPREPLY=($(compgen -W '{' '.join(values.words)}' -- \"$word\")); return"
                choices[values.several].append(f"            '{name} {flag}') {reply} ;;")
    return BASH.format(
        commands="|".join(COMMANDS),
        words=" ".join(COMMANDS),
        flags="\n".join(flags),
        choices="\n".join(choices[False]),
        several="\n".join(choices[True]),
    )


def flags_of(command: str) -> dict[str, Values]:
    """The flags of a command, each with the words that it takes, as far as these are known."""
    module = importlib.import_module(f"commands.{command.replace('-', '_')}")
    own = [
        kind for name, kind in vars(module).items() if name.endswith("Command") and kind.__module__ == module.__name__
    ]
    return {flag: values for kind in own for flag, values in _flags(kind).items()}


def _flags(kind: Any) -> dict[str, Values]:
    flags: dict[str, Values] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        flag = f"--{name.replace('_', '-')}"
        kinds = [hint, *typing.get_args(hint)]  # Annotated holds the hint.
        if any(tyro.conf.Positional is marker for marker in getattr(hint, "__metadata__", ())):
            continue
        if part := next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None):
            flags |= _flags(part)
        elif hint is bool:
            flags |= {flag: Values(), flag.replace("--", "--no-", 1): Values()}
        else:
            flags[flag] = _values(flag, hint)
    return flags


def _values(flag: str, hint: Any) -> Values:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return Values(parts)
    if origin is tuple:
        return Values(_values(flag, parts[0]).words, several=True)
    chosen = [_values(flag, part) for part in parts if typing.get_origin(part) is Literal]  # of `Literal[…] | None`
    return chosen[0] if chosen else Values(SUGGESTED.get(flag, ()))
