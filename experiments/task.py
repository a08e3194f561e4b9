"""What the flags describe: pictures and network as a problem at each scale, and an arm of it in its directory."""

import functools
import hashlib
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import inputs, launch
from jaxstyle import training
from jaxstyle.errors import UserError
from jaxstyle.images import color, pictures, start
from jaxstyle.losses import objective
from jaxstyle.losses.style import STYLE_LOSSES
from jaxstyle.network import convolution, vgg, weights
from jaxstyle.optimizers import catalogue
from jaxstyle.runs import journal, loop, memory


class Task(NamedTuple):
    """What the flags describe.

    Attributes:
      form: of the losses.
      shapes: of the image at each scale, that of the result last.
      problem: by the number of its scale, posed when it is asked for.
      start: the start image, of the first shape.
      finish: what --preserve_color does to a result, of any of the shapes.
      facts: for the manifest.
    """

    form: objective.Form
    shapes: Sequence[tuple[int, int, int]]
    problem: Callable[[int], objective.Problem]
    start: jax.Array
    finish: Callable[[np.ndarray], np.ndarray]
    facts: dict[str, Any]


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


_programs: dict[Any, jax.stages.Compiled] = {}
_regions: dict[Any, list[objective.Region]] = {}


def once(function: Callable, static: tuple, shape: Sequence[int], *arguments: Any) -> Any:
    """The value of `function(*static, *arguments)`, compiled once a process for the same shapes.

    Raises:
      UserError: a picture of this shape is too large for the memory that is free.
    """
    key = (function, static, signature(arguments))
    if key not in _programs:
        _programs[key] = convolution.jit(functools.partial(function, *static)).lower(*arguments).compile()
    return fitting(_programs[key], shape)(*arguments)


def regions(
    form: objective.Form, layers: Sequence[str], styles: list[objective.Style]
) -> list[objective.Region]:
    """`objective.regions` of style pictures, evaluated once a process for the same ones."""
    direct = prepared(max(layers), "direct")
    digest = hashlib.sha256(signature(styles).encode())
    for leaf in jax.tree.leaves(styles):
        digest.update(np.asarray(leaf).tobytes())
    key = (form, tuple(layers), launch.SEED.value, digest.digest())
    if key not in _regions:
        arguments = direct, styles, np.uint32(launch.SEED.value)
        _regions[key] = once(_pose_regions, (form, tuple(layers)), styles[0].picture.shape, *arguments)
    return _regions[key]


def _pose_regions(
    form: objective.Form, layers: Sequence[str], network: vgg.PreparedNetwork, styles: list, seed: np.uint32
) -> list[objective.Region]:
    return objective.regions(form, layers, network, styles, start.stream(seed, "style_loss"))


@functools.cache
def loaded() -> weights.Weights:
    """The --weights, read once a process."""
    return weights.load(launch.WEIGHTS.value)


@functools.cache
def prepared(deepest: str, method: str) -> vgg.PreparedNetwork:
    """The network of --weights down to a layer, transformed once a process."""
    return vgg.prepare(loaded().network, deepest, method, launch.POOLING.value, launch.PADDING.value)


def check_sides(given: inputs.Pictures, deepest: str) -> None:
    """Refuses pictures that a layer shrinks to nothing.

    Raises:
      UserError: one is so small.
    """
    for path, (height, width, *_) in given.paths.items():
        if min(height, width) < vgg.smallest_side(deepest):
            raise UserError(
                f"--size={launch.SIZE.value}: {deepest} shrinks {path} of {width}x{height} to nothing; "
                f"each side must have {vgg.smallest_side(deepest)} pixels or more, at the first of "
                f"--scales={launch.SCALES.value} too"
            )


