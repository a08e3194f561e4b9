"""One run in its directory: flags, manifest, metrics, checkpoints and picture. Effects only.

    DIR/run.flags       the flags, so that `--flagfile=DIR/run.flags --workdir=OTHER` makes the run again
    DIR/manifest.json   versions, devices, inputs by SHA-256, shapes, compile seconds, status
    DIR/metrics.csv     a row for each iterate
    DIR/image.png       the result, and beside that of one photo DIR/losses.png, its loss by step
    DIR/snapshots/      the picture every so many steps, if asked for, and DIR/animation.webp of them
    DIR/checkpoints/    what resuming needs
    DIR/lock            held while a process writes there

A file appears whole or not at all: it is written under another name, synced and renamed.
"""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstyle import training
from jaxstyle.checkpoints import Checkpoints
from jaxstyle.errors import UserError
from jaxstyle.files import DRAFTS, write_atomically

FILES = ("manifest.json", "metrics.csv", "image.png", "losses.png", "animation.webp")
FOLDERS = ("checkpoints", "snapshots")
COLUMNS = ("step", "evaluations", "seconds", "total", "content", "style", "tv")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "jaxopt", "numpy", "scipy", "pillow")

#: Variables that change what JAX computes, as the process was given them: a command adds what its flags say.
_SETTINGS = {
    name: value
    for name, value in sorted(os.environ.items())
    if name.startswith(("JAX_", "XLA_")) and "CACHE" not in name
}


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The run was told to stop by `signal` and has written what resuming needs."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number


class Result(NamedTuple):
    """How a run ended: the last finite image, its rows (see `COLUMNS`) and the status in its manifest."""

    image: np.ndarray
    rows: np.ndarray
    status: str


# --- files --------------------------------------------------------------------------------------------------------


