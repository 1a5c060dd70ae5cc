"""The folders of many runs, for commands that only ask what a folder is: importing this costs next to nothing."""

from pathlib import Path

from protocol.errors import UserError
from protocol.files import read_object

SPEC = "sweep.toml"  # A sweep's file, as it was given.
SEEDS = "seeds.json"  # The seeds of the folder, their settings, and how they are executed.


def folder_of(run_dir: Path, seed: int) -> Path:
    """The run directory of a seed."""
    return run_dir / f"seed-{seed}"


def is_seeds(path: Path) -> bool:
    """Whether `train --seeds` has made this folder."""
    return (path / SEEDS).is_file()


def seeds_in(path: Path) -> list[Path]:
    """The run directories of its seeds; raises `UserError` where its list of them is damaged."""
    found = read_object(path / SEEDS) or {}
    seeds = found.get("seeds")
    known = all(isinstance(found.get(name), dict) for name in ("settings", "execution"))
    if not known or not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{path / SEEDS} is damaged: it does not list the seeds")
    return [folder_of(path, seed) for seed in seeds]
