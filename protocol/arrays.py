"""The dtypes and the number of dimensions that an array from another process may have."""

import numpy as np

MAX_DIMENSIONS = 8
_INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
_NAMES = ["bool", *_INTEGERS, "float16", "float32", "float64"]
DTYPES = {np.dtype(name).str: np.dtype(name) for name in _NAMES}
