"""One run in its directory: flags, manifest, metrics, checkpoints and picture. Effects only.

    DIR/run.flags       the flags, so that `--flagfile=DIR/run.flags --workdir=OTHER` makes the run again
    DIR/manifest.json   versions, devices, inputs by SHA-256, shapes, compile seconds, status
    DIR/metrics.csv     a row for each iterate
    DIR/image.png       the result, and beside that of one photo DIR/losses.png, its loss by step
    DIR/regions/        masks of the regions that were found, if asked for
    DIR/snapshots/      the picture every so many steps, if asked for, and DIR/animation.webp of them
    DIR/checkpoints/    what resuming needs
    DIR/.jaxstyle.lock  while a process writes there

A file appears whole or not at all: it is written under another name, synced and renamed.
"""

import contextlib
import itertools
import os
import pathlib
import platform
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import filelock

from jaxstyle.errors import UserError
from jaxstyle.files import DRAFTS, remove, write_atomically
from jaxstyle.runs import processes
from jaxstyle.runs.journal import ENDED, find_manifest

#: The commands' files and folders, of any of them.
FILES = (
    *("manifest.json", "metrics.csv", "image.png", "losses.png", "animation.webp"),
    *("summary.csv", "pictures.png", "report.html", "claims.json"),
    *("sweep.csv", "curves.csv", "sensitivity.png", "measured.json", "curves.npz", "tables.md"),
    "plane.png",
    *(
        f"{problem}-{figure}.png"
        for problem in ("photo", "noise", "article", "wasserstein")
        for figure in ("curves", "profile", "ranks", "plane", "rates")
    ),
    *(f"experiment{number}{of}.png" for number in range(1, 7) for of in ("", "-seconds", "-pictures")),
)
FOLDERS = ("checkpoints", "snapshots", "arms", "parts", "jobs", "tensorboard", "regions")
LOCK = ".jaxstyle.lock"

#: Files and folders of a run that are there before it has anything to keep.
_EARLY = {"run.flags", "manifest.json", "report.html", LOCK, "regions", "tensorboard"}


class HeldError(UserError):
    """Another process holds the directory."""


class OtherRunError(UserError):
    """A run of other flags is in the directory."""


@contextlib.contextmanager
def claimed(directory: pathlib.Path) -> Iterator[None]:
    """Holds the directory for this process; a lock dies with its process, however that ends.

    What fails in the directory while it is held is told in one line.

    Raises:
      UserError: the directory cannot be made or written, its disk is full, or (`HeldError`) another process holds it.
    """
    with _told(directory):
        try:
            processes.first(lambda: directory.mkdir(parents=True, exist_ok=True))
        except ValueError as error:  # a null character in the path
            raise UserError(f"--workdir={directory}: cannot write there: {error}") from error
        with locked(directory), _withdrawn(directory):
            yield


@contextlib.contextmanager
def _withdrawn(directory: pathlib.Path) -> Iterator[None]:
    """Deletes the record of a run that is refused before it has anything to keep, as one may be once it is compiled.

    One of other flags may then begin there.
    """
    record = directory / "run.flags"
    before = record.exists()
    try:
        yield
    except UserError:
        if record.exists() and not before and not processes.several():
            places = [directory / name for name in (*FILES, *FOLDERS)]
            files = {path for place in places for path in (place, *place.rglob("*")) if path.is_file()}
            if all(_EARLY & {*path.relative_to(directory).parts} for path in files):
                _delete(directory, ())
        raise


