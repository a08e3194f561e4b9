"""Checkpoints: the whole state of a run on disk, whole or not at all. Effects only."""

import hashlib
import logging
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


def _digest(leaves: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for leaf in leaves:
        digest.update(f"{leaf.dtype.str}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _to_numpy(leaf: Any) -> np.ndarray:
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _from_numpy(array: np.ndarray, like: Any) -> Any:
    is_key = jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key)
    return jax.random.wrap_key_data(array) if is_key else array


class Checkpoints:
    """The newest two checkpoints of a run, by orbax; each carries a digest that reading verifies."""

    def __init__(self, directory: pathlib.Path):
        self._manager = ocp.CheckpointManager(
            (directory / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
            ),
        )

    def save(self, step: int, state: Any, rows: np.ndarray) -> None:
        leaves = [_to_numpy(leaf) for leaf in jax.tree.leaves(state)] + [rows]
        self._manager.save(
            step,
            args=ocp.args.Composite(
                leaves=ocp.args.StandardSave({f"{i:04}": leaf for i, leaf in enumerate(leaves)}),
                digest=ocp.args.JsonSave({"sha256": _digest(leaves)}),
            ),
            force=True,
        )

    def clear(self) -> None:
        """Forgets all checkpoints: what has ended is not resumed."""
        for step in self._manager.all_steps():
            self._manager.delete(step)

    def restore(self, structure: Any) -> tuple[Any, np.ndarray] | None:
        """The newest whole checkpoint as a state of the given structure and its rows, if there is one."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._manager.restore(
                    step,
                    args=ocp.args.Composite(leaves=ocp.args.StandardRestore(), digest=ocp.args.JsonRestore()),
                )
                leaves = [np.asarray(found["leaves"][name]) for name in sorted(found["leaves"])]
                if _digest(leaves) != found["digest"]["sha256"]:
                    raise ValueError("its digest does not match")
                *leaves, rows = leaves
                like, tree = jax.tree.flatten(structure)
                leaves = [_from_numpy(*pair) for pair in zip(leaves, like, strict=True)]
                return jax.tree.unflatten(tree, leaves), rows
            # Whatever a damaged file makes a reader raise, the answer is the checkpoint before.
            except Exception as error:
                reason = str(error).partition("\n")[0][:200]
                logging.warning("checkpoint %d is damaged (%s); trying the one before", step, reason)
                self._manager.delete(step)
        return None