def write_metrics(path: pathlib.Path, rows: np.ndarray) -> None:
    """Writes rows of `COLUMNS`; losses are float32, in the fewest digits that give them back exactly."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for step, evaluations, seconds, *losses in rows:
        values = (str(np.float32(loss)) for loss in losses)
        writer.writerow([int(step), int(evaluations), f"{seconds:.6f}", *values])
    write_atomically(path, text.getvalue().encode())


def read_metrics(path: pathlib.Path) -> np.ndarray:
    """Rows of `COLUMNS` as float64."""
    return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)


def write_manifest(directory: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    # A file name that is not Unicode has lone surrogates; what takes their place is JSON for the same.
    write_atomically(directory / "manifest.json", text.encode("utf-8", "backslashreplace"))


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


def environment() -> dict[str, Any]:
    """What decides a run's bits besides its flags and what they name: code, versions, devices, settings."""
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "backend": device.platform,
        "device": device.device_kind,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "settings": _SETTINGS,
        "code_sha256": _code_sha256(),
        "git_commit": _git_commit(),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _code_sha256() -> str:
    """Of the sources of this package and of the package that runs it."""
    digest = hashlib.sha256()
    folder = pathlib.Path(__file__).parent
    for path in sorted([*folder.glob("*.py"), *folder.parent.glob("experiments/*.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


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


# --- who may write where ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed(directory: pathlib.Path) -> Iterator[None]:
    """Holds the directory for this process; a lock dies with its process, however that ends.

    Raises:
      UserError: the directory cannot be made or written, or another process holds it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / "lock", "ab+", buffering=0)  # noqa: SIM115
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--workdir={directory}: cannot write there: {reason}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(f"--workdir={directory}: cannot lock it: {error.strerror}") from error
            file.seek(0)
            holder = file.read().decode(errors="replace") or "another process"
            raise UserError(
                f"--workdir={directory}: {holder} is writing there; wait for it or choose another"
            ) from None
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
        except OSError as error:
            raise UserError(f"--workdir={directory}: cannot write there: {error.strerror}") from error
        yield


def begin(
    directory: pathlib.Path, flags: str, overwrite: bool, changeable: Collection[str] = frozenset()
) -> str:
    """Decides what there is to do in a claimed directory and records the flags.

    Args:
      directory: the run's.
      flags: text of `run.flags`.
      overwrite: whether a run of other flags may be deleted.
      changeable: names of flags that may differ when the run goes on; what they are now is recorded.

    Returns:
      "new", "unfinished", or the status of a run that has ended: "finished" or "diverged".

    Raises:
      UserError: there is a run of other flags, or a file that no run has written.
    """
    record = directory / "run.flags"
    try:
        if not record.exists():
            for name in (*FILES, *FOLDERS):
                if (directory / name).exists():
                    raise UserError(
                        f"--workdir={directory}: holds {name!r}, which is of no run; choose another folder"
                    )
        elif overwrite:
            for name in FILES:
                (directory / name).unlink(missing_ok=True)
            for name in FOLDERS:
                if (directory / name).exists():
                    shutil.rmtree(directory / name)
            record.unlink()  # the last, so that nothing of this run can pass for one of other flags
        for draft in (*directory.glob(DRAFTS), *directory.glob(f"snapshots/{DRAFTS}")):
            draft.unlink()
        if not record.exists():
            write_atomically(record, flags.encode())
            return "new"
        before, now = _by_name(record.read_text("utf-8", "replace")), _by_name(flags)
        differing = {name for name in before | now if before.get(name) != now.get(name)}
        refused, status = sorted(differing.difference(changeable)), _status(directory)
        if differing and not refused:
            write_atomically(record, flags.encode())
        if not refused and status != "unfinished":
            for path in directory.glob("checkpoints/*"):  # of a process killed in its last moment
                shutil.rmtree(path)
    except OSError as error:
        raise UserError(f"--workdir={directory}: cannot write there: {error.strerror or error}") from error
    if refused:
        raise UserError(
            f"--workdir={directory}: a run of other flags is there (they differ in {', '.join(refused)}); "
            "choose another, or --overwrite it"
        )
    return status


def _by_name(flags: str) -> dict[str, list[str]]:
    """The lines of a `run.flags` by the name of their flag."""
    found: dict[str, list[str]] = {}
    for line in flags.splitlines():
        found.setdefault(line.lstrip("-").partition("=")[0].removeprefix("no"), []).append(line)
    return found


def _status(directory: pathlib.Path) -> str:
    try:
        status = read_manifest(directory).get("status")
    except UserError:
        return "unfinished"
    whole = all((directory / name).exists() for name in ("image.png", "metrics.csv"))
    return status if status in ("finished", "diverged") and whole else "unfinished"


# --- the loop -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list instead of stopping; a second one stops at once."""
    received: list[int] = []

    def receive(number: int, _) -> None:
        received.append(number)
        give_back()

    def give_back() -> None:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)

    wakeup = signal.set_wakeup_fd(-1)  # by which a command hears of signals at once
    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        give_back()


class Programs(NamedTuple):
    """What a stage needs, compiled.

    Attributes:
      begin: from the last state of the stage before, or None, the state to begin with.
      structure: a state of the same structure, shapes and dtypes, abstract or not.
      advance: one step.
      result: the image [height, width, 3] that a state has made.
    """

    begin: Callable[[training.TransferState | None], training.TransferState]
    structure: training.TransferState
    advance: Callable[[training.TransferState], tuple[training.TransferState, training.Metrics]]
    result: Callable[[training.TransferState], jax.Array]


class Stage(NamedTuple):
    """Steps of a run at one size, up to the step `last`. `load` compiles them, when it is their turn."""

    last: int
    load: Callable[[], Programs]


def execute(
    directory: pathlib.Path,
    manifest: Mapping[str, Any],
    stages: Sequence[Stage],
    *,
    save: Callable[[np.ndarray], None],
    report: Callable[[np.ndarray], None],
    watch: Callable[[int, Callable[[], np.ndarray]], None] = lambda step, image: None,
    checkpoint_seconds: float,
) -> Result:
    """Runs all stages to their last step, from the newest checkpoint if there is one.

    Args:
      directory: claimed and begun.
      manifest: written with `status` and the results added; what `load` changes in it is written too.
      stages: one or more, in order. A step that a stage begins at has the metrics of the stage before.
      save: writes an image [height, width, 3] as the result.
      report: is told each row of `COLUMNS` as it comes.
      watch: is told each step after its row, with a function that gives the image made so far.
      checkpoint_seconds: time between checkpoints, more where writing one takes more than 2.5 % of it;
        0 is one after every step, whatever it takes.

    Raises:
      Interrupted: a signal asked for it; the same call goes on from there.
      UserError: the disk is full or fails; the last checkpoint stays.
    """
    steps = stages[-1].last
    rows = np.full((steps + 1, len(COLUMNS)), np.nan)
    kept = None  # step of the newest checkpoint
    loaded: dict[int, Programs] = {}

    def load(number: int) -> Programs:
        if number not in loaded:
            loaded.clear()  # and with it the memory of the stage before
            loaded[number] = stages[number].load()
        return loaded[number]

    def stage_of(step: int) -> int:
        return next(number for number, stage in enumerate(stages) if step <= stage.last)

    def record(state: training.TransferState, seconds: float) -> int:
        step, evaluations, *losses, _, _ = jax.device_get(training.metrics(state))
        rows[step] = step, evaluations, seconds, *losses
        report(rows[step])
        watch(int(step), lambda: np.asarray(loaded[current].result(state)))
        return int(step)

    def keep(status: str, state: training.TransferState, step: int, **facts: Any) -> None:
        nonlocal kept
        if status in ("running", "interrupted") and step != kept:
            checkpoints.save(step, state, rows)
            kept = step
        write_metrics(directory / "metrics.csv", rows[: step + 1])
        write_manifest(directory, dict(manifest) | {"status": status, "steps_done": step} | facts)

    try:
        checkpoints = Checkpoints(directory)
        write_manifest(directory, dict(manifest) | {"status": "running", "steps_done": 0})
        restored = checkpoints.restore(lambda step: load(stage_of(step)).structure)
        if restored is None:
            state, step, seconds, current = None, 0, 0.0, -1
        else:
            state, rows = restored
            step = kept = int(state.step)
            seconds, current = rows[step, COLUMNS.index("seconds")], stage_of(step)
        load(max(current, 0))  # a signal that comes while XLA compiles ends the process: nothing is lost
        with interruptible() as signals:
            written, cost = time.perf_counter(), 0.0
            facts: dict[str, Any] = {}
            for number in range(max(current, 0), len(stages)):
                programs = load(number)
                if number > current:
                    begun = time.perf_counter()
                    state = jax.block_until_ready(programs.begin(state))
                    seconds += time.perf_counter() - begun
                    current = number
                    if number == 0:
                        step = record(state, seconds)
                last = stages[number].last
                while step < last and not state.diverged and not state.converged:
                    if signals:
                        keep("interrupted", state, step)
                        raise Interrupted(signals[0])
                    begun = time.perf_counter()
                    state, _ = jax.block_until_ready(programs.advance(state))
                    ended = time.perf_counter()
                    seconds += ended - begun
                    if state.diverged:
                        break
                    step = record(state, seconds)
                    if ended - written > max(checkpoint_seconds, 40 * cost) or not checkpoint_seconds:
                        keep("running", state, step)
                        written = time.perf_counter()
                        cost = written - ended
                if state.diverged:
                    break
                if state.converged:
                    # The iterate will not change any more at this size: neither will its losses.
                    facts["converged_at"] = step
                    rows[step + 1 : last + 1] = rows[step]
                    rows[step + 1 : last + 1, 0] = np.arange(step + 1, last + 1)
                    state, step = state._replace(step=jnp.int32(last)), last
            image = np.asarray(programs.result(state))
            status = "diverged" if state.diverged else "finished"
            save(image)
            keep(status, state, step, seconds=seconds, evaluations=int(rows[step, 1]), **facts)
            checkpoints.clear()
            if signals:
                raise Interrupted(signals[0])
            return Result(image, rows[: step + 1], status)
    except OSError as error:
        raise UserError(
            f"--workdir={directory}: cannot write there: {error.strerror or error}; "
            "what is there is kept, and the same command goes on from it"
        ) from error
