"""Decides which code may run here.

A run directory, a file of settings or a learner names modules of an environment, of wrappers or of a network. Importing
a module runs its code. So a name is imported only if this user has typed it, has given --trust, or has started the run
that the name comes from. To prove the last, a run directory holds a signature made with a secret of the user.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.files import replace_file
from protocol.process import OWN
from protocol.text import one_line

HARMLESS = OWN | {"gymnasium"}  # Importing one of these packages starts nothing, so their names need no trust.
HARMLESS_WRAPPERS = re.compile(r"gymnasium\.wrappers:(?!Record)[A-Za-z]\w*(\(.*\))?")  # All but those that write files.
LOADERS = "GymV"  # Gymnasium's ids with this prefix import the modules that their arguments name.
SIGNATURE = ".signature"  # The file in the run directory.
SECRET_BYTES = 32


def foreign_names(experiment: Experiment) -> list[str]:
    """An experiment's names, as typed in a command, of code that is neither this project's nor gymnasium's."""
    modules = [name for name in (experiment.env, experiment.network) if ":" in name]
    names = [name for name in modules if name.split(":")[0].split(".")[0] not in HARMLESS]
    if experiment.env.rpartition(":")[2].startswith(LOADERS) and experiment.env not in names:
        names.append(experiment.env)
    return names + [text for text in experiment.wrapper if HARMLESS_WRAPPERS.fullmatch(text) is None]


def check_trust(
    experiment: Experiment, origin: Path, trust: bool, run_dir: Path | None = None, typed: Sequence[str] = ()
) -> None:
    """Raise `UserError` if the experiment names code that this user has not trusted.

    `origin` is the file or directory that names the code. `run_dir` is the run directory that `origin` is or lies in,
    if any. `typed` are the words of the command line.
    """
    words = {word for argument in typed for word in (argument, argument.partition("=")[2])}  # NAME of --env=NAME, too.
    names = [name for name in foreign_names(experiment) if name not in words]
    if names and not trust and not (run_dir is not None and _is_signed(run_dir, experiment)):
        raise UserError(
            f"{origin} names code that would run here ({one_line(', '.join(names))}), and nothing proves that you made"
            " it on this machine: --trust lets that code run"
        )


def sign(run_dir: Path, experiment: Experiment) -> None:
    """Record that this user has trusted the code that the run names. Without a place for a secret, do nothing."""
    if foreign_names(experiment) and (secret := _secret()) is not None:
        replace_file(run_dir / SIGNATURE, _signature(secret, experiment), durable=False)


def _is_signed(run_dir: Path, experiment: Experiment) -> bool:
    secret = _secret()
    try:
        found = (run_dir / SIGNATURE).read_text() if (run_dir / SIGNATURE).is_file() else ""
    except (OSError, ValueError):
        return False
    return secret is not None and hmac.compare_digest(found.encode(), _signature(secret, experiment).encode())


def _signature(secret: bytes, experiment: Experiment) -> str:
    named = [foreign_names(experiment), experiment.env_kwargs]
    return hmac.new(secret, json.dumps(named).encode(), hashlib.sha256).hexdigest()


def _secret() -> bytes | None:
    """This user's secret on this machine, made on first use; None if there is no place for it that the user owns."""
    try:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "distributed-ppo"
        path = folder / "secret"
        if not path.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_secret(path)
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            own = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
            secret = file.read(SECRET_BYTES) if own else b""
    except (OSError, RuntimeError):  # There is no home folder, or no room in it.
        return None
    return secret if len(secret) == SECRET_BYTES else None


def _make_secret(path: Path) -> None:
    """Write a new secret atomically. If another process is first, its secret stays."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(secrets.token_bytes(SECRET_BYTES))
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
