"""What a run records of itself: its rows, its manifest, and the environment that decides its bits. Effects only."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np

from jaxstyle import machine
from jaxstyle.errors import UserError
from jaxstyle.files import write_atomically, write_csv
from jaxstyle.runs import processes
from jaxstyle.runs.signals import Interrupted

COLUMNS = ("step", "evaluations", "seconds", "total", "content", "style", "tv")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "jaxopt", "numpy", "scipy", "pillow")

#: Of `environment`, what decides a result to the bit.
DECISIVE = (
    "versions",
    "backend",
    "device",
    "devices",
    "processes",
    "cpu",
    "cores",
    "settings",
    "code_sha256",
)

#: The statuses of a run that has come to its end.
ENDED = ("finished", "diverged")

#: What older manifests do not say.
BEFORE = {"devices": 1, "processes": 1}

#: How the names of packages begin that compute on a GPU: JAX's plugins and their libraries, cuDNN and cuBLAS first.
OF_GPU = ("jax-cuda", "jax-rocm", "nvidia-")

#: Variables that change what JAX computes, as the process was given them: a command adds what its flags say. NVIDIA's
#: is for its libraries.
_SETTINGS = {
    name: value
    for name, value in sorted(os.environ.items())
    if name.startswith(("JAX_", "XLA_", "NVIDIA_TF32_OVERRIDE")) and "CACHE" not in name
}


@processes.alone
def write_metrics(path: pathlib.Path, rows: np.ndarray) -> None:
    """Writes rows of `COLUMNS`; losses are float32, in the fewest digits that give them back exactly."""
    table = (
        [int(step), int(evaluations), f"{seconds:.6f}", *(str(np.float32(loss)) for loss in losses)]
        for step, evaluations, seconds, *losses in rows
    )
    write_csv(path, COLUMNS, table)


def read_metrics(path: pathlib.Path) -> np.ndarray:
    """Rows of `COLUMNS` as float64."""
    return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)


@processes.alone
def write_manifest(directory: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    # A file name that is not Unicode has lone surrogates; what takes their place is JSON for the same.
    write_atomically(directory / "manifest.json", text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def told(directory: pathlib.Path, manifest: Mapping[str, Any]) -> Iterator[None]:
    """Has the manifest say that what is done meanwhile is running, and how it ended unless it failed."""
    write_manifest(directory, {**manifest, "status": "running"})
    try:
        yield
    except Interrupted:
        write_manifest(directory, {**manifest, "status": "interrupted"})
        raise
    write_manifest(directory, {**manifest, "status": "finished"})


def read_manifest(directory: pathlib.Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = directory / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{str(path)!r}: no such file; a folder that a run has written is needed") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r}: cannot be read: {error}; an intact manifest is needed") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{str(path)!r}: is not a manifest; an intact one is needed")
    return manifest


@processes.alone
def find_manifest(directory: pathlib.Path) -> dict[str, Any] | None:
    """The manifest of a run, or None where there is none or it is damaged."""
    try:
        return read_manifest(directory)
    except UserError:
        return None


def environment(devices: int = 1) -> dict[str, Any]:
    """What decides a run's bits besides its flags and what they name: code, versions, devices, settings."""
    device = jax.devices()[0]
    return {
        "versions": _versions(device.platform),
        "backend": device.platform,
        "device": device.device_kind,
        "devices": devices,
        "processes": jax.process_count(),
        "cpu": _cpu_model(),
        "cores": machine.cores(),
        "settings": _SETTINGS,
        "code_sha256": _code_sha256(),
        "git_commit": _git_commit(),
    }


def decisive(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Of a manifest's environment, what decides bits: the hash of the code does, its commit adds nothing."""
    return {name: manifest.get(name, BEFORE.get(name)) for name in DECISIVE}


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by dotted names."""
    if not isinstance(value, Mapping):
        return {name: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{name}.{key}" if name else str(key))
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two mappings, by dotted name: the value before, the value now; None is none."""
    before, now = flat(before), flat(now)
    pairs = {name: (before.get(name), now.get(name)) for name in sorted(before.keys() | now.keys())}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def resumed(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[dict[str, Any]]:
    """The changes of environment in a run that goes on from a step, `resumed` in its manifest.

    Args:
      before: the manifest as it was left. Steps after `step` are made anew: changes there do not count.
      now: the manifest of this process.
      step: from which the run goes on.
    """
    changes = before.get("resumed", [])
    there = flat(decisive(before))
    for change in reversed([change for change in changes if change["step"] >= step]):
        there |= {name: pair[0] for name, pair in change["differs"].items()}
    differs = differences(there, decisive(now))
    kept = [change for change in changes if change["step"] < step]
    return kept + [{"step": step, "differs": differs}] * bool(differs)


@functools.cache
def _versions(backend: str) -> dict[str, str]:
    """Of Python and packages: elsewhere than on a CPU of those that compute there, too, as far as pip has them."""
    found = {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
    if backend == "cpu":
        return found
    every = {each.name.lower().replace("_", "-"): each.version for each in metadata.distributions()}
    return found | {name: every[name] for name in sorted(every) if name.startswith(OF_GPU)}


@functools.cache
def _cpu_model() -> str:
    return machine.cpuinfo("model name").partition(":")[2].strip() or platform.processor()


@functools.cache
def _code_sha256() -> str:
    """Of the sources of this package and of the commands, which are beside it in a clone, in it in a wheel."""
    package, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    commands = package / "experiments"
    commands = commands if commands.is_dir() else package.parent / "experiments"
    found = {path.relative_to(commands.parent): path for path in commands.glob("*.py")}
    for path in package.rglob("*.py"):
        if path.parent != commands:
            found[path.relative_to(package.parent)] = path
    for name in sorted(found):  # the same in both
        digest.update(str(name).encode() + b"\0" + found[name].read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def _git_commit() -> str | None:
    """The commit of the clone that the package runs from, if it does."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
