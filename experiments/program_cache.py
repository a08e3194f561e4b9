"""The folder of compiled programs: those of JAX, and whole ones by what they are made of, which need no tracing.

JAX looks for a program by its text, which takes a second or two of Python to write. `compiled` knows it before, from
the code, the versions, the machine and what the program was traced for.

What a full disk or a kill left of a program is not met a second time. JAX writes one in place and never again where a
file is. One that was cut short is read, warned of and compiled at each start from then on.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import pickle
import platform
import re
import sys
import types
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from jaxstyle import files, machine
from jaxstyle.runs import journal

_WARNING = re.compile(
    r"Error (reading|writing) persistent compilation cache entry for '(.+?)': (.*)", re.DOTALL
)

_SAYS = {
    "reading": "a damaged program is there; it is compiled again",
    "writing": "cannot write there; compiled programs are not kept",
}


def compiled(
    key: Any, lower: Callable[[], jax.stages.Lowered], devices: Sequence[jax.Device]
) -> jax.stages.Compiled:
    """A program that is read from the folder where one of this key is there, or else lowered, compiled and kept.

    Args:
      key: what the program is traced for; what cannot be `spelled` is traced each time. Code, versions, machine and
        settings need not be told.
      lower: traces it.
      devices: it runs on.
    """
    folder = jax.config.jax_compilation_cache_dir
    if not folder or jax.process_count() > 1:  # where all must do the same
        return lower().compile()
    try:
        path = pathlib.Path(folder, f"program-{_digest(spelled((key, tuple(devices))))}")
    except TypeError:
        return lower().compile()
    if found := _read(path, devices):
        return found
    with _reading() as read:
        made = lower().compile()
    if not read:  # XLA cannot write again what it has read
        _keep(path, made)
    return made


@contextlib.contextmanager
def _reading() -> Iterator[list[str]]:
    """Is given an event for each program that JAX reads from the folder meanwhile."""
    found = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            found.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_listener(listen)


def spelled(value: Any) -> str:
    """What a value is, in the same words in each process that runs the same code.

    Raises:
      TypeError: it is of a kind that has no such words.
    """
    match value:
        case None | bool() | int() | float() | str() | bytes():
            return repr(value)
        case tuple() | list():
            return f"{type(value).__qualname__}({', '.join(map(spelled, value))})"
        case Mapping():
            return f"{{{', '.join(f'{spelled(name)}: {spelled(each)}' for name, each in value.items())}}}"
        case functools.partial():
            return f"partial{spelled((value.func, value.args, value.keywords))}"
        case type():
            return f"{value.__module__}.{value.__qualname__}"
        case types.FunctionType():
            # By its place, as several lambdas have one name, and by what it has from around it.
            place = list(value.__code__.co_positions())
            around = [cell.cell_contents for cell in value.__closure__ or ()]
            return f"{value.__module__}.{value.__qualname__}{spelled((place, value.__defaults__, around))}"
        case Mesh():
            return f"Mesh{spelled((dict(value.shape), tuple(value.devices.flat)))}"
        case jax.Device():
            return f"{value.platform}:{value.id}"
    raise TypeError(f"{type(value).__qualname__} cannot be spelled")


def _digest(text: str) -> str:
    """The name of a program in this environment."""
    environment = journal.decisive(journal.environment(jax.device_count()))
    # What was changed after the start, too.
    settings = {name: value for name, value in jax.config.values.items() if "cache" not in name}
    # What a CPU can do, where the system tells: those of one name differ, and may share a folder.
    instructions = machine.cpuinfo("flags", "Features") or platform.machine()
    given = (environment, settings, os.environ.get("XLA_FLAGS"), instructions, text)
    return hashlib.sha256(repr(given).encode()).hexdigest()


def _read(path: pathlib.Path, devices: Sequence[jax.Device]) -> jax.stages.Compiled | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    try:
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            raise ValueError("it is not whole")
        program, inside, outside = pickle.loads(zlib.decompress(data[32:]))
        _find_lapack()
        return serialize_executable.deserialize_and_load(
            program, inside, outside, devices[0].client, execution_devices=devices
        )
    except Exception as error:  # XLA and pickle raise what they like
        _warn("reading", path, error)
        _remove(path)
        return None


def _find_lapack() -> None:
    """Has JAX look for the LAPACK that a program calls, which it does when it lowers the first one that does.

    A program that was read without it ends the process (jax-ml/jax, issue 28908).
    """
    jax.jit(jax.lax.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), "float32"))


def _keep(path: pathlib.Path, program: jax.stages.Compiled) -> None:
    try:
        data = zlib.compress(pickle.dumps(serialize_executable.serialize(program)), 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, hashlib.sha256(data).digest() + data)
    except Exception as error:  # XLA and pickle raise what they like, and the program is there
        _warn("writing", path, error)


def _warn(what: str, path: pathlib.Path, why: object) -> None:
    """In JAX's words, which `watch` is made for."""
    message = f"Error {what} persistent compilation cache entry for '{path.name}': {why}"
    warnings.warn(message, stacklevel=2)


def watch(folder: str) -> None:
    """Has JAX's warnings of the folder told in a line each, once, and what they are about taken out of it."""
    told: set[str] = set()
    otherwise = warnings.showwarning

    def show(message: Warning | str, *where: Any, **also: Any) -> None:
        found = _WARNING.match(str(message))
        if not found:
            otherwise(message, *where, **also)
            return
        what, program, why = found.groups()
        if not os.path.isdir(folder):
            what = "writing"  # JAX makes the folder when it reads, and nothing is there that could be damaged
        remove(folder, program)
        if what not in told:
            told.add(what)
            print(f"--compilation_cache={folder}: {_SAYS[what]} ({' '.join(why.split())})", file=sys.stderr)

    warnings.filterwarnings("always", "Error .* persistent compilation cache")
    warnings.showwarning = show


def remove(folder: str, program: str) -> None:
    """Deletes what is there of a program, for all shapes: JAX does not tell which of them it met."""
    for path in pathlib.Path(folder).glob(f"{program}-*"):
        _remove(path)


def _remove(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):  # it is gone, or in a folder that others fill: then it is met again
        path.unlink()
