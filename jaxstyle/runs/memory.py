"""How much memory a compiled program will take, and whether there is as much. This module asks the system."""

import contextlib
import ctypes
import os
import pathlib
from collections.abc import Iterator

import jax

from jaxstyle.errors import UserError


def required(compiled: jax.stages.Compiled) -> int:
    """Bytes that a program needs while it runs: its arguments, its results and what it holds in between."""
    analysis = compiled.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def available() -> int:
    """Bytes that this process may still take on the device that JAX runs on, its own buffers there included."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        statistics = device.memory_stats()
        return statistics["bytes_limit"]
    in_use = sum(array.nbytes for array in jax.live_arrays())
    return min(_free_on_host()) + in_use


def _free_on_host() -> Iterator[int]:
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            yield 1024 * int(line.split()[1])
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if os.path.exists(limit) and (text := pathlib.Path(limit).read_text().strip()) != "max":
            yield int(text) - int(pathlib.Path(used).read_text())


def check(needed: int, free: int, height: int, width: int) -> None:
    """Refuses a run that would not fit, before it is killed.

    Args:
      needed: bytes, see `required`; of an image of height × width pixels, to which they are nearly proportional.
      free: bytes, see `available`.

    Raises:
      UserError: there is not as much; the text tells the largest size that fits.
    """
    if needed > free:
        longer = int(max(height, width) * (free / needed) ** 0.5)
        raise UserError(
            f"--size: {width}x{height} needs {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are "
            f"free; about --size={longer} would fit"
        )


#: Programs that need less keep what they free; kept in pieces, it may come to twice what is needed.
KEEP_BELOW = 2**30


def _tune_malloc(**values: int) -> None:
    """Sets parameters of glibc's allocator (mallopt(3)); another C library is left alone."""
    parameters = {"trim_threshold": -1, "mmap_max": -4, "arena_max": -8}
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL("libc.so.6")
        for name, value in values.items():
            libc.mallopt(parameters[name], value)


def use_one_arena() -> None:
    """Has all threads allocate in one heap, which `keep_freed` needs; to be called before JAX starts any."""
    _tune_malloc(arena_max=1)


def keep_freed(needed: int) -> None:
    """Has the process keep what it frees, if the program that it is going to repeat needs little memory.

    XLA frees and allocates its buffers at every step. By default it gets fresh pages from the kernel each time, and
    faulting them in is a tenth of a step's time.

    Args:
      needed: bytes, see `required`.
    """
    if needed < KEEP_BELOW:
        _tune_malloc(mmap_max=0, trim_threshold=2**31 - 1)
