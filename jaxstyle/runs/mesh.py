"""How arrays lie on several devices: images by their rows, lanes side by side. Nothing here computes.

    mesh = grid(jax.devices())
    there = states(mesh, jax.eval_shape(program.init, problem, image, hyperparameters))
    state = there.put(state)                                    # and there.fetch(state) is on the host again
    step = jax.jit(lambda problem, state: there.fold(advance(problem, there.unfold(state))), in_shardings=(
        problems(mesh, problem), there.shardings), out_shardings=there.shardings)

XLA partitions a program by where its arguments lie. Arrays cross its border in parts of one size: where rows do not
divide there are empty ones below the last, which are cut off before anything computes.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxstyle.losses.objective import Problem
from jaxstyle.runs import processes


def grid(devices: Sequence[jax.Device], lanes: int = 1) -> Mesh:
    """A mesh of axes "lanes" and "rows": lanes are shared out to as many devices as they fill, rows to the others."""
    across = math.gcd(len(devices), lanes) if lanes < len(devices) else len(devices)
    return Mesh(np.reshape(np.asarray(devices, object), (across, -1)), ("lanes", "rows"))


def told(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Where programs are traced for a mesh: what XLA would gather by itself knows of it (`convolution.parts`)."""
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def everywhere(mesh: Mesh, tree: Any) -> Any:
    """The shardings of what each device has whole."""
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)


def problems(mesh: Mesh, problem: Problem) -> Problem:
    """The shardings of a problem: what is by position goes by rows if they divide, all else is everywhere."""

    def positions(maps: Any) -> Any:
        def sharding(each: jax.Array) -> NamedSharding:
            divides = len(each) % mesh.shape["rows"] == 0
            return NamedSharding(mesh, PartitionSpec("rows") if divides else PartitionSpec())

        return jax.tree.map(sharding, maps)

    return everywhere(mesh, problem)._replace(
        content_targets=positions(problem.content_targets),
        content_guides=positions(problem.content_guides),
        regions=[
            everywhere(mesh, region)._replace(guides=positions(region.guides)) for region in problem.regions
        ],
    )


class States(NamedTuple):
    """Where the states of a program lie.

    Attributes:
      structure: of one, shapes and dtypes.
      shardings: of its leaves.
    """

    structure: Any
    shardings: Any

    def fold(self, state: Any) -> Any:
        """A state with empty rows, or lanes, so that all parts have one size."""
        return jax.tree.map(_fold, state, self.shardings)

    def unfold(self, state: Any) -> Any:
        """What `fold` was given."""
        return jax.tree.map(_cut, state, self.structure)

    def folded(self) -> Any:
        """The structure of what `fold` gives."""
        return jax.eval_shape(self.fold, self.structure)

    def put(self, state: Any) -> Any:
        """A state on the mesh, from one on the host."""
        return put(self.fold(state), self.shardings)

    def fetch(self, state: Any) -> Any:
        """A state on the host, from one on the mesh."""
        return jax.tree.map(lambda leaf, like: _cut(_on_host(leaf), like), state, self.structure)


def states(mesh: Mesh, structure: Any, lanes: bool = False) -> States:
    """Where states of a structure lie: what has the shape [..., rows, columns, 3] by rows, and `lanes` first."""

    def sharding(leaf: Any) -> NamedSharding:
        axes: list[str | None] = [None] * leaf.ndim
        if lanes and axes:
            axes[0] = "lanes"
        if leaf.ndim - lanes >= 3 and leaf.shape[-1] == 3:
            axes[-3] = "rows"
        return NamedSharding(mesh, PartitionSpec(*axes))

    return States(structure, jax.tree.map(sharding, structure))


def put(tree: Any, shardings: Any) -> Any:
    """Arrays on the mesh, from those that process 0 has: what each has of its own may round otherwise."""
    return jax.tree.map(_put, tree, shardings)


def put_everywhere(mesh: Mesh, tree: Any) -> Any:
    """`put` with all of them on each device."""
    return put(tree, everywhere(mesh, tree))


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding))
    array = processes.first(lambda: np.asarray(leaf))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _on_host(leaf: jax.Array) -> Any:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_on_host(jax.random.key_data(leaf)))
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)


def _fold(leaf: Any, sharding: NamedSharding) -> Any:
    parts = [1 if axis is None else sharding.mesh.shape[axis] for axis in sharding.spec]
    more = [-size % count for size, count in zip(leaf.shape, parts, strict=True)]
    return jnp.pad(leaf, [(0, each) for each in more]) if any(more) else leaf


def _cut(leaf: Any, like: Any) -> Any:
    return leaf if leaf.shape == like.shape else leaf[tuple(map(slice, like.shape))]
