"""What the flags describe: the pictures and the network as a problem, and an arm of it run in its directory."""

import functools
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import launch
from jaxstyle import convolution, memory, objective, optimizers, pictures, run, start, training, vgg, weights
from jaxstyle.errors import UserError

#: Of a term's weight times that of a layer: losses of 1e13 then fit into float32.
MAX_WEIGHT = 1e25


class Task(NamedTuple):
    """A problem with its start image, and what a manifest says of them."""

    form: objective.Form
    problem: objective.Problem
    start: jax.Array
    facts: dict[str, Any]


def parse_layer(flag: str, text: str, known: Sequence[str]) -> tuple[str, float]:
    """`NAME` or `NAME:weight`.

    Raises:
      UserError: the network has no such layer, or the weight is none.
    """
    name, colon, weight = text.partition(":")
    if name not in known:
        raise UserError(f"--{flag}={text}: no layer {name!r}; the network has {', '.join(known)}")
    try:
        value = float(weight) if colon else 1.0
    except ValueError:
        value = math.nan
    if not (0 <= value < math.inf):
        raise UserError(f"--{flag}={text}: the weight must be a number of 0 or more, not {weight!r}")
    return name, value


def read_recipe(known: Sequence[str]) -> objective.Recipe:
    """The layers and weights that the flags give; where they give none, what suits --loss.

    Raises:
      UserError: a layer that is not `known`, or a weight that is none.
    """
    given: dict[str, Any] = {}
    for field, flag in (("content_layers", launch.CONTENT_LAYER), ("style_layers", launch.STYLE_LAYER)):
        if flag.value:
            given[field] = dict(parse_layer(flag.name, text, known) for text in flag.value)
    for flag in (launch.CONTENT_WEIGHT, launch.STYLE_WEIGHT, launch.TV_WEIGHT):
        if flag.value is not None:
            if not flag.value <= np.finfo(np.float32).max:
                raise UserError(f"--{flag.name}={flag.value}: must be a number that float32 can hold")
            given[flag.name] = flag.value
    return objective.RECIPES[launch.LOSS.value]._replace(**given)


def record_recipe(recipe: objective.Recipe, shape: Sequence[int]) -> None:
    """Writes a recipe back to the flags, so that the record of a run does not depend on defaults."""
    for flag, value in (
        (launch.CONTENT_LAYER, [f"{name}:{weight:.9g}" for name, weight in recipe.content_layers.items()]),
        (launch.STYLE_LAYER, [f"{name}:{weight:.9g}" for name, weight in recipe.style_layers.items()]),
        (launch.CONTENT_WEIGHT, objective.content_weight(recipe, shape)),
        (launch.STYLE_WEIGHT, recipe.style_weight),
        (launch.TV_WEIGHT, recipe.tv_weight),
    ):
        flags.FLAGS[flag.name].value = value


def parse_style(text: str) -> tuple[str, float]:
    """`PATH` or `PATH:share`; a file that has the whole name is taken as it is.

    Raises:
      UserError: the share is none.
    """
    path, _, last = text.rpartition(":")
    try:
        share = float(last)
    except ValueError:
        return text, 1.0
    if not path or pathlib.Path(text).exists():
        return text, 1.0
    if not 0 < share < math.inf:
        raise UserError(f"--style={text}: the share must be a number greater than 0, not {last!r}")
    return path, share


def signature(arguments: Any) -> str:
    """What a compiled program depends on in its arguments: structure, shapes and dtypes."""
    leaves = jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf).name), arguments)
    return str(leaves)


def fitting(compiled: jax.stages.Compiled, image_shape: Sequence[int]) -> jax.stages.Compiled:
    """The program itself, if there is the memory to run it.

    Raises:
      UserError: there is not; the text tells the largest size that would fit.
    """
    memory.check(memory.required(compiled), memory.available(), *image_shape[:2])
    return compiled


_posing: dict[Any, jax.stages.Compiled] = {}


def pose(form: objective.Form, *targets: Any) -> objective.Problem:
    """`objective.pose`, compiled once a process for the same form and shapes."""
    key = (form, signature(targets))
    if key not in _posing:
        _posing[key] = convolution.jit(functools.partial(objective.pose, form)).lower(*targets).compile()
    return fitting(_posing[key], targets[1].shape)(*targets)


