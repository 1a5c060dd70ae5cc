"""Simulate two machines with network namespaces, on Linux and as root, joined by a line that loses and delays packets.

The line can also be cut. It consists of a TUN device in each namespace and a thread that carries IP packets between
the two, so TCP meets true loss and true delay on every kernel. `tc netem` would do the same, but minimal kernels lack
its module.
"""

import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

DEVICE = "line"
NETWORK = "10.77.0"  # First three parts of both machines' addresses; other machines cannot see this network.
TUN = Path("/dev/net/tun")
TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000  # From Linux's headers.
LARGEST_PACKET = 2**16
POLL_SECONDS = 0.05


def obstacle() -> str | None:
    """The reason why namespaces cannot be used here; None if they can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    try:
        os.close(os.open(TUN, os.O_RDWR))
        done = subprocess.run(["unshare", "--net", "ip", "link"], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return done.stderr.strip() or None if done.returncode else None


class Machine:
    """A network namespace. It lasts as long as its holder process, which ends at the latest with this process."""

    def __init__(self, number: int) -> None:
        self.address = f"{NETWORK}.{number}"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "up\n"
        self.tun = -1
        plugger = threading.Thread(target=self._plug_in)  # A thread, because `setns` moves only the calling thread.
        plugger.start()
        plugger.join()
        assert self.tun >= 0
        for words in (f"address add {self.address}/24 dev {DEVICE}", f"link set {DEVICE} up"):
            subprocess.run([*self.command, "ip", *words.split()], check=True)

    @property
    def command(self) -> list[str]:
        """The words to put before a command so that it runs on this machine."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net"]

    def close(self) -> None:
        os.close(self.tun)
        self._holder.communicate()

    def _plug_in(self) -> None:
        with open(f"/proc/{self._holder.pid}/ns/net") as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        tun = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
        self.tun = tun


class Line:
    """Carries packets both ways between two machines. This context manager closes the machines, too."""

    def __init__(self, loss: float = 0.0, delay: float = 0.0) -> None:
        """`loss` is the share of packets lost each way; `delay` is the time in seconds that a packet takes each way."""
        self.cut = False  # While this is true, every packet is lost, and neither end is told.
        self.carried = self.lost = 0  # Numbers of packets.
        self._loss, self._delay = loss, delay
        self._closed = False
        self.machines = Machine(1), Machine(2)
        self._thread = threading.Thread(target=self._carry, name="line")

    def __enter__(self) -> "Line":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._thread.join()
        for machine in self.machines:
            machine.close()

    def _carry(self) -> None:
        one, two = (machine.tun for machine in self.machines)
        other = {one: two, two: one}
        chance = random.Random(0)
        under_way: deque[tuple[float, int, bytes]] = deque()  # (arrival time, end, packet), earliest first.
        while not self._closed:
            wait = under_way[0][0] - time.monotonic() if under_way else POLL_SECONDS
            ready, _, _ = select.select([one, two], [], [], min(max(wait, 0), POLL_SECONDS))
            for end in ready:
                packet = os.read(end, LARGEST_PACKET)
                if self.cut or chance.random() < self._loss:
                    self.lost += 1
                else:
                    under_way.append((time.monotonic() + self._delay, other[end], packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, end, packet = under_way.popleft()
                with suppress(OSError):  # The device's queue is full; the packet is lost, as on any line.
                    os.write(end, packet)
                self.carried += 1
