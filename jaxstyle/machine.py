"""What this process may use of the machine."""

import os


def cores() -> int:
    """CPU cores that this process may use, where the system tells; else those that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
