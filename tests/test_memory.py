"""The estimate of a program's memory, and the refusal of what would not fit."""

import functools
import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstyle
from experiments import room
from experiments.settings import Settings
from jaxstyle.errors import UserError
from jaxstyle.losses import objective, recipes
from jaxstyle.network import convolution, vgg
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
    there_is = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**24 < memory.available() < there_is


def test_what_does_not_fit_is_refused_with_the_largest_size_that_does():
    memory.check(10, 10, height=100, width=400)
    with pytest.raises(UserError, match=r"--size: 400x100 needs 4\.0 GiB .* 1\.0 GiB are free; .*--size=200"):
        memory.check(4 * 2**30, 2**30, height=100, width=400)


def test_a_refusal_names_what_takes_less():
    with pytest.raises(UserError, match=r"about --size=1 would fit, and --remat takes less"):
        memory.check(4, 1, height=1, width=2, helps="--remat")


def test_what_does_not_grow_leaves_room_for_a_larger_picture():
    with pytest.raises(UserError, match=r"about --size=200 would fit"):
        memory.check(5 * 2**30, 2 * 2**30, height=100, width=400, constant=2**30)
    with pytest.raises(UserError, match=r"0\.5 GiB are free; no size would fit$"):
        memory.check(5 * 2**30, 2**29, height=100, width=400, constant=2**30)


def test_memory_at_a_size_tells_that_at_a_larger_one(random_network, style):
    network = vgg.prepare(random_network, "block3_conv1")
    weighting = recipes.Weighting({"block2_conv2": 1.0}, {"block1_conv1": 1.0, "block3_conv1": 1.0}, 0.0)

    def required(side: int) -> tuple[int, int]:
        image = np.full((side, side, 3), 90, np.float32)
        problem = jaxstyle.pose(objective.GATYS, network, image, [objective.Style(style)], weighting)
        evaluate = convolution.jit(functools.partial(objective.evaluate, objective.GATYS))
        constant = sum(leaf.nbytes for leaf in jax.tree.leaves((problem.network, problem.regions)))
        return memory.required(evaluate.lower(problem, image).compile()), constant

    (small, constant), (large, _) = required(96), required(384)
    assert memory.at_size(small, constant, 16) == pytest.approx(large, rel=0.15)


CGROUPS = {
    "version 2": {
        "memory.max": "1000",
        "memory.current": "900",
        "memory.stat": "anon 300\nactive_file 200\ninactive_file 400\n",
    },
    "version 1": {
        "memory/memory.limit_in_bytes": "1000",
        "memory/memory.usage_in_bytes": "900",
        "memory/memory.stat": "rss 300\ntotal_active_file 200\ntotal_inactive_file 400\n",
    },
}


@pytest.mark.parametrize("version", CGROUPS)
def test_page_cache_that_a_container_can_give_up_is_free(tmp_path, version):
    for name, text in CGROUPS[version].items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert min(memory._free_on_host(tmp_path)) == 700


def test_a_container_without_a_limit_has_what_the_machine_has(tmp_path):
    path = tmp_path / "sys/fs/cgroup/memory.max"
    path.parent.mkdir(parents=True)
    path.write_text("max\n")
    assert min(memory._free_on_host(tmp_path)) > 2**24  # no /proc/meminfo there either


class Card:
    """A device that is no CPU, and what it tells of its memory."""

    platform = "gpu"

    def __init__(self, stats: dict[str, int] | None):
        self.memory_stats = lambda: stats


@pytest.mark.parametrize(
    ("told", "free"),
    [
        ([{"bytes_in_use": 1, "bytes_limit": 70}, {"bytes_in_use": 1, "bytes_limit": 60}], 60),
        ([{"bytes_in_use": 1}], sys.maxsize),  # a limit is optional in PJRT
        ([None], sys.maxsize),
    ],
)
def test_a_device_that_is_no_cpu_has_what_it_tells_and_no_limit_where_it_tells_none(monkeypatch, told, free):
    cards = [Card(stats) for stats in told]
    monkeypatch.setattr(jax, "local_devices", lambda: cards)
    assert memory.available(cards) == free


@pytest.mark.parametrize(
    ("needed", "free", "devices", "said"),
    [
        (3 * 2**29, 2**32, 1, "about 1.50 GiB of 4.0 GiB that are free"),
        (3 * 2**29, 2**32, 4, "about 1.50 GiB of 4.0 GiB that are free on each device"),
        (3 * 2**29, sys.maxsize, 4, "about 1.50 GiB on each device; how much is free is not told"),
        (None, 2**32, 1, "not known of 4.0 GiB that are free"),
    ],
)
def test_a_dry_run_tells_the_memory_that_is_free_where_it_is_told(needed, free, devices, said):
    assert room.share(needed, free, devices) == said


def test_devices_share_a_pictures_maps_and_are_told_of_no_strips(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda devices: 2**30)
    layers = vgg.layer_names("vgg16")[:11]  # at 1536x1024 1.6 GiB of maps

    def check(devices: int) -> None:
        given = Settings(size="1536"), objective.GATYS, layers, (1024, 1536)
        room.check_memory(*given, [Card(None)] * devices)

    with pytest.raises(UserError, match=r"1\.0 GiB are free; .* and --strips=4 takes less"):
        check(1)
    check(2)
    monkeypatch.setattr(memory, "available", lambda devices: 2**29)
    with pytest.raises(UserError, match=r"1\.0 GiB are free; .* and --remat takes less"):
        check(2)


@pytest.mark.parametrize(
    ("gibibytes", "optimizer"), [(16, "lbfgs"), (16, "adam"), (24, "lbfgs:history_size=100"), (24, "lbfgs")]
)
def test_what_fits_in_no_number_of_strips_is_refused_before_coarser_scales_are_painted(
    monkeypatch, gibibytes, optimizer
):
    """L-BFGS keeps twenty images of 0.4 GiB, and the most strips need 6 GiB."""
    monkeypatch.setattr(memory, "available", lambda: gibibytes * 2**30)
    given = Settings(optimizer=optimizer, parametrization="pixels", size="6000")
    arguments = objective.GATYS, vgg.layer_names("vgg16")[:9], (6000, 6000), 1
    if (gibibytes, optimizer) in ((16, "adam"), (24, "lbfgs")):
        assert room.with_strips(given, *arguments).strips > 1
    else:
        with pytest.raises(UserError, match=r"--size: 6000x6000 needs .* would fit$"):
            room.with_strips(given, *arguments)


def test_what_fits_is_decided_for_several_optimizers_by_the_one_that_keeps_most():
    texts = ["adam", "lbfgs:history_size=20", "lbfgs"]
    assert room.heaviest(Settings(), texts).optimizer == texts[1]


# Every second of many small pieces is freed, so that none of what was freed is at the end of the heap.
FREED = """
import os, pathlib
from jaxstyle.runs import memory
memory.use_one_arena()
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
pieces = [b"x" * (100_000 + i) for i in range(1000)]
before = resident()
pieces = pieces[::2]
freed = resident()
memory.give_back()
print(before - freed, before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library decides by itself")
def test_what_was_freed_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    by_itself, given_back = map(int, done.stdout.split())
    assert by_itself < 10e6 < 40e6 < given_back
