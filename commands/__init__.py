"""What a user can ask of launch.py, one file each: a module of that name, with _ for -, that has a `main`."""

HELP = {"-h", "--help", "--help-all"}

COMMANDS = (
    "train",
    "sweep",
    "eval",
    "play",
    "replay",
    "plot",
    "compare",
    "dashboard",
    "export",
    "import-sb3",
    "doctor",
    "actors",
    "keys",
    "bench",
    "completion",
)
