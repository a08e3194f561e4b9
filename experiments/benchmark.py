"""Time and memory of one training step, and of its parts -> one JSON line a row.

python -m experiments.benchmark --sizes=300,600 --vs_torch --torch_python=/path/to/python-with-torch

A step is one evaluation of loss and gradient: VGG16 to block5_conv1, style at the first layer of each block, content
at block4_conv2, random weights, on which its time does not depend. With --remat it is timed without and with it, with
--strips=N only as the flags say. Each row is measured in a process of its own, so that it has its own peak of
memory: of resident memory on a CPU, else of what it holds on the device. On a shared machine only ratios of medians
of one run mean anything.
"""

import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxstyle import machine, training
from jaxstyle.errors import UserError
from jaxstyle.images import pictures
from jaxstyle.losses import objective, recipes, strips, terms
from jaxstyle.network import convolution, vgg
from jaxstyle.optimizers import catalogue
from jaxstyle.runs import memory
from jaxstyle.runs.clocks import Stopwatch

from . import launch, settings

for _name in ("remat", "strips", "compilation_cache"):
    flags.declare_key_flag(_name)

#: What prepares a convolution, by the names of --convolutions.
METHODS = {name: {"method": name} for name in ("auto", "direct", "winograd")} | {
    "bfloat16": {"precision": "bfloat16"}
}

_SIZES = flags.DEFINE_list("sizes", ["300"], "Sides of the square images in pixels, separated by commas.")
_CONVOLUTIONS = flags.DEFINE_list(
    "convolutions",
    ["auto", "direct"],
    "Of auto, direct, winograd and bfloat16, which is --precision=bfloat16, separated by commas.",
)
_BATCHES = flags.DEFINE_list("batches", ["1"], "Images evaluated at once, vmapped, separated by commas.")
_OPTIMIZERS = flags.DEFINE_multi_string(
    "optimizers", [], "Time the whole training step of this optimizer too; repeatable."
)
_LAYERS = flags.DEFINE_bool("layers", False, "Time each layer on its own too.")
_COLD_START = flags.DEFINE_bool(
    "cold_start",
    False,
    "Time stylize from its start to its first finished step, with an empty and a full cache.",
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 7, "Steps timed for a row, after two to warm up, or one of a minute.", lower_bound=1
)
_VS_TORCH = flags.DEFINE_bool(
    "vs_torch", False, "Run PyTorch's step in turn with ours and print the ratio of medians."
)
_ROUNDS = flags.DEFINE_integer("rounds", 4, "Turns of each side of --vs_torch.", lower_bound=1)
_TORCH_PYTHON = flags.DEFINE_string("torch_python", sys.executable, "The Python that can import torch.")


def random_network() -> vgg.Network:
    """VGG16 with weights that keep the features' size from layer to layer (He et al. 2015)."""
    rng, width, convolutions = np.random.default_rng(0), 3, {}
    for name in vgg.layer_names("vgg16"):
        channels = vgg.CHANNELS[int(name[len("block")]) - 1]
        kernel = rng.normal(0, (2 / (9 * width)) ** 0.5, (3, 3, width, channels)).astype(np.float32)
        convolutions[name] = convolution.Filters(kernel, np.zeros(channels, np.float32))
        width = channels
    return vgg.Network(convolutions, np.full(3, 118, np.float32), np.full(3, 58, np.float32))


class Saving(NamedTuple):
    """What a step does to need less memory: fields of `objective.Form`."""

    strips: int = 1
    remat: bool = False