def read_form() -> objective.Form:
    """The form of the losses that the flags ask for.

    Raises:
      UserError: the study's form with what it does not have.
    """
    form = objective.FORMS[launch.LOSS.value]._replace(remat=launch.REMAT.value)
    if launch.STYLE_LOSS.value == "gram":
        return form
    if launch.LOSS.value != "gatys":
        raise UserError(f"--style_loss={launch.STYLE_LOSS.value}: --loss={launch.LOSS.value} has gram alone")
    return form._replace(style=STYLE_LOSSES[launch.STYLE_LOSS.value])


def read() -> Task:
    """Reads what the flags name. A problem is posed when it is asked for.

    Raises:
      UserError: a file or a flag cannot be used.
    """
    form = read_form()
    every_size = inputs.sizes()
    recipe = inputs.read_recipe(tuple(loaded().network.convolutions))
    deepest = max(*recipe.content_layers, *recipe.style_layers)
    given = [inputs.read_pictures(size) for size in every_size]
    for each in given:
        check_sides(each, deepest)
    shapes = [each.photo.shape for each in given]
    weighting = inputs.weighting(recipe, shapes[-1])
    inputs.record_recipe(recipe, shapes[-1])

    @functools.cache
    def problem(number: int) -> objective.Problem:
        content, mask, styles = given[number].content, given[number].content_mask, given[number].styles
        # Targets are evaluated once, for which the direct convolution's short compiling counts for more.
        direct = prepared(deepest, "direct")
        posed = once(objective.pose, (form,), content.shape, direct, content, [], weighting, mask)
        # What is summed over positions weighs as much at every scale.
        more = np.float32(np.prod(shapes[-1]) / np.prod(shapes[number]))
        return posed._replace(
            network=prepared(deepest, launch.CONVOLUTION.value),
            content_weights={name: more * np.asarray(each) for name, each in posed.content_weights.items()},
            regions=regions(form, list(weighting.style), styles),
            tv_weight=more * np.asarray(posed.tv_weight),
        )

    begin = inputs.read_start(given[0])
    finish = color.PRESERVE[launch.PRESERVE_COLOR.value].finish
    photos = {each.photo.shape: each.photo for each in given}
    return Task(
        form=form,
        shapes=shapes,
        problem=problem,
        start=begin,
        finish=lambda image: finish(image, photos[image.shape]),
        facts={
            "pictures": {
                path: {"sha256": pictures.sha256(path), "shape": list(shape)}
                for path, shape in ({**given[0].paths, **given[-1].paths}).items()
            },
            "weights": {"name": launch.WEIGHTS.value, "sha256": loaded().sha256},
            "seed": launch.SEED.value,
        },
    )


class Compiled(NamedTuple):
    """What one scale of an arm needs, compiled, and the seconds that this took.

    `begin` takes the problem, and the start image with the hyperparameters or the last state of the scale before.
    `memory` is in bytes, for the last scale; it is not known for what runs on the host.
    """

    begin: Callable[..., training.TransferState]
    structure: training.TransferState
    step: Callable[..., tuple[training.TransferState, training.Metrics]]
    result: Callable[[training.TransferState], jax.Array]
    seconds: float
    memory: int | None


_compiled: dict[Any, Compiled] = {}


def compiled(task: Task, spec: catalogue.Spec, number: int) -> Compiled:
    """The programs for an optimizer at a scale, compiled once a process for the same form, statics and shapes.

    Raises:
      UserError: there is not the memory for this scale or the last.
    """
    static = (task.form, spec.name, spec.static, launch.CLIP.value, launch.KEEP.value)
    program, on_host = training.program(*static), spec.name in catalogue.ON_HOST
    values, problem, shape = hyperparameters(spec), task.problem(number), task.shapes[number]

    def structure(number: int) -> training.TransferState:
        if on_host:  # whose first call compiles the evaluation; that of a run is then as fast as all others
            return program.init(task.problem(number), jnp.zeros(task.shapes[number]), values)
        image = jax.ShapeDtypeStruct(task.shapes[number], jnp.float32)
        return jax.eval_shape(program.init, task.problem(number), image, values)

    if number == 0:
        begin, before = program.init, (task.start, values)
    else:
        begin, before = functools.partial(program.grow, shape), (structure(number - 1),)
    key = (static, shape, signature((problem, before)))
    if key not in _compiled:
        begun = time.perf_counter()
        step, needed = program.step, None
        if on_host:
            here = structure(number)
        else:
            lowered = convolution.jit(begin).lower(problem, *before)
            here = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), lowered.out_info)
            begin = lowered.compile()
            step = convolution.jit(step, donate_argnums=1).lower(problem, here).compile()
            # Memory grows with the image: what the last scale will need is known before the first begins.
            needed = int(memory.required(step) * np.prod(task.shapes[-1]) / np.prod(shape))
            memory.check(needed, memory.available(), *task.shapes[-1][:2])
            memory.keep_freed(needed)
        _compiled[key] = Compiled(
            begin, here, step, jax.jit(program.result), time.perf_counter() - begun, needed
        )
    return _compiled[key]


