"""One optimizer on a task: its programs, compiled once, and its run in a directory."""

import dataclasses
import functools
import pathlib
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxstyle import training
from jaxstyle.errors import UserError
from jaxstyle.images import pictures, start
from jaxstyle.lab.tensorboard import Events
from jaxstyle.losses import objective, rows
from jaxstyle.network import convolution
from jaxstyle.optimizers import catalogue
from jaxstyle.runs import journal, loop, memory, mesh, processes, workdir
from jaxstyle.runs.clocks import Pace

from . import inputs, launch, program_cache, regions
from .cache import Cache, signature
from .settings import Settings, record
from .task import Task, needs_less, pose

#: Seconds between two looks at a picture that is being made.
LOOK_SECONDS = 2.0


#: What an image on its way chooses of the style's targets, by region.
Choose = Callable[[np.ndarray], Sequence[Mapping[str, Any]]]


class Compiled(NamedTuple):
    """What one scale of an arm needs, compiled.

    `begin` takes the problem, what an image there chooses of the style's targets (`Task.choices` of the scale), and
    the start image with the hyperparameters or the last state of the scale before. Tasks of one form share all of it.
    `memory` is what a step takes of a device, in bytes; it is not known for what runs on the host. `moves` are those
    of a state from the host to where it lies, and back; none for what is on the host.
    """

    begin: Callable[..., training.TransferState]
    structure: training.TransferState
    step: Callable[..., tuple[training.TransferState, training.Metrics]]
    result: Callable[[training.TransferState], jax.Array]
    memory: int | None
    moves: Sequence[Callable[[training.TransferState], training.TransferState]] = ()


def parse_optimizer(settings: Settings) -> catalogue.Spec:
    """The optimizer of the settings.

    Raises:
      UserError: there is none of this name, or it cannot do what the settings ask for.
    """
    spec = catalogue.parse(settings.optimizer, settings.loss, settings.parametrization)
    if settings.clip and spec.name in catalogue.ON_HOST:
        raise UserError(f"--clip: {spec.name} cannot clip its iterates; lbfgs can")
    if processes.several() and spec.name in catalogue.ON_HOST:
        raise UserError(
            f"--optimizer={spec.name}: runs on one device of one process; lbfgs runs on those of several"
        )
    return spec


def hyperparameters(spec: catalogue.Spec, seed: int) -> dict[str, jax.Array]:
    """The traced hyperparameters as arrays, and the random key for an optimizer that wants one."""
    values = jax.device_put({name: np.float32(value) for name, value in spec.traced.items()})
    if spec.needs_key:
        values["key"] = start.stream(seed, "optimizer")
    return values


class Place(NamedTuple):
    """Where the programs of a scale run: the mesh, the form of the losses on it, and the problem there."""

    grid: Mesh
    form: objective.Form
    problem: objective.Problem


def place(task: Task, number: int, grid: Mesh) -> Place:
    """Where a scale of a task runs on a mesh.

    Raises:
      UserError: rows are to go in strips as well.
    """
    if task.form.strips > 1 and grid.shape["rows"] > 1:
        raise UserError(
            f"--strips={task.form.strips}: a picture that is spread over {grid.shape['rows']} devices has none; take "
            "--devices=1, or no strips"
        )
    form, problem = lay(task, number, grid)
    return Place(grid, form, mesh.put(problem, mesh.problems(grid, problem)))


def lay(task: Task, number: int, grid: Mesh) -> tuple[objective.Form, objective.Problem]:
    """The form of the losses and the problem at a scale, laid out for a mesh."""
    form = task.form._replace(devices=grid.shape["rows"])
    return form, rows.lay(form, task.problem(number), task.shapes[number])


def spread(spec: catalogue.Spec, cache: Cache) -> Sequence[jax.Device]:
    """The devices that a run of an optimizer is spread over: all, but the first alone where it runs on the host."""
    return cache.devices[:1] if spec.name in catalogue.ON_HOST else cache.devices


