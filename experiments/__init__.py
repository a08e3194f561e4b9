"""The commands. A clone has them as `experiments`, an installed wheel as `jaxstyle.experiments`."""

import os
import signal
import sys

# Before NumPy loads OpenBLAS, whose threads would wait busily and take the cores from XLA's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# While a command is imported, Ctrl-C ends it at once. Python would raise KeyboardInterrupt wherever it is, often in a
# callback of JAX's, where it is lost. "-m" is Python's name while it looks for the module of `python -m`.
_command = os.path.basename(sys.argv[0]).partition(".")[0] in ("-m", "jaxstyle")
if _command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def spoken(command: str) -> str:
    """What starts a command, as one types it: where the wheel is installed there is `jaxstyle`."""
    return f"python -m experiments.{command}" if __name__ == "experiments" else f"jaxstyle {command}"