def posed(size: int, method: str, form: objective.Form) -> tuple[objective.Problem, jax.Array]:
    """A problem on random pictures, posed as the commands do it, the photo first, and a start image."""
    content, style, image = jax.random.uniform(jax.random.key(0), (3, size, size, 3), maxval=255.0)
    weighting = recipes.weighting(recipes.RECIPES["gatys"], content.shape)
    network, deepest = random_network(), "block5_conv1"
    direct = vgg.prepare(network, deepest, "direct")
    read = strips.reading(form.strips)

    @convolution.jit
    def targets(network: vgg.PreparedNetwork, style: jax.Array) -> list[objective.Region]:
        return objective.regions(form, list(weighting.style), network, [objective.Style(style)], None, read)

    pose = convolution.jit(functools.partial(objective.pose, form, read=read))
    problem = pose(direct, content, [], weighting)._replace(network=None, regions=targets(direct, style))
    del direct
    jax.block_until_ready(problem)
    memory.give_back()
    return problem._replace(network=vgg.prepare(network, deepest, **METHODS[method])), image


#: Seconds of a first call after which a second one would warm up no more.
_LONG = 60


def timed(call: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls until their result is there, after two to warm up, or one that is long."""

    def seconds() -> float:
        stopwatch = Stopwatch()
        stopwatch.call(call)
        return stopwatch.seconds

    if seconds() < _LONG:
        seconds()
    return [seconds() for _ in range(repeats)]


def peak_bytes() -> int:
    """The peak so far of what this process holds on its device, or of its resident memory if that tells none."""
    told = jax.local_devices()[0].memory_stats() or {}  # a CPU tells nothing
    if "peak_bytes_in_use" in told:
        return told["peak_bytes_in_use"]
    import resource  # here, as Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def summary(seconds: list[float]) -> dict[str, float]:
    return {"median_s": statistics.median(seconds), "min_s": min(seconds)}


def measure_step(size: int, method: str, batch: int, saving: Saving, repeats: int) -> dict[str, Any]:
    """One evaluation of loss and gradient."""
    form = objective.GATYS._replace(**saving._asdict())
    problem, image = posed(size, method, form)
    evaluate = training.evaluation(form)
    if batch > 1:
        evaluate, image = jax.vmap(evaluate, (None, 0)), jnp.stack([image] * batch)
    begun = time.perf_counter()
    compiled = convolution.jit(evaluate).lower(problem, image).compile()
    compile_s = time.perf_counter() - begun
    memory.keep_freed(memory.required(compiled))
    seconds = timed(lambda: compiled(problem, image), repeats)
    return {
        "seconds": seconds,
        "compile_s": compile_s,
        "peak_bytes": peak_bytes(),
        "estimated_bytes": memory.required(compiled),
    }


def measure_optimizer(size: int, method: str, saving: Saving, text: str, repeats: int) -> dict[str, Any]:
    """Whole training steps, and the share of their time that is not spent evaluating."""
    form = objective.GATYS._replace(**saving._asdict())
    problem, image = posed(size, method, form)
    spec = catalogue.parse(text)
    program = training.program(form, spec.name, spec.static)
    evaluate = convolution.jit(training.evaluation(form)).lower(problem, image).compile()
    memory.keep_freed(memory.required(evaluate))
    init, step, *_ = program
    if spec.name not in catalogue.ON_HOST:
        init, step = convolution.jit(init), convolution.jit(step, donate_argnums=1)
    state = init(problem, jnp.copy(image), {k: jnp.float32(v) for k, v in spec.traced.items()})
    for _ in range(2):
        state, _ = step(problem, state)
    first = before = int(state.evaluations)
    step_s, outside = [], []
    for _ in range(repeats):
        (evaluation_s,) = timed(lambda: evaluate(problem, image), 1)
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(step(problem, state))
        step_s.append(time.perf_counter() - begun)
        after = int(state.evaluations)
        outside.append(1 - (after - before) * evaluation_s / step_s[-1])
        before = after
    return {
        **summary(step_s),
        "evaluations_a_step": (before - first) / repeats,
        "share_outside_evaluations": statistics.median(outside),
        "peak_bytes": peak_bytes(),
    }


def measure_layers(size: int, method: str, repeats: int) -> list[dict[str, Any]]:
    """Each convolution with its ReLU, each pooling and each Gram matrix, forward and forward with backward."""
    network, rows = random_network(), []

    def add(name: str, function: Callable, maps: jax.Array, *arguments: Any) -> jax.Array:
        forward = convolution.jit(function)
        result = forward(maps, *arguments)
        both = convolution.jit(
            lambda maps, out, *rest: jax.vjp(lambda m: function(m, *rest), maps)[1](out)[0]
        )
        rows.append(
            {
                "layer": name,
                "forward_s": statistics.median(timed(lambda: forward(maps, *arguments), repeats)),
                "both_s": statistics.median(timed(lambda: both(maps, result, *arguments), repeats)),
            }
        )
        return result

    maps, names = jax.random.uniform(jax.random.key(0), (size, size, 3)), vgg.layer_names("vgg16")
    for name in names[: names.index("block5_conv1") + 1]:
        if name.endswith("_conv1") and name != "block1_conv1":
            maps = add(f"{name[:6]}_pool", convolution.max_pool, maps)
        filters = convolution.prepare(*network.convolutions[name], **METHODS[method])
        maps = add(name, convolution.convolve_relu, maps, filters)
        if name.endswith("_conv1"):
            add(f"{name[:6]}_gram", terms.gram_matrix, maps)
    return rows


def measure_cold_start(size: int, text: str) -> Iterator[dict[str, Any]]:
    """Seconds of the command from nothing to its first finished step."""
    with tempfile.TemporaryDirectory() as folder:
        rng, root = np.random.default_rng(0), pathlib.Path(folder)
        for name in ("content.png", "style.png"):
            pictures.write(root / name, rng.uniform(0, 255, (size, size, 3)))
        for cache in ("empty", "full"):
            begun = time.perf_counter()
            subprocess.run(
                [
                    *(sys.executable, "-m", f"{__package__}.stylize", f"--size={size}", "--steps=1"),
                    *(f"--content={root}/content.png", f"--style={root}/style.png", f"--optimizer={text}"),
                    *(f"--workdir={root}/{cache}", f"--compilation_cache={root}/cache"),
                ],
                check=True,
                capture_output=True,
            )
            yield {"cache": cache, "cold_start_s": time.perf_counter() - begun}


def measure_torch(python: str, size: int, repeats: int, layout: str) -> dict[str, Any]:
    """PyTorch's step, in the Python that has it."""
    script = pathlib.Path(__file__).with_name("torch_peer.py")
    return json.loads(run_torch(python, str(script), str(size), str(repeats), layout))


def run_torch(python: str, *arguments: str) -> str:
    """What a Python prints that has PyTorch.

    Raises:
      UserError: it cannot be run.
    """
    try:
        done = subprocess.run([python, *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        raise UserError(
            f"--torch_python={python}: cannot run PyTorch's step: {reason}; give a Python with torch"
        ) from error
    return done.stdout


def alone(function: Callable, *arguments: Any) -> Any:
    """The value of a call made in a process of its own, which ends when this one does, however that ends.

    Raises:
      UserError: it was killed.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_begin) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError(
                "--sizes: what measured a row was killed, as systems do where memory is short; smaller ones, "
                "--strips or --remat need less"
            ) from error


def _begin() -> None:
    """Prepares such a process."""
    memory.use_one_arena()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # The pool's own process would wait for another call for ever, and whoever reads this command's output for it.
    multiprocessing.parent_process().join()
    os._exit(1)


def against_torch(
    size: int, method: str, saving: Saving, rounds: int, repeats: int, python: str
) -> dict[str, Any]:
    """Our step and PyTorch's in both layouts, in turn, and the ratio of medians to its better layout."""
    sides: dict[str, Callable[[], dict]] = {
        "ours": lambda: alone(measure_step, size, method, 1, saving, repeats),
        "channels_last": lambda: measure_torch(python, size, repeats, "channels_last"),
        "contiguous": lambda: measure_torch(python, size, repeats, "contiguous"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, int] = {}
    for _ in range(rounds):
        for name, measure in sides.items():
            found = measure()
            seconds[name] += found["seconds"]
            peaks[name] = max(peaks.get(name, 0), found["peak_bytes"])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    layout = min(("channels_last", "contiguous"), key=medians.get)
    return {
        "ours": summary(seconds["ours"]) | {"peak_bytes": peaks["ours"]},
        "torch": summary(seconds[layout]) | {"peak_bytes": peaks[layout], "layout": layout},
        "ratio": medians["ours"] / medians[layout],
    }


class Rows(NamedTuple):
    """Which rows the flags ask for."""

    sizes: list[int]
    convolutions: list[str]
    batches: list[int]
    optimizers: list[str]
    savings: list[Saving]
    layers: bool
    cold_start: bool
    vs_torch: bool
    repeats: int
    rounds: int
    torch_python: str


def positive(name: str, texts: list[str]) -> list[int]:
    """The whole numbers of a list flag.

    Raises:
      UserError: one is none, or less than 1.
    """
    if not texts or not all(text.isdecimal() and int(text) > 0 for text in texts):
        raise UserError(f"--{name}={','.join(texts)}: must be whole numbers of 1 or more")
    return [int(text) for text in texts]


def check(asked: Rows) -> None:
    """Refuses what cannot be measured.

    Raises:
      UserError: a method or an optimizer that there is not, or a size that is too small.
    """
    for method in asked.convolutions or [""]:
        if method not in METHODS:
            raise UserError(f"--convolutions={method}: must be of {', '.join(METHODS)}")
    if min(asked.sizes) < vgg.smallest_side("block5_conv1"):
        raise UserError(f"--sizes={min(asked.sizes)}: must be 16 or more, which block5_conv1 needs")
    for text in asked.optimizers:
        try:
            catalogue.parse(text)
        except UserError as error:
            raise UserError(str(error).replace("--optimizer=", "--optimizers=", 1)) from error
    if asked.vs_torch:
        run_torch(asked.torch_python, "-c", "import torch")


def measured(asked: Rows) -> Iterator[dict[str, Any]]:
    """The rows, each when it is there."""
    repeats = asked.repeats
    for size, method in itertools.product(asked.sizes, asked.convolutions):
        where = {"size": size, "convolution": method}
        for batch, saving in itertools.product(asked.batches, asked.savings):
            found = alone(measure_step, size, method, batch, saving, repeats)
            seconds = summary(found.pop("seconds"))
            yield {"row": "step", **where, "batch": batch, **saving._asdict(), **seconds, **found}
        for text in asked.optimizers:
            found = alone(measure_optimizer, size, method, asked.savings[0], text, repeats)
            yield {"row": "optimizer", **where, "optimizer": text, **found}
        for found in alone(measure_layers, size, method, repeats) if asked.layers else ():
            yield {"row": "layer", **where, **found}
        if asked.vs_torch:
            found = against_torch(size, method, asked.savings[0], asked.rounds, repeats, asked.torch_python)
            yield {"row": "vs_torch", **where, **found}
    for size in asked.sizes if asked.cold_start else ():
        for text in asked.optimizers or ["adam", "lbfgs"]:
            for found in measure_cold_start(size, text):
                yield {"row": "cold_start", "size": size, "optimizer": text, **found}


def main() -> None:
    given = settings.read()
    saving = Saving(given.strips or 1, given.remat)
    asked = Rows(
        sizes=positive("sizes", _SIZES.value),
        convolutions=_CONVOLUTIONS.value,
        batches=positive("batches", _BATCHES.value),
        optimizers=_OPTIMIZERS.value or [],
        savings=[Saving(), saving] if saving == Saving(remat=True) else [saving],
        layers=_LAYERS.value,
        cold_start=_COLD_START.value,
        vs_torch=_VS_TORCH.value,
        repeats=_REPEATS.value,
        rounds=_ROUNDS.value,
        torch_python=_TORCH_PYTHON.value,
    )
    check(asked)
    where = {"backend": launch.started()[0].platform, "cores": machine.cores()}
    for row in measured(asked):
        print(json.dumps(row | where), flush=True)


if __name__ == "__main__":
    launch.run(main)
