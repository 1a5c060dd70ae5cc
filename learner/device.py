"""Getting MLX ready: which device, how many threads, and on Linux CPUs a BLAS worth having.

Nothing here imports MLX at module level: on Linux the better BLAS has to be loaded before it.
"""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from protocol.errors import UserError

OPENBLAS_PACKAGE = "ngsolve_openblas"
PROBE_SECONDS = 20
MALLOC_TRIM_THRESHOLD, MALLOC_MAX_MAPPED = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h.
PROBE = """
import ctypes, sys
blas = ctypes.CDLL(sys.argv[1])
three, nine = (ctypes.c_float * 1)(3), (ctypes.c_float * 1)()
one, zero = ctypes.c_float(1), ctypes.c_float(0)
blas.cblas_sgemm(101, 111, 111, 1, 1, 1, one, three, 1, three, 1, zero, nine, 1)
sys.exit(nine[0] != 9)
"""


def prepare_device(name: str, threads: int) -> tuple[str, list[str]]:
    """Make `name` (auto, cpu or gpu) MLX's default device; returns (cpu or gpu, notes for the user)."""
    if importlib.util.find_spec("mlx") is None or importlib.util.find_spec("mlx.core") is None:  # any folder is an mlx
        extra = "" if sys.platform == "darwin" else "; add the extra `cpu` or `cuda` of this project"
        raise UserError(f"the learner needs MLX, which is not installed{extra}")
    notes = []
    on_cpu_wheel = sys.platform == "linux" and _distribution_exists("mlx-cpu")
    if sys.platform == "linux":
        keep_freed_memory()
    if on_cpu_wheel:
        notes += preload_openblas(threads)
        if not shutil.which("g++"):
            notes.append("no C++ compiler (g++): MLX cannot fuse its kernels, and updates take about twice as long")
    import mlx.core as mx

    has_gpu = mx.default_device().type == mx.gpu
    if name == "gpu" and not has_gpu:
        raise UserError("--device gpu: MLX finds no GPU here; use --device cpu, or install the extra `cuda`")
    device = "gpu" if has_gpu and name != "cpu" else "cpu"
    mx.set_default_device(mx.Device(mx.gpu if device == "gpu" else mx.cpu, 0))
    return device, notes


def keep_freed_memory() -> None:
    """Let malloc keep what is freed. By default it maps large arrays anew for each step, page by page: a third of a
    convolution's time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # of glibc
        libc.mallopt(MALLOC_MAX_MAPPED, 0)
        libc.mallopt(MALLOC_TRIM_THRESHOLD, 2**31 - 1)


def preload_openblas(threads: int) -> list[str]:
    """Load an OpenBLAS whose symbols take precedence over the slow BLAS in MLX's CPU wheel; returns notes."""
    if importlib.util.find_spec(OPENBLAS_PACKAGE) is None:
        return ["OpenBLAS is not installed (package ngsolve-openblas): updates take two to four times as long"]
    with _openblas() as path:
        # A library built for another processor kills the process that calls it, so another process calls it first.
        probe = subprocess.run(
            [sys.executable, "-S", "-E", "-c", PROBE, str(path)],
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
        if probe.returncode:
            last = probe.stderr.decode(errors="replace").strip().splitlines()[-1:]
            cause = ", ".join(last) or f"exit code {probe.returncode}"
            return [f"OpenBLAS does not work here ({cause}); MLX's own BLAS is used, and updates take longer"]
        blas = ctypes.CDLL(str(path), mode=os.RTLD_GLOBAL)
    blas.openblas_set_num_threads(threads)
    return []


@contextmanager
def _openblas() -> Iterator[Path]:
    """A path from which the OpenBLAS wheel loads, as long as the context lasts.

    The wheel needs libgfortran.so.5 and does not bring it; MLX's wheel brings it under a name of its own. The wheel
    looks beside itself, so a folder of links is all it takes.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        blas = next(_package_folder(OPENBLAS_PACKAGE).glob("libopenblas*.so*"))
        (folder / "libopenblas.so").symlink_to(blas)
        core = importlib.util.find_spec("mlx.core")
        assert core is not None and core.origin is not None
        for library in Path(core.origin).parent.parent.glob("mlx_cpu.libs/lib*.so*"):
            (folder / library.name).symlink_to(library)
            if library.name.startswith("libgfortran"):
                (folder / "libgfortran.so.5").symlink_to(library)
        yield folder / "libopenblas.so"


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _distribution_exists(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
