"""Where the learner listens: a socket file in a private folder, a free TCP port, or a name within the process."""

import fcntl
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = f"mlx-ppo-{os.getuid()}-"
MAX_SOCKET_PATH = 100  # bytes; macOS allows 104
LOOPBACK = "127.0.0.1"


@contextmanager
def listening_address(transport: str) -> Iterator[str]:
    """An address for `transport` (ipc, tcp or inproc) that is this run's alone, until the context ends."""
    if transport == "inproc":
        yield f"inproc://{uuid.uuid4().hex}"
    elif transport == "tcp":
        yield f"tcp://{LOOPBACK}:{free_port(LOOPBACK)}"
    else:
        with _socket_folder() as folder:
            yield f"ipc://{folder}/learner"


def socket_parent() -> Path:
    """Where the folders of sockets are made: the temporary folder, unless its path is too long for a socket's."""
    parent = Path(tempfile.gettempdir())
    fits = len(os.fsencode(parent / PREFIX)) + len("12345678/learner") <= MAX_SOCKET_PATH
    return parent if fits else Path("/tmp")


def free_port(host: str) -> int:
    """A TCP port that nobody on this machine uses."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


@contextmanager
def _socket_folder() -> Iterator[Path]:
    """A fresh folder, open to this user alone; those left by launchers that were killed are removed.

    A second bind on a live socket file would silently steal it, so the folder is never shared: a lock says it is used.
    """
    parent = socket_parent()
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    try:
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(PREFIX + "*"):
        try:
            with open(folder / "lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # in use
        except FileNotFoundError:
            if folder.exists() and time.time() - folder.stat().st_mtime > 60:  # not one that is just being made
                shutil.rmtree(folder, ignore_errors=True)
