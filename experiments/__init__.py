"""The commands."""

import os

# Before NumPy loads OpenBLAS, whose threads would wait busily and take the cores from XLA's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