@contextlib.contextmanager
def _told(directory: pathlib.Path) -> Iterator[None]:
    """Turns an error of the system, unless it names a file elsewhere, into the user's one line."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            own = pathlib.Path(os.path.abspath(directory))
            named = pathlib.Path(os.path.abspath(os.fsdecode(error.filename)))
            if not named.is_relative_to(own) and named not in own.parents:  # which are made with it
                raise
        kept = "what is there is kept, and the same command, without --overwrite, goes on from it"
        rest = f"; {kept}" if os.path.exists(directory / "run.flags") else ""
        raise UserError(
            f"--workdir={directory}: cannot write there: {error.strerror or error}{rest}"
        ) from error


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
    """Holds a directory's lock, whose file says who does; where nobody may write what is locked, it says nothing.

    Of several processes, the first holds it for all.

    Raises:
      HeldError: another process does.
    """
    with contextlib.ExitStack() as held:
        processes.first(lambda: held.enter_context(_locked(directory)))
        yield


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[None]:
    path = directory / LOCK
    lock = filelock.FileLock(path, timeout=0.5)  # longer than `held` has it
    try:
        lock.acquire()
    except filelock.Timeout:
        holder = ""
        with contextlib.suppress(OSError):
            holder = path.read_text("utf-8", "replace")
        raise HeldError(
            f"--workdir={directory}: {holder or 'another process'} is writing there; wait for it or choose another"
        ) from None
    try:
        try:
            with contextlib.suppress(PermissionError):
                path.write_text(f"process {os.getpid()} on {platform.node()}", "utf-8")
            yield
        finally:
            with contextlib.suppress(PermissionError):
                path.unlink(missing_ok=True)
    finally:
        lock.release()


def held(directory: pathlib.Path) -> bool:
    """Whether a process holds the directory: not by the lock's file alone, which one that was killed has left."""
    path = directory / LOCK
    try:
        if path.exists():
            with filelock.FileLock(path, blocking=False):
                pass
    except (filelock.Timeout, OSError):  # an OSError: of another user, who may
        return True
    return False


def names(name: str) -> Iterator[str]:
    """NAME, NAME-2, NAME-3 …, made safe for a file's name, of which most systems take 255 bytes."""
    stem = re.sub(r"[^\w.,=+-]", "_", name).strip(".").encode()[:200].decode(errors="ignore") or "run"
    return (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))


@processes.alone
def find(
    parent: pathlib.Path, name: str, flags: str, changeable: Collection[str] = frozenset()
) -> pathlib.Path:
    """The first of NAME, NAME-2, NAME-3 … in a folder that is free, or holds what the same flags began.

    Args:
      parent, name: see `names`.
      flags, changeable: as in `begin`.
    """
    for safe in names(name):
        directory = parent / safe
        if not directory.exists():
            return directory
        with contextlib.suppress(PermissionError):  # of another user
            if directory.is_dir() and not {path.name for path in directory.iterdir()} - {LOCK}:
                return directory
            if not differing(flags_of(directory), flags).difference(changeable):
                return directory
    raise AssertionError("numbers do not end")


@processes.alone
def begin(
    directory: pathlib.Path,
    flags: str,
    overwrite: bool,
    changeable: Collection[str] = frozenset(),
    inputs: Mapping[str, Any] | None = None,
    reads: Iterable[str] = (),
) -> str:
    """Decides what there is to do in a claimed directory and records the flags.

    Args:
      directory: the run's.
      flags: text of `run.flags`.
      overwrite: whether a run of other flags may be deleted.
      changeable: names of flags that may differ when the run goes on; what they are now is recorded.
      inputs: what the manifest will say of the run's `pictures` and `weights`, by which a run that has begun
        is known again.
      reads: what else it is made of, which must not be deleted with the run that is there.

    Returns:
      "new", "unfinished", or the status of a run that has ended: "finished" or "diverged".

    Raises:
      UserError: there is a run of other flags (`OtherRunError`) or of other inputs, or a file of no run.
    """
    record, inputs = directory / "run.flags", inputs or {}
    if not record.exists():
        _check_free(directory)
    elif overwrite:
        _delete(directory, (*inputs.get("pictures", ()), *reads))
    for draft in (*directory.glob(DRAFTS), *directory.glob(f"snapshots/{DRAFTS}")):
        draft.unlink()
    if not record.exists():
        write_atomically(record, flags.encode())
        return "new"
    others = _check_flags(directory, flags, changeable)
    manifest = find_manifest(directory)
    status = _status(directory, manifest)
    if changed := _changed(manifest or {}, inputs):
        raise UserError(
            f"--workdir={directory}: {', '.join(changed)} changed since the run there "
            f"{'began' if status == 'unfinished' else 'ended'}; --overwrite makes it anew, or choose another"
        )
    if others:
        write_atomically(record, flags.encode())
    if manifest is None or status != "unfinished":
        # Of inputs that nothing tells, or of a process killed in its last moment.
        for path in (*directory.glob("checkpoints/*"), *directory.glob("parts/*")):
            remove(path)
    return status


