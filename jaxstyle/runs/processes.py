"""Several processes that make one run: process 0 decides and writes, the others compute with it. Effects only.

    join("10.0.0.1:4321", count=2, index=0)     # before JAX starts
    text = first(lambda: path.read_text())      # process 0 reads; all have what it read, or raise what it raised

All processes call these functions in the same order. One that is alone, which is the rule, waits for nobody.
"""

import contextvars
import faulthandler
import functools
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxstyle.errors import UserError

Value = TypeVar("Value")
Given = ParamSpec("Given")

#: Seconds after which a process that nothing is heard of has died, and all others end.
SILENCE = 30

#: Seconds that processes which have come to their end wait for those that have not; then all end.
PARTING = 10

#: Seconds in which all processes must have been started.
PATIENCE = 300.0

#: Bytes that processes tell each other at once: short news, and parts of what is longer.
_SHORT, _PART = 1024, 2**22

#: Whether process 0 is doing what it alone does: it does not wait for the others then.
_busy = contextvars.ContextVar("busy", default=False)


def join(coordinator: str | None, count: int | None, index: int) -> None:
    """Makes this process one of several, before JAX starts; their devices are then JAX's.

    What C++ writes goes to `jaxstyle.runs.witness` from here on, which tells in one line if others were lost: that is
    the end of this process. Only process 0 prints.

    Args:
      coordinator: HOST:PORT of process 0; None where JAX finds it by itself, as under SLURM.
      count: of the processes; None where JAX finds it.
      index: of this process.

    Raises:
      UserError: process 0 is not to be found, or cannot listen.
    """
    if index and coordinator:
        _await_listener(coordinator)
    _call_witness(index)
    if index:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - to the end
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM
    jax.config.update("jax_check_proxy_envs", False)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            None if coordinator is None else index,
            cluster_detection_method=None if coordinator is None else "deactivate",
            initialization_timeout=int(PATIENCE),
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=PARTING,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--coordinator={coordinator or ''}: {error}; a free HOST:PORT of process 0 is needed"
        ) from error


def _await_listener(coordinator: str) -> None:
    """Waits until somebody listens there: JAX would end this process without asking Python where nobody does."""
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
            return
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() >= until:
                raise UserError(
                    f"--coordinator={coordinator}: {error.strerror or error}; process 0 must listen there "
                    f"within {PATIENCE:.0f} s"
                ) from error
            time.sleep(0.1)


def _call_witness(index: int) -> None:
    """Has a process of its own read what C++ writes: JAX ends a process that lost others without asking Python."""
    read, write = os.pipe()
    script = pathlib.Path(__file__).with_name("witness.py")
    subprocess.Popen([sys.executable, script, pathlib.Path(sys.argv[0]).stem, str(index)], stdin=read)
    os.close(read)
    for number in (1, 2):  # Python's own streams have others: see `launch.run`
        os.dup2(write, number)
    os.close(write)
    faulthandler.enable(2)  # what Python was doing then tells nothing


def several() -> bool:
    """Whether this process is one of several, as was decided before JAX started."""
    return jax.distributed.is_initialized()


def first(make: Callable[[], Value]) -> Value:
    """What process 0 makes, in all processes; or the error that it raises there, in all.

    Args:
      make: is called in process 0 alone. What it calls of this module is as if that was alone.
    """
    if _busy.get() or not several():
        return make()
    value, error, told = None, None, b""
    if jax.process_index() == 0:
        before = _busy.set(True)
        try:
            value = make()
        except Exception as raised:
            error = raised
        finally:
            _busy.reset(before)
        told = pickle.dumps((value, error))
    told = _tell(told)
    if jax.process_index():
        value, error = pickle.loads(told)
    if error:
        raise error
    return value


def alone(function: Callable[Given, Value]) -> Callable[Given, Value]:
    """A function that process 0 alone calls: see `first`."""

    @functools.wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Value:
        return first(functools.partial(function, *args, **kwargs))

    return call


def every(number: int) -> list[int]:
    """A number that is not negative from each process, in their order."""
    if _busy.get() or not several():
        return [number]
    found = multihost_utils.process_allgather(np.frombuffer(number.to_bytes(8), np.uint8))
    return [int.from_bytes(each.tobytes()) for each in found]


def now() -> float:
    """Seconds by the clock of process 0, from which all decide the same."""
    return first(time.perf_counter)


def check_alike(facts: Mapping[str, Any]) -> None:
    """Makes sure that all processes have the same facts: from others they would not compute the same.

    Raises:
      UserError: one has not.
    """
    if not several():
        return
    wanted = first(lambda: facts)
    if not any(every(int(facts != wanted))):
        return
    for name in wanted:
        differs = every(int(facts.get(name) != wanted.get(name)))
        if any(differs):
            raise UserError(
                f"process {differs.index(1)} differs from process 0 in {name}; give all the same command and files, "
                "on machines that are alike"
            )


def leave(status: int) -> None:
    """Has this process, which has come to an end, wait for others no longer than it takes them to end as well."""
    if several():
        late = threading.Timer(PARTING / 2, os._exit, [status])
        late.daemon = True
        late.start()


def await_verdict(error: Exception) -> None:
    """After an error that may come of the loss of others, waits until JAX knows of it, which ends this process."""
    lost = "UNKNOWN", "UNAVAILABLE", "INTERNAL", "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED"
    if several() and str(error).startswith(lost):
        time.sleep(SILENCE + PARTING)


def _tell(data: bytes) -> bytes:
    """The bytes that process 0 gives; what others give is not looked at."""
    head = np.frombuffer((len(data).to_bytes(8) + data)[:_SHORT].ljust(_SHORT, b"\0"), np.uint8)
    head = multihost_utils.broadcast_one_to_all(head).tobytes()
    size = int.from_bytes(head[:8])
    if size <= _SHORT - 8:
        return head[8 : 8 + size]
    parts = (
        np.frombuffer(data[begin : begin + _PART].ljust(_PART, b"\0"), np.uint8)
        for begin in range(0, size, _PART)
    )
    return b"".join(multihost_utils.broadcast_one_to_all(part).tobytes() for part in parts)[:size]
