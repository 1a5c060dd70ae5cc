"""The dashboard as a child of the supervisor: `python -m dashboard --run-dir DIR`."""

import argparse
from pathlib import Path

from dashboard.server import serve
from protocol.lifeline import SUCCESS, exit_at_once, run_child


def main() -> None:
    parser = argparse.ArgumentParser(prog="dashboard")
    parser.add_argument("--run-dir", type=Path, required=True)
    arguments = parser.parse_args()
    run_child(
        "dashboard",
        lambda: serve([arguments.run_dir], 0, lambda address: print(address, flush=True)),
        lambda words: exit_at_once(SUCCESS),  # there is nothing to save
    )


if __name__ == "__main__":
    main()
