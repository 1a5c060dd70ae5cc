"""Checkpoints that cannot be torn: written under another name, synced, renamed; verified by checksum when loaded.

A run directory's `checkpoints/` holds one directory a version: `arrays.safetensors` and `manifest.json`.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from protocol.errors import ProtocolError, UserError
from protocol.files import replace_file, sync_directory
from protocol.observations import normalization
from protocol.records import typed
from protocol.snapshot import PolicySnapshot, part_of
from protocol.spaces import ADDED_SPACES, Spaces

FORMAT = 6
OLDER = (3, 4, 5)  # These formats are read, too: see `_upgraded`.
KEEP = 3  # So many of the newest checkpoints are kept, and the one with the best return.
ARRAYS, MANIFEST = "arrays.safetensors", "manifest.json"
POLICY_NAMES = "policy_weights"  # This fact lists the parameters that actors act with.


@dataclass(frozen=True)
class Checkpoint:
    """All that a learner needs to continue from the border before rollout `policy_version`, on the host."""

    policy_version: int
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]  # Everything that is not an array, as JSON.


def write_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Add `checkpoint` to those below `directory`, and remove those no longer kept. Raises `OSError`."""
    path = add_checkpoint(directory, checkpoint)
    _remove_old(directory, checkpoint.policy_version)
    return path


def add_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` below `directory`, all or nothing. Raises `OSError`."""
    directory.mkdir(exist_ok=True)
    target = directory / f"{checkpoint.policy_version:08d}"
    temporary = directory / f".{target.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        arrays = safetensors.numpy.save({k: np.asarray(v, order="C") for k, v in checkpoint.arrays.items()})
        replace_file(temporary / ARRAYS, arrays)
        manifest = {
            "format": FORMAT,
            "policy_version": checkpoint.policy_version,
            "sha256": {ARRAYS: hashlib.sha256(arrays).hexdigest()},
            "facts": checkpoint.facts,
        }
        text = json.dumps(manifest, indent=1, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        replace_file(temporary / MANIFEST, f"{text}\n{digest}\n".encode())
        sync_directory(temporary)
        discard_checkpoint(target)  # an equal version, from before a resume
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(directory)
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in the directory `path`; raises `ValueError` or `OSError` unless every byte is as written, and
    `UserError` for one that another release has written."""
    if not ((path / MANIFEST).is_file() and (path / ARRAYS).is_file()):
        raise ValueError(f"{path / MANIFEST} or {ARRAYS} is no file")  # a pipe would be waited for
    text, _, digest = (path / MANIFEST).read_bytes().removesuffix(b"\n").rpartition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise ValueError(f"{path / MANIFEST} is damaged")
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("facts"), dict):
        raise ValueError(f"{path / MANIFEST} is no manifest")
    if type(manifest["policy_version"]) is not int or not isinstance(manifest["sha256"], dict):
        raise ValueError(f"{path / MANIFEST} is no manifest")
    if manifest["format"] not in (FORMAT, *OLDER):
        # Not one to pass over: going on from an older one, or from none, would in time remove what is not damaged.
        raise UserError(
            f"{path} has checkpoint format {manifest['format']!r:.20}, and this release reads {FORMAT}: use the release"
            " that wrote it"
        )
    arrays = (path / ARRAYS).read_bytes()
    if hashlib.sha256(arrays).hexdigest() != manifest["sha256"][ARRAYS]:
        raise ValueError(f"{path / ARRAYS} is damaged")
    checkpoint = Checkpoint(manifest["policy_version"], safetensors.numpy.load(arrays), manifest["facts"])
    return checkpoint if manifest["format"] == FORMAT else _upgraded(checkpoint)


def load_newest_checkpoint(directory: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint below `directory` that verifies, warning of each that does not; None if there is none."""
    for path in reversed(list_checkpoints(directory)):
        try:
            return load_checkpoint(path)
        except (ValueError, OSError, KeyError, RecursionError, safetensors.SafetensorError) as error:
            warn(f"checkpoint {path.name} is passed over: {error}")
    return None


@contextmanager
def understood(checkpoint: Checkpoint) -> Iterator[None]:
    """Raise `UserError` where the block does not find in `checkpoint` what a learner of this run puts there."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, ProtocolError) as error:
        raise UserError(
            f"checkpoint {checkpoint.policy_version:08d} is whole, but not one of this run's configuration: {error!r}"
        ) from None


def list_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints below `directory`, oldest version first."""
    if directory.is_symlink():  # Old checkpoints are removed: never elsewhere.
        raise UserError(f"{directory} is a link; a run's checkpoints must lie in its own directory")
    return sorted(path for path in directory.glob("[0-9]*") if path.is_dir() and not path.is_symlink())


def spaces_of(checkpoint: Checkpoint) -> Spaces:
    """The spaces of a checkpoint's environment. Raises `KeyError` and `ProtocolError` where it has none."""
    spaces = typed(ADDED_SPACES | checkpoint.facts["spaces"], Spaces, "the spaces")
    spaces.check()
    return spaces


def policy_snapshot(checkpoint: Checkpoint) -> PolicySnapshot:
    """The policy that a checkpoint holds, as actors receive it."""
    weights = {name: checkpoint.arrays[f"model.{name}"] for name in checkpoint.facts[POLICY_NAMES]}
    statistics = part_of(checkpoint.arrays, "statistics.")
    return PolicySnapshot(checkpoint.policy_version, weights, *normalization(statistics))


def discard_checkpoint(path: Path) -> None:
    """Remove a checkpoint, if it is there: renamed first, so that a kill leaves no part of it listed."""
    doomed = path.with_name(f".{path.name}.discarded")
    shutil.rmtree(doomed, ignore_errors=True)
    if path.exists():
        path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what a writer that was killed has left below `directory`, where nobody else is writing."""
    for leftover in directory.glob(".[0-9]*"):
        shutil.rmtree(leftover, ignore_errors=True)


def weights_digest(arrays: dict[str, np.ndarray]) -> str:
    """sha256 over the names and bytes of all parameters (`model.NAME` in `arrays`), in sorted order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        if name.startswith("model."):
            digest.update(name.removeprefix("model.").encode() + arrays[name].tobytes())
    return digest.hexdigest()


def _upgraded(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of an older format as this one has it. Format 3 has actions as they are, which is still read."""
    arrays = {re.sub(r"^(lanes\.\d+)\.memory$", r"\1.hidden_state", k): v for k, v in checkpoint.arrays.items()}
    for index in [k.removesuffix("episode_indices") for k in arrays if k.endswith(".episode_indices")]:
        arrays[f"{index}progress"] = np.zeros(len(arrays[f"{index}episode_indices"]))
    names = [name for name in part_of(arrays, "model.") if not name.startswith("value_")]
    facts = {POLICY_NAMES: names, **checkpoint.facts}  # Format 5 has the names already.
    return Checkpoint(checkpoint.policy_version, arrays, facts)


def _remove_old(directory: Path, newest: int) -> None:
    """Keep `KEEP` checkpoints up to version `newest`; those beyond it were passed over as damaged, and do not count."""
    paths = [path for path in list_checkpoints(directory) if path.name <= f"{newest:08d}"]
    best = max(paths, key=_return)
    for path in paths[:-KEEP]:
        if path != best:
            discard_checkpoint(path)
    remove_leftovers(directory)


def _return(path: Path) -> float:
    try:
        text = (path / MANIFEST).read_text().rstrip("\n").rpartition("\n")[0]
        mean = json.loads(text)["facts"]["episode_return_mean"]
        return -np.inf if mean is None else float(mean)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return -np.inf