def read() -> Task:
    """Reads what the flags name and poses the problem.

    Raises:
      UserError: a file or a flag cannot be used.
    """
    size, resize = pictures.parse_size(launch.SIZE.value), launch.RESIZE.value
    shares = dict(parse_style(text) for text in launch.STYLE.value)
    images = {path: pictures.read(path, size, resize) for path in (launch.CONTENT.value, *shares)}
    loaded = weights.load(launch.WEIGHTS.value)
    recipe = read_recipe(tuple(loaded.network.convolutions))
    deepest = max(*recipe.content_layers, *recipe.style_layers)
    for path, image in images.items():
        height, width, _ = image.shape
        if min(height, width) < vgg.smallest_side(deepest):
            raise UserError(
                f"--size={launch.SIZE.value}: {deepest} shrinks {path} of {width}x{height} to nothing; "
                f"each side must have {vgg.smallest_side(deepest)} pixels or more"
            )
    content = jnp.asarray(images[launch.CONTENT.value])
    weighting = objective.weighting(recipe, content.shape)
    if not max(*weighting.content.values(), *weighting.style.values(), weighting.tv) <= MAX_WEIGHT:
        raise UserError(
            "--content_weight, --style_weight, --tv_weight: each, times the weight of a "
            f"layer, must be at most {MAX_WEIGHT:g}; float32 cannot hold the loss otherwise"
        )
    record_recipe(recipe, content.shape)
    form = objective.FORMS[launch.LOSS.value]._replace(remat=launch.REMAT.value)
    # Targets are evaluated once, for which the direct convolution's short compiling counts for more.
    problem = pose(
        form,
        vgg.prepare(loaded.network, deepest, "direct"),
        content,
        [(images[path], share) for path, share in shares.items()],
        weighting,
    )
    problem = problem._replace(network=vgg.prepare(loaded.network, deepest, launch.CONVOLUTION.value))
    facts = {
        "pictures": {
            path: {"sha256": pictures.sha256(path), "shape": list(images.get(path, content).shape)}
            for path in (*images, *({launch.INIT.value} - {*images, *start.KINDS}))
        },
        "weights": {"name": launch.WEIGHTS.value, "sha256": loaded.sha256},
        "seed": launch.SEED.value,
    }
    return Task(form, problem, start_image(content, size, resize), facts)


def start_image(content: jax.Array, size: pictures.Size, resize: str) -> jax.Array:
    """The start image that --init names: one of `start.KINDS`, or a picture brought to the photo's size."""
    kind = launch.INIT.value
    if kind in start.KINDS:
        return start.image(kind, launch.SEED.value, content)
    height, width, _ = content.shape
    return jnp.asarray(pictures.read(kind, (width, height), resize))


class Compiled(NamedTuple):
    """Programs ready to run, and the seconds that compiling took."""

    init: Callable[..., training.TransferState]
    step: Callable[..., tuple[training.TransferState, training.Metrics]]
    structure: training.TransferState
    seconds: float


_compiled: dict[Any, Compiled] = {}


def compiled(
    form: objective.Form,
    spec: optimizers.Spec,
    problem: objective.Problem,
    image: jax.Array,
    hyperparameters: dict[str, jax.Array],
) -> Compiled:
    """The programs for an optimizer, compiled once a process for the same form, statics and shapes."""
    arguments = (problem, image, hyperparameters)
    key = (form, spec.name, spec.static, signature(arguments))
    if key not in _compiled:
        program = training.program(form, spec.name, spec.static)
        begun = time.perf_counter()
        if spec.name in optimizers.ON_HOST:
            # The first call compiles the evaluation; that of a run is then as fast as all others.
            structure = program.init(*arguments)
            init, step = program
        else:
            structure = jax.eval_shape(program.init, *arguments)
            init = convolution.jit(program.init).lower(*arguments).compile()
            step = convolution.jit(program.step, donate_argnums=1).lower(problem, structure).compile()
            memory.keep_freed(memory.required(fitting(step, image.shape)))
        _compiled[key] = Compiled(init, step, structure, time.perf_counter() - begun)
    return _compiled[key]


def hyperparameters(spec: optimizers.Spec) -> dict[str, jax.Array]:
    """The traced hyperparameters as arrays, and the random key for an optimizer that wants one."""
    values = {name: jnp.float32(value) for name, value in spec.traced.items()}
    if spec.needs_key:
        values["key"] = start.stream(launch.SEED.value, "optimizer")
    return values


def run_arm(
    task: Task,
    spec: optimizers.Spec,
    directory: pathlib.Path,
    comment: str,
    on_compiled: Callable[[float], None],
    report: Callable[[np.ndarray], None],
) -> run.Result:
    """Compiles one optimizer's programs and runs them in a directory that is claimed and begun.

    Args:
      task: the problem.
      spec: the optimizer.
      directory: of the run.
      comment: text that the picture carries.
      on_compiled: is told the seconds that compiling took.
      report: is told each row of the metrics.
    """
    values = hyperparameters(spec)
    programs = compiled(task.form, spec, task.problem, task.start, values)
    on_compiled(programs.seconds)
    manifest = (
        run.environment()
        | task.facts
        | {
            "optimizer": {"name": spec.name, **dict(spec.static), **spec.traced},
            "shape": list(task.start.shape),
            "steps": launch.STEPS.value,
            "compile_seconds": programs.seconds,
        }
    )
    return run.execute(
        directory,
        manifest,
        # The step is given its state's buffers to write into, so the start image must be a copy.
        start=lambda: programs.init(task.problem, jnp.copy(task.start), values),
        structure=programs.structure,
        advance=functools.partial(programs.step, task.problem),
        steps=launch.STEPS.value,
        save=lambda image: pictures.write(directory / "image.png", image, comment),
        report=report,
        checkpoint_seconds=launch.CHECKPOINT_SECONDS.value,
    )
