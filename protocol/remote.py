"""Where actors of other machines reach the learner, and who may."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import UserError

_ADDRESS = re.compile(r"tcp://(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})")


@dataclass(frozen=True)
class RemoteAccess:
    """The address that the learner listens on for remote actors, beside that of its own."""

    address: str  # tcp://HOST:PORT
    keys: Path | None  # the directory with the learner's key and those it allows; None lets anyone in…
    supervised: bool = False  # …unless only the launcher starts such actors, which then have the run's key

    def check(self, insecure: bool) -> None:
        """Raise `UserError` on an address that is none, or that would be open to others though nobody asked for it."""
        host = check_tcp(self.address, "--listen")
        if self.keys is not None and insecure:
            raise UserError("--keys and --insecure exclude each other")
        if self.keys is None and not insecure and not is_loopback(host):
            raise UserError(
                f"--listen {self.address} is open to other machines and needs --keys DIR (`python launch.py keys DIR`"
                " makes them), or --insecure where you trust everyone who can reach it"
            )


def check_tcp(address: str, flag: str) -> str:
    """The host of tcp://HOST:PORT, an IPv6 address without its brackets. Raises `UserError`."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 65_536:
        raise UserError(f"{flag} {address} must be tcp://HOST:PORT, such as tcp://0.0.0.0:5555")
    return match[1].strip("[]")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