def compiled(task: Task, spec: catalogue.Spec, number: int, cache: Cache, here: Place) -> Compiled:
    """The programs for an optimizer at a scale, compiled once for the same form, statics, shapes and devices.

    Raises:
      UserError: there is not the memory for this scale or the last.
    """
    static = (here.form, spec.name, spec.static, task.settings.clip, task.settings.keep)
    values, program = hyperparameters(spec, task.settings.seed), training.program(*static)
    shapes = tuple(task.shapes[max(number - 1, 0) : number + 1])
    key = static, shapes, number > 0, here.grid, signature((here.problem, values))
    if spec.name in catalogue.ON_HOST:
        return cache.get(key, lambda: _on_host(program, task, number, here, values))
    ready = cache.get(key, lambda: _on_mesh(program, task, number, here, values, key))
    needed, free = needed_at_last(ready, task, number, here), memory.available(here.grid.devices.flat)
    memory.check(needed, free, *task.shapes[-1][:2], _constant(here.problem), needs_less(here.form))
    memory.keep_freed(needed)
    return ready


def needed_at_last(ready: Compiled, task: Task, number: int, here: Place) -> int | None:
    """Bytes of a device that the last scale of a task will need, as the programs of a scale before it tell.

    Memory grows with the image. But a strip's window does not grow so; then each scale tells its own.
    """
    if ready.memory is None or here.form.strips > 1:
        return ready.memory
    pixels = np.prod(task.shapes[-1]) / np.prod(task.shapes[number])
    return memory.at_size(ready.memory, _constant(here.problem), pixels)


