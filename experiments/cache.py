"""What a process reads, computes and compiles once."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxstyle.network import convolution
from jaxstyle.runs import memory

from . import program_cache


class Cache:
    """Values by their keys, each made when it is first asked for. A command's main makes one and hands it down.

    `devices` are those that runs are spread over.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        self._values: dict[Hashable, Any] = {}
        self.devices = tuple(devices or jax.local_devices()[:1])

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._values:
            self._values[key] = make()
        return self._values[key]

    def evaluate(self, function: Callable, static: tuple, shape: Sequence[int], *arguments: Any) -> Any:
        """The value of `function(*static, *arguments)`, compiled once for the same shapes.

        Raises:
          UserError: a picture of this shape is too large for the memory that is free.
        """

        key = function, static, signature(arguments)

        def lower() -> jax.stages.Lowered:
            return convolution.jit(functools.partial(function, *static)).lower(*arguments)

        compiled = self.get(key, lambda: program_cache.compiled(key, lower, jax.local_devices()[:1]))
        memory.check(memory.required(compiled), memory.available(), *shape[:2])
        value = jax.block_until_ready(compiled(*arguments))
        memory.give_back()
        return value


def signature(arguments: Any) -> str:
    """What a compiled program depends on in its arguments: structure, shapes and dtypes."""
    return str(jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf).name), arguments))
