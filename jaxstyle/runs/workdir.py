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
import errno
import fcntl
import os
import pathlib
import platform
import shutil
from collections.abc import Collection, Iterator

from jaxstyle.errors import UserError
from jaxstyle.files import DRAFTS, write_atomically
from jaxstyle.runs.journal import read_manifest

FILES = ("manifest.json", "metrics.csv", "image.png", "losses.png", "animation.webp")
FOLDERS = ("checkpoints", "snapshots")


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
