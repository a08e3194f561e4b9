"""How much memory a compiled program will take, and whether there is as much. This module asks the system."""

import contextlib
import ctypes
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator

import jax

from jaxstyle.errors import UserError
from jaxstyle.runs import processes


def required(compiled: jax.stages.Compiled) -> int:
    """Bytes that a program needs while it runs: its arguments, its results and what it holds in between."""
    analysis = compiled.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def available(devices: Iterable[jax.Device] | None = None) -> int:
    """Bytes that this process may still take on each of some devices, its own buffers there included.

    Those of a CPU share one memory. By default the device that JAX runs on. Of several processes, the least of any.
    Where nothing tells, there is no limit. Of a GPU that others use as well, JAX does not tell what they have taken.
    """
    own = jax.local_devices()
    devices = [device for device in devices or own[:1] if device in own]
    if devices[0].platform != "cpu":
        least = min((device.memory_stats() or {}).get("bytes_limit", sys.maxsize) for device in devices)
    else:
        in_use = sum(array.nbytes for array in jax.live_arrays())
        least = (min(_free_on_host(), default=sys.maxsize) + in_use) // len(devices)
    return min(processes.every(least))


#: The files of a control group's limit, of what it uses and of what that is, and the names of its page cache there:
#: of version 2, and of version 1.
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", ("active_file", "inactive_file")),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        ("total_active_file", "total_inactive_file"),
    ),
)


def _free_on_host(root: pathlib.Path = pathlib.Path("/")) -> Iterator[int]:
    """What the system, and a container around this process, still have; each that can be asked."""
    with contextlib.suppress(OSError):  # only Linux has it
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield 1024 * int(line.split()[1])
    with contextlib.suppress(AttributeError, ValueError):  # nor has Windows this
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = root / "sys/fs/cgroup"
    for limit, used, statistics, cache in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: there is no limit
            whole, taken = (int((group / name).read_text()) for name in (limit, used))
            facts = dict(line.split() for line in (group / statistics).read_text().splitlines())
            # The page cache counts as used, but the kernel gives it up when memory is asked for.
            yield whole - taken + sum(int(facts.get(name, 0)) for name in cache)


def at_size(needed: int, constant: int, pixels: float) -> int:
    """Bytes that a program needs for an image of `pixels` times as many pixels.

    Args:
      needed: bytes, see `required`.
      constant: those of them that do not grow with the image: filters and targets of style pictures.
      pixels: ratio of the numbers of pixels.
    """
    return int(constant + (needed - constant) * pixels)


def check(needed: int, free: int, height: int, width: int, constant: int = 0, helps: str = "") -> None:
    """Refuses a run that would not fit, before it is killed.

    Args:
      needed: bytes, see `required`; of an image of height × width pixels, to which all but the `constant` ones are
        nearly proportional.
      free: bytes, see `available`.
      constant: see `at_size`.
      helps: the flag that would need less, if there is one.

    Raises:
      UserError: there is not as much; the text tells the largest size that fits.
    """
    if needed > free:
        longer = int(max(height, width) * (max(free - constant, 0) / (needed - constant)) ** 0.5)
        raise UserError(
            f"--size: {width}x{height} needs {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are "
            f"free; {f'about --size={longer}' if longer else 'no size'} would fit"
            + (f", and {helps} takes less" if helps else "")
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


def give_back() -> None:
    """Gives the system what the process has freed, after what it does once: compiling, and evaluating targets."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def keep_freed(needed: int) -> None:
    """Has the process keep what it frees from now on, if the program that it is going to repeat needs little memory.

    XLA frees and allocates its buffers at every step. By default it gets fresh pages from the kernel each time, and
    faulting them in is a tenth of a step's time.

    Args:
      needed: bytes, see `required`.
    """
    give_back()
    if needed < KEEP_BELOW:
        _tune_malloc(mmap_max=0, trim_threshold=2**31 - 1)
