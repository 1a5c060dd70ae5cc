"""A run directory: what its files are named, hold, and mean. Imports `protocol` alone."""