def check_clip(spec: catalogue.Spec) -> None:
    """Refuses --clip for an optimizer that cannot.

    Raises:
      UserError: it is so.
    """
    if launch.CLIP.value and spec.name in catalogue.ON_HOST:
        raise UserError(f"--clip: {spec.name} cannot clip its iterates; lbfgs can")


def hyperparameters(spec: catalogue.Spec) -> dict[str, jax.Array]:
    """The traced hyperparameters as arrays, and the random key for an optimizer that wants one."""
    values = {name: jnp.float32(value) for name, value in spec.traced.items()}
    if spec.needs_key:
        values["key"] = start.stream(launch.SEED.value, "optimizer")
    return values


def run_arm(
    task: Task,
    spec: catalogue.Spec,
    directory: pathlib.Path,
    comment: str,
    on_compiled: Callable[[float], None],
    report: Callable[[np.ndarray], None],
) -> loop.Result:
    """Compiles one optimizer's programs and runs them in a directory that is claimed and begun.

    Args:
      task: the problem.
      spec: the optimizer.
      directory: of the run.
      comment: text that the picture carries.
      on_compiled: is told the seconds that compiling took, for each scale.
      report: is told each row of the metrics.
    """
    steps, scales = launch.STEPS.value, len(task.shapes)
    manifest = (
        journal.environment()
        | task.facts
        | {
            "optimizer": {"name": spec.name, **dict(spec.static), **spec.traced},
            "shape": list(task.shapes[-1]),
            "steps": steps,
            "compile_seconds": 0.0,
        }
    )

    def load(number: int) -> loop.Programs:
        ready, problem = compiled(task, spec, number), task.problem(number)
        manifest["compile_seconds"] += ready.seconds
        on_compiled(ready.seconds)

        def begin(state: training.TransferState | None) -> training.TransferState:
            # The step is given its state's buffers to write into, so the start image must be a copy.
            return ready.begin(
                problem, *([state] if number else [jnp.copy(task.start), hyperparameters(spec)])
            )

        return loop.Programs(begin, ready.structure, functools.partial(ready.step, problem), ready.result)

    snapshots = directory / "snapshots"

    def watch(step: int, image: Callable[[], np.ndarray]) -> None:
        if launch.SAVE_EVERY.value and step % launch.SAVE_EVERY.value == 0:
            snapshots.mkdir(exist_ok=True)
            pictures.write(snapshots / f"{step:06}.png", task.finish(image()))

    def save(image: np.ndarray) -> None:
        pictures.write(directory / "image.png", task.finish(image), comment, bits=launch.BITS.value)
        if launch.SAVE_EVERY.value:
            frames = [*sorted(snapshots.glob("*.png")), directory / "image.png"]
            pictures.write_animation(directory / "animation.webp", frames)

    return loop.execute(
        directory,
        manifest,
        [loop.Stage(steps * (k + 1) // scales, functools.partial(load, k)) for k in range(scales)],
        save=save,
        report=report,
        watch=watch,
        checkpoint_seconds=launch.CHECKPOINT_SECONDS.value,
    )
