"""Checkpoints: the whole state of a run on disk, whole or not at all. Effects only."""

import contextlib
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxstyle import files
from jaxstyle.runs import processes


def _digest(folder: pathlib.Path) -> str:
    """Of the names and the bytes of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _from_numpy(array: np.ndarray | None, like: Any) -> Any:
    if array is None:
        array = np.empty(0, like.dtype).reshape(like.shape)
    leaf = jax.random.wrap_key_data(array) if _is_key(like) else array
    if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
        raise ValueError(f"it holds {leaf.dtype}{leaf.shape} in place of {like.dtype}{like.shape}")
    return leaf


#: Errors of the system that say that a part of a checkpoint is missing.
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

#: Of several processes the first has the files, and orbax is not to wait for the others.
_ALONE = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})


class Checkpoints:
    """The newest two checkpoints of a run, by orbax.

        checkpoints/STEP/state    what orbax writes
        checkpoints/STEP/sha256   of that: nothing else reads a file that is not as it was written

    All methods raise OSError where the disk is full or fails. What is not a whole checkpoint has another name
    than a step's number, and goes when the folder is next opened.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = (directory / "checkpoints").absolute()
        self._open()

    @processes.alone
    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=_ALONE)
        self._checkpointer = ocp.Checkpointer(handler, multiprocessing_options=_ALONE)
        for path in self._directory.iterdir():
            if not path.name.isdecimal():
                files.remove(path)

    @processes.alone
    def _steps(self) -> list[int]:
        """From the oldest to the newest."""
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdecimal())

    @processes.alone
    def save(self, step: int, state: Any, rows: np.ndarray) -> None:
        """Writes the checkpoint of a step, if that is not there."""
        if step in self._steps():
            return
        leaves = {f"{i:04}": _to_numpy(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        leaves = {name: leaf for name, leaf in leaves.items() if leaf.size} | {"rows": rows}  # orbax wants it
        draft = self._directory / "new"
        with _errors_of_the_system():
            self._ask_for_room(sum(leaf.nbytes for leaf in leaves.values()))
            self._checkpointer.save(draft / "state", args=ocp.args.StandardSave(leaves))
        (draft / "sha256").write_text(_digest(draft / "state"))
        draft.rename(self._directory / str(step))
        for old in self._steps()[:-2]:
            self._forget(old)

    def _ask_for_room(self, size: int) -> None:
        """Raises OSError if the disk has not `size` bytes: orbax's threads meet that with pages of text."""
        if not hasattr(os, "posix_fallocate"):  # macOS
            return
        room = self._directory / ".room"
        try:
            with open(room, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        finally:
            room.unlink(missing_ok=True)

    @processes.alone
    def clear(self) -> None:
        """Forgets all checkpoints: what has ended is not resumed."""
        for step in self._steps():
            self._forget(step)

    @processes.alone
    def _forget(self, step: int) -> None:
        path = self._directory / str(step)
        files.remove(path.rename(path.with_suffix(".old")))  # so that it is there whole or not at all

    def restore(self, structure: Callable[[int], Any]) -> tuple[Any, np.ndarray] | None:
        """The newest whole checkpoint as a state of the structure at its step and its rows, if there is one."""
        for step in reversed(self._steps()):
            like, tree = jax.tree.flatten(structure(step))
            try:
                leaves = self._read(step)
                rows = leaves.pop("rows")
                state = [_from_numpy(leaves.get(f"{i:04}"), leaf) for i, leaf in enumerate(like)]
                return jax.tree.unflatten(tree, state), rows
            # What is there and cannot be read now is not damaged. But whatever a damaged file makes a reader raise,
            # the answer is the checkpoint before.
            except Exception as error:
                if isinstance(error, OSError) and not isinstance(error, _MISSING):
                    raise
                reason = " ".join(str(error).split())[:120] or type(error).__name__
                logging.warning("checkpoint %d is damaged (%s); going back before it", step, reason)
                self._forget(step)
        return None

    @processes.alone
    def _read(self, step: int) -> dict[str, np.ndarray]:
        folder = self._directory / str(step)
        if _digest(folder / "state") != (folder / "sha256").read_text():
            raise ValueError("its SHA-256 does not match")
        with _errors_of_the_system():
            leaves = self._checkpointer.restore(folder / "state", args=ocp.args.StandardRestore())
        return {name: np.asarray(leaf) for name, leaf in leaves.items()}


@contextlib.contextmanager
def _errors_of_the_system() -> Iterator[None]:
    """Turns what tensorstore makes of an error of the system back into an OSError."""
    try:
        yield
    except ValueError as error:
        found = re.search(r"os_error_code='(\d+)'", str(error))
        if not found:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number)) from error
