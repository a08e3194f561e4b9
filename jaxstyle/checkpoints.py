"""Checkpoints: the whole state of a run on disk, whole or not at all. Effects only."""

import contextlib
import hashlib
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


def _digest(leaves: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        digest.update(f"{name}{leaf.dtype.str}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
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


class Checkpoints:
    """The newest two checkpoints of a run, by orbax; each carries a digest that reading verifies.

    All methods raise OSError where the disk is full or fails.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = (directory / "checkpoints").absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
            ),
        )

    def save(self, step: int, state: Any, rows: np.ndarray) -> None:
        leaves = {f"{i:04}": _to_numpy(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        leaves = {name: leaf for name, leaf in leaves.items() if leaf.size} | {"rows": rows}  # orbax wants it
        with _errors_of_the_system():
            self._ask_for_room(sum(leaf.nbytes for leaf in leaves.values()))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    leaves=ocp.args.StandardSave(leaves),
                    digest=ocp.args.JsonSave({"sha256": _digest(leaves)}),
                ),
                force=True,
            )

    def _ask_for_room(self, size: int) -> None:
        """Raises OSError if the disk has not `size` bytes: orbax's threads meet that with pages of text."""
        room = self._directory / ".room"
        try:
            with open(room, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        finally:
            room.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forgets all checkpoints: what has ended is not resumed."""
        for step in self._manager.all_steps():
            self._forget(step)

    def _forget(self, step: int) -> None:
        shutil.rmtree(self._directory / str(step))
        self._manager.reload()

    def restore(self, structure: Any) -> tuple[Any, np.ndarray] | None:
        """The newest whole checkpoint as a state of the given structure and its rows, if there is one."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._manager.restore(
                    step,
                    args=ocp.args.Composite(leaves=ocp.args.StandardRestore(), digest=ocp.args.JsonRestore()),
                )
                leaves = {name: np.asarray(leaf) for name, leaf in found["leaves"].items()}
                if _digest(leaves) != found["digest"]["sha256"]:
                    raise ValueError("its digest does not match")
                rows = leaves.pop("rows")
                like, tree = jax.tree.flatten(structure)
                state = [_from_numpy(leaves.get(f"{i:04}"), leaf) for i, leaf in enumerate(like)]
                return jax.tree.unflatten(tree, state), rows
            # Whatever a damaged file makes a reader raise, the answer is the checkpoint before.
            except Exception as error:
                reason = " ".join(str(error).split())[:120] or type(error).__name__
                logging.warning("checkpoint %d is damaged (%s); going back before it", step, reason)
                self._forget(step)
        return None


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
