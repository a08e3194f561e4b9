"""What this process may use of the machine, and what that is."""

import contextlib
import os


def cores() -> int:
    """CPU cores that this process may use, where the system tells; else those that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpuinfo(*names: str) -> str:
    """The line of /proc/cpuinfo that begins with one of these names; nothing where a system has none."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line for line in file if line.startswith(names)), "")
    return ""
