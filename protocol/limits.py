"""Raises the number of files that a process may hold open. Each connection, pipe and log is one."""

import resource
from contextlib import suppress

# The usual limit is 1024, or 256 on macOS. macOS also refuses some limits that it reports as allowed.
WANTED = (65_536, 10_240, 4_096)


def allow_many_files() -> None:
    """Raise this process's limit as far as the system allows, up to the largest of `WANTED`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in WANTED:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < limit:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                return
