"""How many cores this machine has for actors."""

import os
import sys


def default_actors(num_lanes: int) -> int:
    """One actor for each performance core but one, which the learner takes; no more than there are lanes."""
    return max(1, min(performance_cores() - 1, num_lanes))


def performance_cores() -> int:
    """Cores worth an actor: on Apple silicon all but the efficiency cores, elsewhere all physical ones."""
    if sys.platform == "darwin":
        levels = [_sysctl(f"hw.perflevel{level}") for level in range(int(_sysctl("hw").get("nperflevels", 0)))]
        fast = sum(int(level["physicalcpu"]) for level in levels if level.get("name") != "Efficiency")
        if fast:
            return fast
    import psutil

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _sysctl(prefix: str) -> dict[str, str]:
    """What macOS says of its parts named `prefix`.NAME, by NAME."""
    import subprocess

    answer = subprocess.run(["sysctl", prefix], capture_output=True, text=True, check=False).stdout
    pairs = (line.removeprefix(f"{prefix}.").partition(": ") for line in answer.splitlines())
    return {name: value for name, _, value in pairs}
