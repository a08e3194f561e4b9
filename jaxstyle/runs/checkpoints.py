"""Checkpoints: the whole state of a run on disk, whole or not at all. Effects only."""

import hashlib
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxstyle import files
from jaxstyle.runs import processes


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _from_numpy(array: np.ndarray, like: Any) -> Any:
    if array.dtype.kind == "V":  # bfloat16, for which NumPy's files have no name
        array = array.view(like.dtype)
    leaf = jax.random.wrap_key_data(array) if _is_key(like) else array
    if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
        raise ValueError(f"it holds {leaf.dtype}{leaf.shape} in place of {like.dtype}{like.shape}")
    return leaf


#: Errors of the system that say that a part of a checkpoint is missing.
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class Checkpoints:
    """The newest two checkpoints of a run.

        checkpoints/STEP/arrays.npz    its rows, and the leaves of its state
        checkpoints/STEP/sha256        of that: nothing else reads a file that is not as it was written

    All methods raise OSError where the disk is full or fails. What is not a whole checkpoint has another name
    than a step's number, and goes when the folder is next opened.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory / "checkpoints"
        self._open()

    @processes.alone
    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
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
        leaves = [_to_numpy(leaf) for leaf in jax.tree.leaves(state)]
        draft = self._directory / "new"
        draft.mkdir()
        try:
            with open(draft / "arrays.npz", "wb") as file:
                np.savez(file, rows, *leaves)
                file.flush()
                os.fsync(file.fileno())
            (draft / "sha256").write_text(_digest(draft / "arrays.npz"))
        except OSError:
            files.remove(draft)  # what a full disk has no room for
            raise
        draft.rename(self._directory / str(step))
        for old in self._steps()[:-2]:
            self._forget(old)

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
                rows, *leaves = self._read(step)
                state = [_from_numpy(*both) for both in zip(leaves, like, strict=True)]
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
    def _read(self, step: int) -> list[np.ndarray]:
        """The rows and the leaves."""
        path = self._directory / str(step) / "arrays.npz"
        if _digest(path) != path.with_name("sha256").read_text():
            raise ValueError("its SHA-256 does not match")
        with np.load(path, allow_pickle=False) as found:
            return [found[name] for name in found.files]
