"""Where the learner listens: a socket file in a private folder, a free TCP port, or a name within the process."""

import fcntl
import os
import shutil
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

PREFIX = f"mlx-ppo-{os.getuid()}-"
TOUCH_SECONDS = 3600.0  # Seconds between two touches of the folder of sockets.
MAX_SOCKET_PATH = 100  # Most bytes of a socket's path. macOS allows 104.
LOOPBACK = "127.0.0.1"
LOCK = "lock"  # The lock file in a socket's folder.


@contextmanager
def listening(transport: str) -> Iterator["Place"]:
    """A place for `transport` (ipc, tcp or inproc) that only this run uses until the context ends."""
    if transport == "inproc":
        yield Place(f"inproc://{uuid.uuid4().hex}")
    elif transport == "tcp":
        yield Place(f"tcp://{LOOPBACK}:{free_port(LOOPBACK)}")
    else:
        folder = SocketFolder()
        try:
            yield Place(f"ipc://{folder.path}/learner", folder)
        finally:
            folder.remove()


def socket_parent() -> Path:
    """Where the folders of sockets are made: the temporary folder, or /tmp if its path is too long for a socket."""
    parent = Path(tempfile.gettempdir())
    fits = len(os.fsencode(parent / PREFIX)) + len("12345678/learner") <= MAX_SOCKET_PATH
    return parent if fits else Path("/tmp")


def free_port(host: str) -> int:
    """A TCP port that no process on this machine uses."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class SocketFolder:
    """A new folder that is open to this user only. Folders that killed launchers left are removed.

    A second bind on a live socket file would silently take it over, so no folder is shared: a lock marks it as used.
    """

    def __init__(self) -> None:
        parent = socket_parent()
        _sweep(parent)
        lock = None
        while lock is None:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            lock = _lock(self.path)
        self._lock = lock
        self._next_touch = time.monotonic() + TOUCH_SECONDS

    def restore(self) -> bool:
        """Make the folder again if it was removed, for example by a program that cleans up temporary files. Returns
        whether it was made again. Raises `OSError`."""
        if _is_at(self._lock, self.path / LOCK):
            self._keep_fresh()
            return False
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077 or found.st_uid != os.getuid():
            raise PermissionError(f"somebody else's is in the place of {self.path}")
        lock = _lock(self.path)
        if lock is not None:  # Else the folder was removed once more; the next look finds that.
            self._lock.close()
            self._lock = lock
        return lock is not None

    def _keep_fresh(self) -> None:
        """Touch the folder and its files: macOS removes temporary files that were not touched for three days."""
        if time.monotonic() >= self._next_touch:
            self._next_touch = time.monotonic() + TOUCH_SECONDS
            for path in (*self.path.iterdir(), self.path):
                with suppress(FileNotFoundError):  # A learner that ends removes its socket.
                    os.utime(path)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


@dataclass(frozen=True)
class Place:
    """Where a learner listens, and the folder of its socket file if it has one."""

    address: str
    folder: SocketFolder | None = None


def _lock(folder: Path) -> TextIO | None:
    """Lock a folder and return the open lock file. None if the folder was removed first: another launcher, which cleans
    up, may have locked it first and taken it for an unused one."""
    try:
        lock = open(folder / LOCK, "w")  # noqa: SIM115 - held as long as the folder
    except FileNotFoundError:
        return None
    fcntl.flock(lock, fcntl.LOCK_EX)
    if _is_at(lock, folder / LOCK):
        return lock
    lock.close()
    return None


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sweep(parent: Path) -> None:
    for folder in parent.glob(PREFIX + "*"):
        try:
            with open(folder / LOCK) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            with suppress(FileNotFoundError):  # Another launcher may clean up, too.
                if time.time() - folder.stat().st_mtime > 60:  # A younger folder may not have its lock yet.
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # The folder is in use, or belongs to another user.