def _constant(problem: objective.Problem) -> int:
    """Bytes of a problem that do not grow with the image."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves((problem.network, problem.regions)))


def seconds_of_evaluation(
    ready: Compiled, problem: objective.Problem, state: training.TransferState
) -> float:
    """The seconds that an evaluation takes from a state on: the median of three steps, as one is easily disturbed."""
    found = []
    for _ in range(3):
        before, begun = int(state.evaluations), time.perf_counter()
        state, _ = jax.block_until_ready(ready.step(problem, state))
        made = int(state.evaluations) - before
        found.append((time.perf_counter() - begun) / max(1, made))  # none once converged
    return statistics.median(found)


def _choices(task: Task, number: int) -> Sequence[Mapping[str, Any]]:
    """What the states of a scale hold of choices: from the second on, as much as the problem that was posed there."""
    if not number or task.form.style.choose is None:
        return ()
    return [region.choices for region in task.problem(number).regions]


def _on_host(
    program: training.Program, task: Task, number: int, here: Place, values: Mapping[str, jax.Array]
) -> Compiled:
    """The programs of an optimizer that drives from the host.

    Its first call compiles the evaluation; that of a run is then as fast as all others.
    """
    shape = task.shapes[number]
    structure = program.init(here.problem, jnp.zeros(shape), values)
    structure = structure._replace(choices=_choices(task, number))

    def begin(problem: objective.Problem, choose: Choose, *given: Any) -> training.TransferState:
        if not number:
            return program.init(problem, *given)
        choices = structure.choices and choose(np.asarray(program.enlarged(shape, *given)))
        return program.grow(shape, problem, *given, choices)

    return Compiled(begin, structure, program.step, jax.jit(program.result), memory=None)


def _on_mesh(
    program: training.Program,
    task: Task,
    number: int,
    here: Place,
    values: Mapping[str, jax.Array],
    key: Hashable,
) -> Compiled:
    """The programs of an optimizer on the devices of a mesh; the key is of them all."""
    grid, problem, shape = here.grid, here.problem, task.shapes[number]

    def states(number: int) -> mesh.States:
        image = jax.ShapeDtypeStruct(task.shapes[number], jnp.float32)
        return mesh.states(grid, jax.eval_shape(program.unseen, image, values, _choices(task, number)))

    after = states(number)
    if number:
        before = states(number - 1)
        given, lie = (before.folded(),), (before.shardings,)

        def unseen(state: training.TransferState) -> training.TransferState:
            state = before.unfold(state)
            blank = jax.tree.map(jnp.zeros_like, after.structure.choices)
            image = program.enlarged(shape, state)
            return after.fold(program.unseen(image, state.hyperparameters, blank))

        def settle(seen: training.TransferState, state: training.TransferState) -> training.TransferState:
            return after.fold(program.settle(after.unfold(seen), before.unfold(state)))
    else:
        given = jax.ShapeDtypeStruct(shape, jnp.float32), values
        lie = mesh.everywhere(grid, given)

        def unseen(*given: Any) -> training.TransferState:
            return after.fold(program.unseen(*given))

        def settle(seen: training.TransferState, *_: Any) -> training.TransferState:
            return after.fold(program.settle(after.unfold(seen)))

    def step(
        problem: objective.Problem, state: training.TransferState
    ) -> tuple[training.TransferState, training.Metrics]:
        state, metrics = program.step(problem, after.unfold(state))
        return after.fold(state), metrics

    whole, there = mesh.everywhere(grid, 0), mesh.problems(grid, problem)
    first = jax.jit(unseen, in_shardings=lie, out_shardings=after.shardings)
    each = convolution.jit(
        step,
        in_shardings=(there, after.shardings),
        out_shardings=(after.shardings, whole),
        donate_argnums=1,
    )
    settled = jax.jit(settle, in_shardings=(after.shardings, *lie), out_shardings=after.shardings)
    result = jax.jit(
        lambda state: program.result(after.unfold(state)),
        in_shardings=(after.shardings,),
        out_shardings=whole,
    )

    def compile_(name: str, function: Any, *arguments: Any) -> jax.stages.Compiled:
        def lower() -> jax.stages.Lowered:
            with mesh.told(grid):
                return function.lower(*arguments)

        return program_cache.compiled((name, key), lower, tuple(grid.devices.flat))

    folded = after.folded()
    each = compile_("step", each, problem, folded)
    first, settled = compile_("unseen", first, *given), compile_("settle", settled, folded, *given)
    result = compile_("result", result, folded)

    def begin(problem: objective.Problem, choose: Choose, *given: Any) -> training.TransferState:
        unseen = first(*given)
        if after.structure.choices:
            choices = choose(np.asarray(result(unseen)))
            unseen = unseen._replace(choices=mesh.put(choices, after.shardings.choices))
        seen, _ = each(problem, unseen)
        return settled(seen, *given)

    moves = after.put, after.fetch
    return Compiled(begin, after.structure, each, result, memory.required(each), moves)


def run(
    task: Task,
    spec: catalogue.Spec,
    cache: Cache,
    directory: pathlib.Path,
    comment: str,
    *,
    on_compiled: Callable[[float], None],
    report: Callable[[np.ndarray], None],
    checkpoint_seconds: float,
    tensorboard: bool = False,
    show: Callable[[np.ndarray], None] | None = None,
) -> loop.Result:
    """Compiles one optimizer's programs and runs them in a directory that is claimed and begun.

    Args:
      task: the problem.
      spec: the optimizer.
      cache: of compiled programs.
      directory: of the run.
      comment: text that the picture carries.
      on_compiled: is told the seconds that compiling took, for each scale.
      report: is told each row of the metrics.
      checkpoint_seconds: see `loop.execute`.
      tensorboard: whether event files are written, to `tensorboard/`.
      show: is shown the picture every few seconds, and the result.
    """
    settings, scales, grid = task.settings, len(task.shapes), mesh.grid(spread(spec, cache))
    manifest = describe(task, spec, grid.size)
    processes.check_alike(manifest)
    regions.write(task.masks, directory)

    def load(number: int) -> loop.Programs:
        here, begun = place(task, number, grid), time.perf_counter()
        ready, problem = compiled(task, spec, number, cache, here), here.problem
        seconds = time.perf_counter() - begun
        manifest["compile_seconds"] += seconds
        on_compiled(seconds)

        def begin(state: training.TransferState | None) -> training.TransferState:
            # The step is given its state's buffers to write into, so the start image must be a copy.
            first = jnp.copy(task.start), hyperparameters(spec, settings.seed)
            given = (state,) if number else mesh.put_everywhere(here.grid, first)
            return ready.begin(problem, functools.partial(task.choices, number), *given)

        advance = functools.partial(ready.step, problem)
        return loop.Programs(begin, ready.structure, advance, ready.result, *ready.moves)

    snapshots = directory / "snapshots"
    events = Events(directory / "tensorboard", choices(spec, settings.seed)) if tensorboard else None
    pace, looks = Pace(checkpoint_seconds), Pace(LOOK_SECONDS)
    program = training.program(task.form, spec.name, spec.static)

    def tell(row: np.ndarray) -> None:
        report(row)
        if events:
            processes.first(lambda: events.row(row))

    @processes.alone
    def keep(step: int, image: np.ndarray) -> None:
        if settings.save_every:
            snapshots.mkdir(exist_ok=True)
            pictures.write(snapshots / f"{step:06}.png", image)
        if events:
            events.image(image)

    def watch(step: int, state: training.TransferState, image: Callable[[], np.ndarray]) -> None:
        if events and (stepsize := program.stepsize(state)) is not None:
            length = float(stepsize)
            processes.first(lambda: events.stepsize(length))
        if step % (settings.save_every or settings.steps) == 0:
            if settings.save_every or events:
                keep(step, task.finish(image()))
        elif events and not settings.save_every:
            pace.keep(lambda: keep(step, task.finish(image())))
        if show:
            looks.keep(lambda: show(task.finish(image())))

    @processes.alone
    def save(image: np.ndarray) -> None:
        if events:
            events.image(task.finish(image))
        if show:
            show(task.finish(image))
        pictures.write(directory / "image.png", task.finish(image), comment, bits=settings.bits)
        if settings.save_every:
            frames = [*sorted(snapshots.glob("*.png")), directory / "image.png"]
            pictures.write_animation(directory / "animation.webp", frames)

    try:
        result = loop.execute(
            directory,
            manifest,
            [
                loop.Stage(last, functools.partial(load, number))
                for number, last in enumerate(inputs.last_steps(settings.steps, scales))
            ],
            save=save,
            report=tell,
            watch=watch,
            checkpoint_seconds=checkpoint_seconds,
        )
    finally:
        if events:
            events.close()
    return result


def choices(spec: catalogue.Spec, seed: int) -> dict[str, Any]:
    """What tells the arms of a comparison apart, for TensorBoard's page of hyperparameters."""
    return {"optimizer": spec.name, **dict(spec.static), **spec.traced, "seed": seed}


