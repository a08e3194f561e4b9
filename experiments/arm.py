"""One optimizer on a task, run in a directory."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxstyle import training
from jaxstyle.errors import UserError
from jaxstyle.lab.tensorboard import Events
from jaxstyle.optimizers import catalogue
from jaxstyle.runs import journal, loop, mesh, processes, workdir

from . import inputs, launch, programs, regions
from .cache import Cache
from .outputs import Outputs
from .settings import Settings, record
from .task import Task, pose


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


def run(
    task: Task,
    spec: catalogue.Spec,
    cache: Cache,
    directory: pathlib.Path,
    conduct: launch.Conduct,
    *,
    on_compiled: Callable[[float], None],
    report: Callable[[np.ndarray], None],
    show: Callable[[np.ndarray], None] | None = None,
) -> loop.Result:
    """Compiles one optimizer's programs and runs them in a directory that is claimed and begun.

    Args:
      task: the problem.
      spec: the optimizer.
      cache: of compiled programs.
      directory: of the run.
      conduct: how often it is kept, and whether event files are written, to `tensorboard/`.
      on_compiled: is told the seconds that compiling took, for each scale.
      report: is told each row of the metrics.
      show: is shown the picture every few seconds, and the result.
    """
    settings, grid = task.settings, mesh.grid(programs.spread(spec, cache))
    manifest = describe(task, spec, grid.size)
    processes.check_alike(manifest)
    regions.write(task.masks, directory)

    def compiled(seconds: float) -> None:
        manifest["compile_seconds"] += seconds
        on_compiled(seconds)

    stages = [
        loop.Stage(last, functools.partial(_load, task, spec, number, cache, grid, compiled))
        for number, last in enumerate(inputs.last_steps(settings.steps, len(task.shapes)))
    ]
    files = Events(directory / "tensorboard", choices(spec, settings.seed)) if conduct.tensorboard else None
    with contextlib.closing(files) if files else contextlib.nullcontext() as events:
        outputs = Outputs(
            task,
            directory,
            stepsize=training.program(task.form, spec.name, spec.static).stepsize,
            events=events,
            show=show,
            checkpoint_seconds=conduct.checkpoint_seconds,
        )

        def tell(row: np.ndarray) -> None:
            report(row)
            outputs.row(row)

        return loop.execute(
            directory,
            manifest,
            stages,
            save=outputs.save,
            report=tell,
            watch=outputs.watch,
            checkpoint_seconds=conduct.checkpoint_seconds,
            evaluations=math.inf if settings.evaluations is None else settings.evaluations,
        )


def _load(
    task: Task,
    spec: catalogue.Spec,
    number: int,
    cache: Cache,
    grid: Mesh,
    on_compiled: Callable[[float], None],
) -> loop.Programs:
    """The programs of a scale, with its problem."""
    here, begun = programs.place(task, number, grid), time.perf_counter()
    ready, problem = programs.compiled(task, spec, number, cache, here), here.problem
    on_compiled(time.perf_counter() - begun)

    def begin(state: training.TransferState | None) -> training.TransferState:
        # The step is given its state's buffers to write into, so the start image must be a copy.
        first = jnp.copy(task.start), programs.hyperparameters(spec, task.settings.seed)
        given = (state,) if number else mesh.put_everywhere(grid, first)
        return ready.begin(problem, functools.partial(task.choices, number), *given)

    advance = functools.partial(ready.step, problem)
    return loop.Programs(begin, ready.structure, advance, ready.result, *ready.moves)


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


def advance(bar: tqdm, step: int, note: str) -> None:
    """Brings a run's bar to a step. The steps before the first that it is told say nothing of the time left."""
    if bar.n == 0:
        bar.initial = bar.n = bar.last_print_n = max(step - 1, 0)
    bar.set_postfix_str(note, refresh=False)
    bar.update(step - bar.n)


def complete(
    posed: Task, optimizer: str, directory: pathlib.Path, cache: Cache, conduct: launch.Conduct
) -> bool:
    """Runs one arm, from where it is to its end. If it had ended, False is returned and nothing done."""
    posed = _with_optimizer(posed, optimizer)
    with workdir.claimed(directory):
        if _begin(posed, directory, conduct.overwrite) in journal.ENDED:
            return False
        with tqdm(total=posed.settings.steps, unit="step", desc=directory.name, disable=None) as bar:
            result = run(
                posed,
                parse_optimizer(posed.settings),
                cache,
                directory,
                conduct,
                on_compiled=lambda _: bar.reset(),
                report=lambda row: advance(bar, int(row[0]), f"loss {row[3]:.6g}"),
            )
    print(told(directory.name, result.status, result.rows), flush=True)
    return True


def job(
    posed: Task, optimizer: str, directory: pathlib.Path, conduct: launch.Conduct
) -> Callable[[], None] | None:
    """What completes one arm in another process, or None if it has ended. The arm is begun."""
    posed = _with_optimizer(posed, optimizer)
    with workdir.claimed(directory):
        ended = _begin(posed, directory, conduct.overwrite) in journal.ENDED
    own = conduct._replace(overwrite=False)
    return None if ended else functools.partial(_work, posed.settings, directory, own)


def _work(given: Settings, directory: pathlib.Path, conduct: launch.Conduct) -> None:
    cache = Cache()
    complete(pose(given, cache), given.optimizer, directory, cache, conduct)


def _with_optimizer(posed: Task, optimizer: str) -> Task:
    return posed._replace(settings=dataclasses.replace(posed.settings, optimizer=optimizer))


def _begin(posed: Task, directory: pathlib.Path, overwrite: bool) -> str:
    return workdir.begin(directory, record(posed.settings), overwrite, inputs=posed.facts)


def told(name: str, status: str, rows: np.ndarray) -> str:
    """The line that says how an arm ended."""
    step, evaluations, seconds, total = rows[-1, :4]
    return (
        f"{name}: {status}, loss {rows[0, 3]:.6g} -> {total:.6g} "
        f"in {step:.0f} steps, {evaluations:.0f} evaluations, {seconds:.1f} s"
    )
