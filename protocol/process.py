"""Fixes the state of a process that must not change what a run computes: its hash seed and its module search path.

Every program of this project imports this module before anything else.
"""

import os
import shlex
import sys

# BLAS has one thread, since another number may change the lowest bits. OpenCV has one, since more do not help.
ONE_THREAD: dict[str, str] = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
}
# Set for every process that may run an environment, since sets are iterated in hash order.
HASH_SEED = {"PYTHONHASHSEED": "0"}
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - imports nothing
OWN = {
    "actors",
    "benchmarks",
    "commands",
    "dashboard",
    "launch",
    "learner",
    "mlx_distributed_ppo",
    "multirun",
    "protocol",
    "rundir",
    "supervisor",
    "tests",
}
START = os.getcwd()  # noqa: PTH109 - It stays the user's folder, whatever an environment makes the working directory.


def taken_names() -> str:
    """A hint for a failed import of a user's module: which of the user's files have the names of our modules."""
    taken = [] if START == ROOT else sorted({name.removesuffix(".py") for name in os.listdir(START)} & OWN)  # noqa: PTH208
    if not taken:
        return ""
    return f" ({', '.join(taken)} in {START}: modules of this project have that name and come first; rename yours)"


def fix_hash_seed() -> None:
    """Restart this program in the same process, unless it already has the hash seed that every run uses.

    Python reads the seed only when it starts. A user's own seed is replaced, since it would change the result. Exits
    with code 2 if Python was told to keep the seed random.
    """
    if not HASH_SEED.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | HASH_SEED)
    if not hash_seed_is_fixed():
        print("Python ignores PYTHONHASHSEED, which every run fixes: start it without -E, -I and -R", file=sys.stderr)
        sys.exit(2)


def hash_seed_is_fixed() -> bool:
    """Whether strings have the same hashes in this process as in every other process of the run."""
    return not sys.flags.hash_randomization


def as_typed(path: str | os.PathLike[str]) -> str:
    """A path as a user in `START` would type it: relative if it lies there. The program itself uses absolute paths."""
    path = os.fspath(path)
    return path.removeprefix(START.rstrip(os.sep) + os.sep)


def as_word(path: str | os.PathLike[str]) -> str:
    """A path, quoted as one word of a command that a user can paste into a shell."""
    word = as_typed(path)
    return shlex.quote(f"./{word}" if word.startswith("-") else word)


def seek_user_modules_last() -> None:
    """Put the user's folder last in `sys.path`, so that it hides no module of Python, of a library or of this project.

    The user's folder is the one in which this program was started. Python puts it first for `python -m`. The folder of
    this project stays where it is, since another copy may be installed.
    """
    if START == ROOT:
        return
    sys.path[:] = [*(folder for folder in sys.path if folder not in ("", START)), START]
