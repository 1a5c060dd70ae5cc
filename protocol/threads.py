"""One thread for NumPy's BLAS, since another number may give other low bits, and for OpenCV, which gains nothing."""

from collections.abc import MutableMapping


def use_one_thread(environ: MutableMapping[str, str]) -> None:
    """Set, in `environ`, what the libraries read when they are loaded."""
    blas = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "MKL_NUM_THREADS")
    for name in (*blas, "OPENCV_FOR_THREADS_NUM"):
        environ[name] = "1"
