"""What a user can ask of launch.py, one file each: a module of that name with a `main`."""

COMMANDS = ("train", "eval", "plot", "compare", "doctor", "actors", "keys", "bench", "completion")
