"""The commands. A clone has them as `experiments`, an installed wheel as `jaxstyle.experiments`."""

import os

# Before NumPy loads OpenBLAS, whose threads would wait busily and take the cores from XLA's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def spoken(command: str) -> str:
    """What starts a command, as one types it: where the wheel is installed there is `jaxstyle`."""
    return f"python -m experiments.{command}" if __name__ == "experiments" else f"jaxstyle {command}"
