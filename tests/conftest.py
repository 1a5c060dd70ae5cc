"""One BLAS thread, as in every process of a run; set before any test imports NumPy."""

import os

from protocol.threads import use_one_thread

use_one_thread(os.environ)
os.environ["STARTED_BY_TESTS"] = str(os.getpid())  # what every process that a test starts inherits
