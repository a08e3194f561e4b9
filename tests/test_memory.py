"""The estimate of a program's memory, and the refusal of what would not fit."""

import jax
import jax.numpy as jnp
import pytest

from jaxstyle.errors import UserError
from jaxstyle.runs import memory


def test_what_a_program_requires_counts_arguments_results_and_what_it_holds_between():
    def spread(x):
        held = jnp.sort(x[:, None] * jnp.ones((1, 64)), axis=0)  # 64 times the argument, not fused away
        return held[::2].sum(1)

    compiled = jax.jit(spread).lower(jnp.zeros(1000)).compile()
    assert 4 * (1000 + 500 + 64 * 1000) <= memory.required(compiled) <= 3 * 4 * (64 * 1000)


def test_memory_that_is_written_over_is_counted_once():
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    copy = jax.jit(lambda x: x + 1)
    required = [memory.required(f.lower(jnp.zeros(1000)).compile()) for f in (add, copy)]
    assert required[1] - required[0] == 4000


def test_this_machine_has_some_memory_and_not_all_there_is():
    assert 2**24 < memory.available() < 2**50


def test_what_does_not_fit_is_refused_with_the_largest_size_that_does():
    memory.check(10, 10, height=100, width=400)
    with pytest.raises(UserError, match=r"--size: 400x100 needs 4\.0 GiB .* 1\.0 GiB are free; .*--size=200"):
        memory.check(4 * 2**30, 2**30, height=100, width=400)
