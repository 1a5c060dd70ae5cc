"""`bench NAME`: the benchmarks, as `python -m benchmarks NAME` runs them."""


def main(arguments: list[str]) -> int:
    """Run a benchmark; returns the exit code."""
    from benchmarks.__main__ import main as benchmark

    return benchmark(arguments)
