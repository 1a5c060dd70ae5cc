"""The state of a process that must not decide what a run computes: its hash seed, and where it looks for modules.

Imported before anything else, by every program of this project.
"""

import os
import shlex
import sys

# BLAS has one thread, since another number may give other low bits. OpenCV has one, since it gains nothing by more.
ONE_THREAD: dict[str, str] = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
}
# Every process that may run an environment has it, since sets are iterated in hash order.
HASH_SEED = {"PYTHONHASHSEED": "0"}
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - imports nothing
OWN = {
    "actors",
    "benchmarks",
    "commands",
    "dashboard",
    "launch",
    "learner",
    "protocol",
    "rundir",
    "supervisor",
    "tests",
}
START = os.getcwd()  # noqa: PTH109 - It stays the user's folder, whatever an environment makes the working directory.


def taken_names() -> str:
    """What to add where a module of the user's cannot be imported: files of theirs that have names of ours."""
    taken = [] if START == ROOT else sorted({name.removesuffix(".py") for name in os.listdir(START)} & OWN)  # noqa: PTH208
    if not taken:
        return ""
    return f" ({', '.join(taken)} in {START}: modules of this project have that name and come first; rename yours)"


def fix_hash_seed() -> None:
    """Run this program anew, in this process, unless its hash seed is that of every run.

    Python reads the seed when it starts. A seed of the user's own does not count: it would change the result. Exits
    with code 2 where Python was told to keep the seed random.
    """
    if not HASH_SEED.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | HASH_SEED)
    if not hash_seed_is_fixed():
        print("Python ignores PYTHONHASHSEED, which every run fixes: start it without -E, -I and -R", file=sys.stderr)
        sys.exit(2)


def hash_seed_is_fixed() -> bool:
    """Whether texts have the same hashes in this process as in every other of the run."""
    return not sys.flags.hash_randomization


def as_typed(path: str | os.PathLike[str]) -> str:
    """A path as a user in `START` would type it: relative, if it lies there. Inside, all paths are absolute."""
    path = os.fspath(path)
    return path.removeprefix(START.rstrip(os.sep) + os.sep)


def as_word(path: str | os.PathLike[str]) -> str:
    """A path as a word of a command that a user can paste into a shell."""
    word = as_typed(path)
    return shlex.quote(f"./{word}" if word.startswith("-") else word)


def seek_user_modules_last() -> None:
    """Let the user's folder take no module's place: neither of Python's, nor of a library's, nor of ours.

    The folder is the one this program was started in. Python puts it first for `python -m`. The folder of this project
    stays where it is: another copy may be installed.
    """
    if START == ROOT:
        return
    sys.path[:] = [*(folder for folder in sys.path if folder not in ("", START)), START]
