"""Side-by-side measurements that a user can repeat: `python -m benchmarks NAME --help`."""
