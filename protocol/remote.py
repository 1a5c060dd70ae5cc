"""Where actors on other machines reach the learner, and which of them may connect."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import UserError

_ADDRESS = re.compile(r"tcp://(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})")


@dataclass(frozen=True)
class RemoteAccess:
    """The address on which the learner listens for remote actors, in addition to the address for its own actors."""

    address: str  # tcp://HOST:PORT
    keys: Path | None  # Directory of the learner's key and the allowed keys. None lets anyone in unless `supervised`.
    supervised: bool = False  # Whether only the launcher starts remote actors, which then have the run's key.

    def check(self, insecure: bool) -> None:
        """Raise `UserError` on an invalid address, or on one that is open to others although the user did not ask."""
        host = check_tcp(self.address, "--listen")
        if self.keys is not None and insecure:
            raise UserError("--keys and --insecure exclude each other")
        if self.keys is None and not insecure and not is_loopback(host):
            raise UserError(
                f"--listen {self.address} is open to other machines and needs --keys DIR (`python launch.py keys DIR`"
                " makes them), or --insecure where you trust everyone who can reach it"
            )


def check_tcp(address: str, flag: str) -> str:
    """The host of tcp://HOST:PORT; an IPv6 address comes without its brackets. Raises `UserError`."""
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
