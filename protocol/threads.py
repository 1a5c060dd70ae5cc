"""One BLAS thread for NumPy: another number of threads may give other low bits."""

from collections.abc import MutableMapping


def use_one_thread(environ: MutableMapping[str, str]) -> None:
    """Set, in `environ`, what NumPy's BLAS reads when it is loaded."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "MKL_NUM_THREADS"):
        environ[name] = "1"