def _check_free(directory: pathlib.Path) -> None:
    """Refuses a directory without a run that has a file or folder of the name of a run's."""
    for name in (*FILES, *FOLDERS):
        if (directory / name).exists():
            raise UserError(
                f"--workdir={directory}: holds {name!r}, which is of no run; choose another folder"
            )


def _delete(directory: pathlib.Path, needed: Iterable[str]) -> None:
    """Deletes the run in a directory, unless one of the paths that the next is made of would go with it."""
    place = pathlib.Path(os.path.realpath(directory))
    for name in needed:
        path = pathlib.Path(os.path.realpath(name))
        if path.is_relative_to(place) and path.relative_to(place).parts[0] in (*FILES, *FOLDERS):
            raise UserError(
                f"--overwrite: would delete {name!r}, which the run is to be made of; copy it to another folder"
            )
    for name in FILES:
        (directory / name).unlink(missing_ok=True)
    for name in FOLDERS:
        if os.path.lexists(directory / name):
            remove(directory / name)
    # The last, so that nothing of this run can pass for one of other flags.
    (directory / "run.flags").unlink()


def _check_flags(directory: pathlib.Path, flags: str, changeable: Collection[str]) -> set[str]:
    """The names of the flags in which the run in a directory differs; refuses those that are not `changeable`."""
    there = flags_of(directory)
    if not there.endswith("\n"):
        raise UserError(
            f"--workdir={directory}: its run.flags is damaged; choose another folder, or --overwrite it"
        )
    others = differing(there, flags)
    if refused := sorted(others.difference(changeable)):
        raise OtherRunError(
            f"--workdir={directory}: a run of other flags is there (they differ in {', '.join(refused)}); "
            "choose another, or --overwrite it"
        )
    return others


def flags_of(directory: pathlib.Path) -> str:
    """The text of its `run.flags`, with a sign for what is no UTF-8; nothing where there is none."""
    record = directory / "run.flags"
    return record.read_text("utf-8", "replace") if record.is_file() else ""


def differing(before: str, now: str) -> set[str]:
    """The names of the flags in which two `run.flags` differ."""
    there, here = values(before), values(now)
    return {name for name in there | here if there.get(name) != here.get(name)}


def _changed(manifest: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[str]:
    """The pictures, and the weights, whose SHA-256 is not the one that a manifest has."""
    before, now = (
        {"weights": facts.get("weights")} | (facts.get("pictures") or {}) for facts in (manifest, inputs)
    )
    shared = [name for name in now if before.get(name) and now[name]]
    return [str(name) for name in shared if before[name]["sha256"] != now[name]["sha256"]]


def values(flags: str) -> dict[str, list[str]]:
    """What a `run.flags` gives each flag, by name; a switch is "true" or "false"."""
    found: dict[str, list[str]] = {}
    for line in flags.splitlines():
        name, equals, value = line.lstrip("-").partition("=")
        if not equals:
            name, value = name.removeprefix("no"), "false" if name.startswith("no") else "true"
        found.setdefault(name, []).append(value)
    return found


def _status(directory: pathlib.Path, manifest: Mapping[str, Any] | None) -> str:
    status = (manifest or {}).get("status")
    whole = all((directory / name).exists() for name in ("image.png", "metrics.csv"))
    return status if status in ENDED and whole else "unfinished"
