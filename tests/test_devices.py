"""One picture on several devices: what is moved, what each holds, and that it is the picture of one device.

The devices are four virtual ones of this CPU, in a process of their own: JAX has them from its start or not at all.
"""

import functools
import json
import os
import signal

import narrow
import numpy as np
import pytest

from jaxstyle.runs import journal


def spread(*arguments):
    """The rows of tests/spread.py, for one device and for four."""
    done = narrow.run("spread", "--narrow", "--devices=1,4", *arguments, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


#: By size, the optimizers of which a step is looked at, and what each moves besides for its transforms.
STEPS = {
    "40x320": {"adam": set(), "lbfgs": set()},
    "37x301": {
        "lbfgs": set(),
        "nonlinear-cg": set(),
        "optax-lbfgs": set(),
        "lbfgs@fourier": {"all-to-all"},
        "lbfgs:scaling=spectral": {"all-to-all"},
    },
}


@functools.cache
def first_steps(size):
    """By optimizer, the rows of a step of one problem."""
    rows = spread(f"--size={size}", *(f"--optimizer={optimizer}" for optimizer in STEPS[size]), "--steps=1")
    return {one["optimizer"]: (one, four) for one, four in zip(rows[::2], rows[1::2], strict=True)}


@pytest.mark.parametrize(
    ("size", "optimizer", "transposed"),
    [(size, *step) for size, steps in STEPS.items() for step in steps.items()],
)
def test_neighbours_get_halos_and_nobody_the_image(size, optimizer, transposed):
    """301 rows do not divide by four devices and the sixteen of block 5, nor 19 columns of a transform.

    Nor is an image gathered to be flattened for the products of L-BFGS, whose history each device has a part of, or
    of conjugate gradients.
    """
    one, four = first_steps(size)[optimizer]
    assert (one["devices"], four["devices"]) == (1, 4)
    assert one["collectives"] == {}
    assert set(four["collectives"]) == {"collective-permute", "all-reduce"} | transposed
    image = 4 * 3 * 37 * 301
    # Of the widest maps a device gets some rows of 320; Gram matrices are summed whole.
    assert four["collectives"]["collective-permute"]["largest"] < image / 16
    assert four["collectives"]["all-reduce"]["largest"] <= 4 * 20**2
    assert four["argument_bytes"] < 0.6 * one["argument_bytes"]
    if "lbfgs" in optimizer:
        # Most is its history, whose rows are brought to a number that divides and back. And a CPU transforms no fewer
        # lines than 768 at once, which are many for 37 columns.
        memory = [each["argument_bytes"] + each["temporary_bytes"] for each in (one, four)]
        assert memory[1] < (0.95 if transposed else 0.5) * memory[0]
    if "lbfgs" not in optimizer or size == "40x320":
        assert four["temporary_bytes"] < 0.45 * one["temporary_bytes"]
    assert four["first"] < 1e-5
    assert four["image"] < 2e-3  # Adam divides gradients by their sizes, those that are all rounding too
    assert four["total"] == pytest.approx(one["total"], rel=1e-4)


@pytest.mark.parametrize(
    ("lanes", "moved"), [(2, {"collective-permute", "all-reduce", "all-to-all"}), (8, set())]
)
def test_lanes_of_a_sweep_gather_no_images(lanes, moved):
    """Two have two devices each, for rows of 301; of eight each device has two, and all that it needs."""
    one, four = spread("--size=37x301", "--optimizer=adam@fourier", f"--lanes={lanes}", "--steps=1")
    # What a step records is everywhere.
    assert four["collectives"].pop("all-gather")["largest"] <= 4 * lanes
    assert set(four["collectives"]) == moved
    assert four["argument_bytes"] < 0.35 * one["argument_bytes"]
    assert four["temporary_bytes"] < 0.5 * one["temporary_bytes"]
    assert four["first"] < 5e-5
    assert four["image"] < 2e-3
    assert four["total"] == pytest.approx(one["total"], rel=1e-4)


TRANSFORMS = """
import jax
from jaxstyle.optimizers import parametrization
from jaxstyle.runs import mesh

decode = parametrization.parse("fourier").decode
grid = mesh.grid(jax.devices())
image = jax.random.uniform(jax.random.key(5), (400, 300, 3), maxval=255)
there = mesh.states(grid, image)
with mesh.told(grid):
    transform = jax.jit(lambda image: decode(image.shape, image), out_shardings=there.shardings)
    image = there.put(image)
    print(len(grid.devices.ravel()), len({there.fetch(transform(image)).tobytes() for _ in range(30)}))
"""


def test_fourier_variables_have_the_same_bits_each_time():
    two = "--xla_force_host_platform_device_count=2"
    done = narrow.run("-c", TRANSFORMS, XLA_FLAGS=two, check=True)
    assert done.stdout == "2 1\n"


TILES = """
import re, sys
import jax, numpy as np
from jaxstyle.network import convolution
from jaxstyle.runs import mesh

lanes, rows = map(int, sys.argv[1:3])
rng = np.random.default_rng(0)
# Whole numbers, which bfloat16 has too, and half ones for the bias, so that no result is 0 but for rounding.
kernel, bias = np.float32(rng.integers(-3, 4, (3, 3, 3, 8))), np.float32(rng.integers(-9, 9, 8) + 0.5)
whole = convolution.prepare(kernel, bias, "direct")
if sys.argv[3] == "winograd":
    apart = convolution.prepare(kernel, bias, "winograd")
else:
    apart = convolution.Filters(kernel.astype(sys.argv[3]), bias)
maps = np.float32(rng.integers(-1, 2, (lanes, rows, 10, 3)))

def gradient(filters, maps):
    return jax.grad(lambda maps: jax.numpy.minimum(convolution.convolve_relu(maps, filters), 20).sum())(maps)

grid = mesh.grid(jax.devices(), lanes)
there = mesh.states(grid, maps, lanes=True)
each = jax.vmap(gradient, (None, 0), spmd_axis_name="lanes")
put = there.put(maps)
with mesh.told(grid):
    step = jax.jit(lambda maps: there.fold(each(apart, there.unfold(maps))), out_shardings=there.shardings)
    compiled = step.lower(put).compile()
expected = jax.jit(jax.vmap(gradient, (None, 0)))(whole, maps)
np.testing.assert_allclose(there.fetch(compiled(put)), expected, atol=1e-5 * abs(expected).max())
print(*sorted(set(re.findall(r"(all-[a-z]+|collective-permute)[(]", compiled.as_text()))))
"""


@pytest.mark.parametrize("how", ["winograd", "bfloat16"])
@pytest.mark.parametrize(
    ("lanes", "rows", "moved"),
    [
        (1, 40, "collective-permute"),
        (1, 41, "collective-permute"),
        (2, 41, "collective-permute"),
        (4, 41, ""),
    ],
)
def test_what_a_convolution_makes_of_rows_stays_where_they_are(lanes, rows, moved, how):
    four = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    done = narrow.run("-c", TILES, str(lanes), str(rows), how, XLA_FLAGS=four, check=True)
    assert done.stdout == f"{moved}\n"


def start(folder, devices, *more, **environment):
    return narrow.Process(
        "experiments.stylize",
        *("--size=64x51", "--scales=1", "--steps=60", "--optimizer=lbfgs", *narrow.FEW, *more),
        *(f"--workdir={folder}", f"--devices={devices}"),
        **environment,
    )


def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    """And with 51 rows, which do not divide: a checkpoint has the state as one device would."""
    process = start(tmp_path, 4, "--checkpoint_seconds=0")
    process.until((tmp_path / "metrics.csv").exists)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    before = journal.read_metrics(tmp_path / "metrics.csv")
    process = start(tmp_path, 1)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    after = journal.read_metrics(tmp_path / "metrics.csv")
    assert len(before) < len(after) == 61
    np.testing.assert_array_equal(after[: len(before)], before)
    totals = after[:, journal.COLUMNS.index("total")]
    assert np.all(np.diff(totals) <= 0)
    (change,) = journal.read_manifest(tmp_path)["resumed"]
    assert change["differs"]["devices"] == [4, 1]


def test_more_devices_than_there_are_is_one_line(tmp_path):
    process = start(tmp_path, 3, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.splitlines()[-1] == "stylize: --devices=3: there are 2; take as many or fewer"