def describe(task: Task, spec: catalogue.Spec, devices: int) -> dict[str, Any]:
    """The manifest of a run that begins."""
    return (
        journal.environment(devices)
        | task.facts
        | {
            "optimizer": {"name": spec.name, **dict(spec.static), **spec.traced},
            "shape": list(task.shapes[-1]),
            "steps": task.settings.steps,
            "compile_seconds": 0.0,
        }
    )


def complete(
    posed: Task, optimizer: str, directory: pathlib.Path, cache: Cache, conduct: launch.Conduct
) -> bool:
    """Runs one arm, from where it is to its end. If it had ended, False is returned and nothing done."""
    given = dataclasses.replace(posed.settings, optimizer=optimizer)
    with workdir.claimed(directory):
        if _begin(posed, given, directory, conduct.overwrite) in _ENDED:
            return False
        with tqdm(total=given.steps, unit="step", desc=directory.name, disable=None) as bar:

            def show(row: np.ndarray) -> None:
                if bar.n == 0:
                    bar.initial = int(row[0])  # earlier steps say nothing of the time left
                bar.set_postfix_str(f"loss {row[3]:.6g}", refresh=False)
                bar.update(int(row[0]) - bar.n)

            result = run(
                posed,
                parse_optimizer(given),
                cache,
                directory,
                record(given),
                on_compiled=lambda _: bar.reset(),
                report=show,
                checkpoint_seconds=conduct.checkpoint_seconds,
                tensorboard=conduct.tensorboard,
            )
    print(told(directory.name, result.status, result.rows), flush=True)
    return True


def job(
    posed: Task, optimizer: str, directory: pathlib.Path, conduct: launch.Conduct
) -> Callable[[], None] | None:
    """What completes one arm in another process, or None if it has ended. The arm is begun."""
    given = dataclasses.replace(posed.settings, optimizer=optimizer)
    with workdir.claimed(directory):
        ended = _begin(posed, given, directory, conduct.overwrite) in _ENDED
    return None if ended else functools.partial(_work, given, directory, conduct._replace(overwrite=False))


def _work(given: Settings, directory: pathlib.Path, conduct: launch.Conduct) -> None:
    cache = Cache()
    complete(pose(given, cache), given.optimizer, directory, cache, conduct)


_ENDED = ("finished", "diverged")


def _begin(posed: Task, given: Settings, directory: pathlib.Path, overwrite: bool) -> str:
    return workdir.begin(directory, record(given), overwrite, inputs=posed.facts)


def told(name: str, status: str, rows: np.ndarray) -> str:
    """The line that says how an arm ended."""
    step, evaluations, seconds, total = rows[-1, :4]
    return (
        f"{name}: {status}, loss {rows[0, 3]:.6g} -> {total:.6g} "
        f"in {step:.0f} steps, {evaluations:.0f} evaluations, {seconds:.1f} s"
    )
