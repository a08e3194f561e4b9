"""The threads of LAPACK, beside those of XLA. Effects only."""

import scipy.linalg.cython_lapack  # noqa: F401 - which JAX calls on a CPU; what is not loaded cannot be limited
import threadpoolctl


def one_for_lapack() -> threadpoolctl.threadpool_limits:
    """Has LAPACK keep to the thread that calls it, within a `with`; for commands `experiments/__init__.py` does so.

    The threads of OpenBLAS, which SciPy brings, spin for 2²⁶ cycles after each call, on the cores where XLA goes on:
    two of them make an evaluation with mean and covariance take 1.4 times as long as one.
    """
    return threadpoolctl.threadpool_limits(1, "blas")
