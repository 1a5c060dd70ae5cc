"""Getting MLX ready: which device, how many threads, and on Linux CPUs a BLAS worth having.

Nothing here imports MLX at module level: on Linux the better BLAS has to be loaded before it.
"""

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import UserError
from protocol.text import error_line
from rundir.metrics import GPU_PEAK, GPU_SIZE

OPENBLAS_PACKAGE = "ngsolve_openblas"
PROBE_SECONDS = 20
TF32 = "MLX_ENABLE_TF32"
ACCELERATE_THREADS = "VECLIB_MAXIMUM_THREADS"
# In how many branches of a graph MLX goes ahead at once. Of the default, 20, only one CPU stream is kept busy.
BREADTH, ALL_STREAMS = "MLX_BFS_MAX_WIDTH", "1000"
# From so many parameters times samples a step on, `auto` takes the GPU. docs/devices.md has what was measured.
GPU_WORK = 3e7
MALLOC_TRIM_THRESHOLD, MALLOC_MAX_MAPPED = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h.
PROBE = """
import ctypes, sys
blas = ctypes.CDLL(sys.argv[1])
three, nine = (ctypes.c_float * 1)(3), (ctypes.c_float * 1)()
one, zero = ctypes.c_float(1), ctypes.c_float(0)
blas.cblas_sgemm(101, 111, 111, 1, 1, 1, one, three, 1, three, 1, zero, nine, 1)
sys.exit(nine[0] != 9)
"""


def prepare_device(name: str, threads: int | None, tf32: bool = False) -> tuple[str, list[str]]:
    """Get MLX ready for `name` (auto, cpu or gpu); returns (cpu, gpu or auto, notes for the user).

    The device returned is MLX's default from now on. With `auto` that is the CPU, and there is a choice, which
    `choose_device` makes. `threads` are those of the BLAS, None is one. `tf32` lets a GPU round the factors
    of float32 products. Raises `UserError`.
    """
    if importlib.util.find_spec("mlx") is None or importlib.util.find_spec("mlx.core") is None:  # any folder is an mlx
        extra = "" if sys.platform == "darwin" else "; add the extra `cpu` or `cuda` of this project"
        raise UserError(f"the learner needs MLX, which is not installed{extra}")
    os.environ[TF32] = str(int(tf32))  # MLX reads it when it is imported, or at its first product
    notes = []
    threads = threads or 1
    if name != "gpu":
        os.environ.setdefault(BREADTH, ALL_STREAMS)
    if sys.platform == "darwin":
        os.environ[ACCELERATE_THREADS] = str(threads)  # Accelerate reads it at its first product.
    if sys.platform == "linux":
        keep_freed_memory()
    if sys.platform == "linux" and name != "gpu":  # A GPU needs neither.
        notes += preload_openblas(threads)
        if not shutil.which("g++"):
            notes.append("no C++ compiler (g++): MLX cannot fuse its kernels, and updates take about twice as long")
    fault = gpu_fault()
    if name == "gpu" and fault:
        raise UserError(f"--device gpu: {fault}; use --device cpu, or install the extra `cuda` on Linux")
    use_device("gpu" if name == "gpu" else "cpu")
    if name == "auto":
        return ("cpu" if fault else "auto"), notes
    return name, notes


def gpu_fault() -> str:
    """Why MLX cannot compute on a GPU here; empty where it can."""
    import mlx.core as mx

    if not mx.is_available(mx.Device(mx.gpu)):
        return "MLX finds no GPU here"
    try:  # A virtual machine or a sandbox may show a GPU that computes nothing.
        mx.eval(mx.add(mx.array(1.0), mx.array(1.0), stream=mx.Device(mx.gpu)))
    except Exception as error:
        return f"MLX finds a GPU and cannot compute on it ({error_line(error)})"
    return ""


def gpu_memory() -> dict[str, int]:
    """By the names of metrics: the most bytes that this process has needed of its GPU, and how many there are."""
    import mlx.core as mx

    facts = mx.device_info()
    names = ("max_recommended_working_set_size", "total_memory", "memory_size")  # Metal tells the first, CUDA others.
    size = next((int(facts[name]) for name in names if name in facts), 0)
    return {GPU_PEAK: mx.get_peak_memory(), GPU_SIZE: size} if size else {}


def use_device(name: str) -> None:
    """Make the device `name` (cpu or gpu) MLX's default."""
    import mlx.core as mx

    mx.set_default_device(mx.Device(mx.gpu if name == "gpu" else mx.cpu))


def choose_device(parameters: int, samples: int, has_images: bool, recurrent: bool) -> tuple[str, str]:
    """(cpu or gpu, why) for steps of `samples` each on a network of so many parameters, where there are both.

    Each operation on a GPU has to be launched. A step of a small network is a hundred launches with little to do in
    each. A recurrent one has launches for each time step.
    """
    words = f"{parameters:,} parameters, {samples:,} samples a step"
    if has_images:
        return "gpu", f"a convolutional network ({words})"
    if recurrent:
        return "cpu", f"a recurrent network ({words})"
    if parameters * samples < GPU_WORK:
        return "cpu", f"a small network ({words})"
    return "gpu", f"a large network ({words})"


def keep_freed_memory() -> None:
    """Let malloc keep what is freed. By default it maps large arrays anew for each step, page by page: a third of a
    convolution's time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # Only glibc has it.
        libc.mallopt(MALLOC_MAX_MAPPED, 0)
        libc.mallopt(MALLOC_TRIM_THRESHOLD, 2**31 - 1)


def preload_openblas(threads: int) -> list[str]:
    """Load an OpenBLAS whose symbols take precedence over the slow BLAS in MLX's wheels for Linux; returns notes."""
    if importlib.util.find_spec(OPENBLAS_PACKAGE) is None:
        return [_openblas_note()]
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
        ctypes.CDLL(str(path), mode=os.RTLD_GLOBAL)
    limit_blas_threads(threads)
    return []


def limit_blas_threads(threads: int) -> None:
    """Let the OpenBLAS that was loaded, if any, use so many threads from now on."""
    everything = ctypes.CDLL(None)
    if hasattr(everything, "openblas_set_num_threads"):
        everything.openblas_set_num_threads(threads)


def _openblas_note() -> str:
    slow = "on the CPU, updates take two to four times as long"
    if platform.machine() == "x86_64":
        return f"OpenBLAS is not installed (package ngsolve-openblas): {slow}"
    return f"MLX's own BLAS is used, since there is no package with a faster one for {platform.machine()}: {slow}"


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
        for library in Path(core.origin).parent.parent.glob("mlx_c*.libs/lib*.so*"):  # The CPU's wheel or CUDA's.
            (folder / library.name).symlink_to(library)
            if library.name.startswith("libgfortran"):
                (folder / "libgfortran.so.5").symlink_to(library)
        yield folder / "libopenblas.so"


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])
