"""Faults of environments, as a run keeps them.

A file is JSON: the fields of `Fault`, and `actions` [step + 1, *action]: its episode's, the one that failed included.
"""

from pathlib import Path
from typing import Any

from protocol.errors import ProtocolError
from protocol.files import read_object
from protocol.records import typed
from protocol.trajectory import Fault


def list_faults(folder: Path) -> list[tuple[int, Fault, Any]]:
    """(number, fault, actions as lists) of every file in `folder`, by number; what cannot be read is passed over."""
    found = []
    for path in folder.glob("*.json"):
        try:
            data = read_object(path) or {}
            actions = data.pop("actions")
            found.append((int(path.stem), typed({"progress": 0.0, "traceback": "", **data}, Fault, path.name), actions))
        except (ValueError, KeyError, TypeError, ProtocolError):
            continue
    return sorted(found, key=lambda entry: entry[0])
