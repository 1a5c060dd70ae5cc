"""Files of CURVE keys: the learner's pair, an actor's pair with the learner's public key, and the list of allowed keys.
A launcher also makes keys for one run, which are not stored in a file.

Keys are in Z85, 40 characters each, as ZeroMQ writes them.
"""

import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import UserError
from protocol.files import replace_file
from protocol.process import as_typed, as_word

LEARNER, ALLOWED = "learner.key", "allowed.toml"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class KeyPair:
    """The public and secret key of one side of a connection."""

    public: str
    secret: str

    @classmethod
    def fresh(cls) -> "KeyPair":
        import zmq  # Imported here, since the launcher needs zmq for nothing else.

        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


@dataclass(frozen=True)
class ActorKey:
    """The keys that an actor needs to connect."""

    path: Path | None  # The key file; None for the key of a run.
    pair: KeyPair
    learner: str  # The learner's public key.

    def __str__(self) -> str:
        return f"the key {self.path}" if self.path else "the key of its run"


@dataclass(frozen=True)
class LearnerKey:
    """The keys with which the learner recognises the actors of its launcher."""

    pair: KeyPair
    actor: str  # The public key that all these actors share.


@dataclass(frozen=True)
class RunKeys:
    """The keys of one run. Each process gets its keys over its lifeline, so no other process can join the run."""

    learner: KeyPair
    actor: KeyPair

    @classmethod
    def fresh(cls) -> "RunKeys":
        return cls(KeyPair.fresh(), KeyPair.fresh())

    def words_for_learner(self) -> list[str]:
        return [self.learner.public, self.learner.secret, self.actor.public]

    def words_for_actor(self) -> list[str]:
        return [self.actor.public, self.actor.secret, self.learner.public]


def learner_key(words: list[str]) -> LearnerKey:
    """The key in the words that `words_for_learner` returned."""
    public, secret, other = words
    return LearnerKey(KeyPair(public, secret), other)


def actor_key(words: list[str]) -> ActorKey:
    """The key in the words that `words_for_actor` returned."""
    public, secret, other = words
    return ActorKey(None, KeyPair(public, secret), other)


def make_keys(directory: Path, names: list[str]) -> list[Path]:
    """Make a key for each name and allow it. Make the learner's key if there is none. Returns the actors' key files.

    Existing keys are not overwritten. Raises `UserError`, or `OSError`.
    """
    if not names:
        raise UserError("--names needs a name at least")
    for name in names:
        if _NAME.fullmatch(name) is None or f"{name}.key" == LEARNER or names.count(name) > 1:
            raise UserError(f"--names {name}: letters, digits, - and _ make a name; not `learner`, and none twice")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_open(directory, 0o077, "chmod 700")
    text = "# Who may connect; a key without its line is refused.\n"
    if (directory / ALLOWED).exists():
        text = (directory / ALLOWED).read_text()
    allowed = _parse(text, directory / ALLOWED)
    paths = [directory / f"{name}.key" for name in names]
    for name, path in zip(names, paths, strict=True):
        if path.exists() or name in allowed:
            raise UserError(f"{directory} has a key for {name} already; choose another of --names")
    if not (directory / LEARNER).exists():
        _write(directory / LEARNER, "The learner's. It stays on the learner's machine.", vars(KeyPair.fresh()))
    learner = read_learner(directory)
    for name, path in zip(names, paths, strict=True):
        pair = KeyPair.fresh()
        _write(path, f"Lets actors connect as {name}.", {**vars(pair), "learner": learner.public})
        text += f'{name} = "{pair.public}"\n'
    replace_file(directory / ALLOWED, text, mode=0o600)
    return paths


def read_learner(directory: Path) -> KeyPair:
    """The learner's keys in `directory`; raises `UserError`."""
    path = directory / LEARNER
    if not path.exists():
        raise UserError(
            f"--keys {as_typed(directory)} has no {LEARNER}; `python launch.py keys {as_word(directory)}` makes it"
        )
    return _pair(_read_secret(path, {"public", "secret"}), path)


def read_actor(path: Path) -> ActorKey:
    """The key file of an actor; raises `UserError`."""
    found = _read_secret(path, {"public", "secret", "learner"})
    return ActorKey(path, _pair(found, path), found["learner"])


class AllowedKeys:
    """The public keys that may connect. The file is read again whenever it has changed."""

    def __init__(self, directory: Path, warn: Callable[[str], None]) -> None:
        self._path = directory / ALLOWED
        self._warn = warn
        self._stamp = self._stat()
        self._keys = self._load()

    def __contains__(self, key: str) -> bool:
        stamp = self._stat()
        if stamp != self._stamp:
            try:
                self._keys = self._load()
            except UserError as error:  # Half a file, while a user edits it, must not shut out all actors.
                self._warn(f"{error}; the keys allowed before stay in use")
            self._stamp = stamp  # Set last: two threads read it, and neither may take old keys for new ones.
        return key in self._keys

    def _load(self) -> frozenset[str]:
        _refuse_open(self._path, 0o022, "chmod go-w")
        return frozenset(_read(self._path).values())

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _pair(found: dict[str, str], path: Path) -> KeyPair:
    pair = KeyPair(found["public"], found["secret"])
    import zmq

    if zmq.curve_public(pair.secret.encode()).decode() != pair.public:
        raise UserError(f"{path}: its public key does not belong to its secret key")
    return pair


def _read_secret(path: Path, names: set[str]) -> dict[str, str]:
    _refuse_open(path, 0o077, "chmod 600")
    found = _read(path)
    if found.keys() != names:
        raise UserError(f"{path} does not hold {', '.join(sorted(names))}, and only these")
    return found


def _read(path: Path) -> dict[str, str]:
    """The keys in a file, by name. Raises `UserError`."""
    try:
        return _parse(path.read_text(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _parse(text: str, path: Path) -> dict[str, str]:
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not a file of keys: {error}") from None
    for name, key in found.items():
        if not _is_key(key):
            raise UserError(f"{path}: {name} is not a key of 40 characters")
    return found


def _is_key(value: object) -> bool:
    from zmq.utils import z85

    try:
        return isinstance(value, str) and len(value) == 40 and len(z85.decode(value.encode("ascii"))) == 32
    except (ValueError, KeyError, UnicodeEncodeError):
        return False


def _refuse_open(path: Path, forbidden: int, remedy: str) -> None:
    """Raise `UserError` if `path` gives other users one of the permission bits in `forbidden`."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if mode & forbidden:
        raise UserError(f"{path} is open to other users of this machine; run: {remedy} {path}")


def _write(path: Path, comment: str, keys: dict[str, str]) -> None:
    # The file is created secret. The umask would apply to the whole process, and another thread may set it back.
    with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(f"# {comment}\n" + "".join(f'{name} = "{key}"\n' for name, key in keys.items()))
