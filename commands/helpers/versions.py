"""What this installation computes with: the versions that a run's configuration and `doctor` name."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("mlx", "numpy", "gymnasium", "pyzmq", "msgpack", "safetensors", "ngsolve-openblas")


def installed_versions() -> dict[str, str]:
    """By name: this project's git revision where it is a clone, Python's version, and those of `PACKAGES`."""
    versions = {"python": platform.python_version()}
    if (revision := _git_revision()) is not None:
        versions["revision"] = revision
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def version_line() -> str:
    """The version of this project and of what it computes with, in a line."""
    versions = installed_versions()
    revision = versions.get("revision", "")
    known = [f"{name} {versions[name]}" for name in ("mlx", "numpy", "gymnasium", "python") if name in versions]
    release = metadata.version("mlx-distributed-ppo")
    return f"mlx-distributed-ppo {release}{f' ({revision[:10]})' if revision else ''}; {', '.join(known)}"


def _git_revision() -> str | None:
    """The commit of this clone, and whether it was changed since; None where there is no clone, or no git."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
