"""One optimizer at several learning rates, all in one compiled program: `jax.vmap` over its hyperparameters."""

import functools
import io
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from tqdm import tqdm

from jaxstyle import files, training
from jaxstyle.errors import UserError
from jaxstyle.losses import objective
from jaxstyle.optimizers import catalogue
from jaxstyle.runs import memory, mesh, workdir
from jaxstyle.runs.checkpoints import Checkpoints
from jaxstyle.runs.clocks import Pace, Stopwatch
from jaxstyle.runs.signals import Interrupted, interruptible

from . import arm, programs, task
from .cache import Cache, signature
from .settings import Settings

#: What a step of a lane records; NaN after it diverged.
COLUMNS = ("step", "evaluations", "total", "content", "style", "tv")

Rows = Float[np.ndarray, "steps+1 lanes columns"]


def parse_rates(texts: Iterable[str]) -> list[float]:
    """The rates, sorted, each once.

    Raises:
      UserError: one is no such number, or there is none.
    """
    rates = set()
    for text in texts:
        try:
            rate = float(text)
        except ValueError:
            rate = math.nan
        if not 1e-30 <= rate <= 1e30:
            raise UserError(
                f"--learning_rates: each must be a number from 1e-30 to 1e30, not {text.strip()!r}"
            )
        rates.add(rate)
    if not rates:
        raise UserError("--learning_rates: there must be one or more, as in 0.1,1,10")
    return sorted(rates)


def at_rate(text: str, rate: float) -> str:
    """An optimizer's text, which leaves the learning rate open, with a rate in all its digits."""
    method, at, variables = text.strip().partition("@")
    name, _, rest = method.partition(":")
    digits = repr(rate).removesuffix(".0")
    return f"{name}:learning_rate={digits}" + (f",{rest}" if rest else "") + at + variables


class Lanes(NamedTuple):
    """Programs of several learning rates at once, where their states lie, and the mesh."""

    count: int
    grid: Mesh
    states: mesh.States
    init: Callable[..., training.TransferState]
    step: Callable[..., tuple[training.TransferState, training.Metrics]]


def hyperparameters(spec: catalogue.Spec, seed: int, rates: Sequence[float]) -> dict[str, jax.Array]:
    """Those of each lane: they differ in the learning rate."""
    values = programs.hyperparameters(spec, seed)
    values = {key: jnp.broadcast_to(value, (len(rates),)) for key, value in values.items()}
    return values | {"learning_rate": jnp.float32(rates)}


def compile_(
    posed: task.Task, spec: catalogue.Spec, count: int, devices: Sequence[jax.Device], *, fewer: bool
) -> Lanes:
    """The programs for `count` rates or some more, or for `fewer` where half of the memory is too little for so many.

    Lanes are spread over the devices, and the rows of their images where there are more devices than lanes.
    """
    while True:
        grid = mesh.grid(devices, count)
        count = -(-count // grid.shape["lanes"]) * grid.shape["lanes"]
        limit = memory.available(devices) / 2 if fewer and count > 1 else math.inf
        if lanes := _compiled(posed, spec, count, grid, limit):
            return lanes
        count = math.ceil(count / 2)


def _compiled(posed: task.Task, spec: catalogue.Spec, count: int, grid: Mesh, limit: float) -> Lanes | None:
    """The programs on a mesh that has the lanes divide, if a step needs no more bytes than the limit."""
    here = programs.place(posed, 0, grid)
    static = here.form, spec.name, spec.static, posed.settings.clip
    program = training.program(*static)
    given = posed.start, hyperparameters(spec, posed.settings.seed, [1.0] * count)
    over = functools.partial(jax.vmap, spmd_axis_name="lanes")
    functions = programs.Functions(
        unseen=over(program.unseen, (None, 0)),
        step=over(program.step, (None, 0)),
        settle=lambda seen, *_: over(program.settle)(seen),
    )
    states = mesh.states(grid, jax.eval_shape(functions.unseen, *given), lanes=True)
    lie, key = mesh.everywhere(grid, given), ("lanes", static, grid, signature((here.problem, given)))
    ready = programs.compile_states(here, states, functions, given, lie, key)
    sizes = ready.step.memory_analysis()
    if sizes.temp_size_in_bytes + sizes.argument_size_in_bytes > limit:
        return None

    def init(problem: objective.Problem, *given: Any) -> training.TransferState:
        seen, _ = ready.step(problem, ready.unseen(*given))
        return ready.settle(seen, *given)

    return Lanes(count, grid, states, init, ready.step)


def run(
    posed: task.Task,
    spec: catalogue.Spec,
    lanes: Lanes,
    rates: Sequence[float],
    directory: pathlib.Path,
    show: Callable[[int, np.ndarray], None],
    checkpoint_seconds: float,
) -> Rows:
    """The rows of some learning rates, from where a run in the directory stopped; there are no more than lanes.

    `show` is told each step and all rows up to it.

    Raises:
      Interrupted: a signal asked for it; the same call goes on from there.
    """
    steps, whole = posed.settings.steps, directory / "rows.npy"
    if whole.exists():
        return np.load(whole)
    padded = [*rates, *[rates[-1]] * (lanes.count - len(rates))]
    values = hyperparameters(spec, posed.settings.seed, padded)
    checkpoints, problem = Checkpoints(directory), programs.place(posed, 0, lanes.grid).problem

    def keep(step: int, state: training.TransferState, rows: Rows) -> None:
        checkpoints.save(step, lanes.states.fetch(state), rows)

    directory.mkdir(parents=True, exist_ok=True)
    with workdir.locked(directory), interruptible() as signals:
        if restored := checkpoints.restore(lambda step: lanes.states.structure):
            state, rows = lanes.states.put(restored[0]), restored[1]
        else:
            state, rows = begin(posed, lanes, problem, values)
        step, pace, watch = int(state.step[0]), Pace(checkpoint_seconds), Stopwatch()
        while step < steps and not np.all(state.diverged):
            if signals:
                keep(step, state, rows)
                raise Interrupted(signals[0])
            state, metrics = watch.call(lanes.step, problem, state)
            step += 1
            rows[step] = np.where(np.asarray(metrics.diverged)[:, None], np.nan, np.stack(metrics[:6], -1))
            show(step, rows[: step + 1])
            pace.keep(functools.partial(keep, step, state, rows))
        rows = rows[:, : len(rates)]
        buffer = io.BytesIO()
        np.save(buffer, rows)
        files.write_atomically(whole, buffer.getvalue())
        checkpoints.clear()
        if signals:
            raise Interrupted(signals[0])
    return rows


def sweep(
    posed: task.Task,
    spec: catalogue.Spec,
    cache: Cache,
    rates: Sequence[float],
    chunk: int | None,
    stem: pathlib.Path,
    checkpoint_seconds: float,
    follow: Callable[[Sequence[float], Rows], None] = lambda rates, rows: None,
) -> Rows:
    """The rows of all rates, from where they stopped.

    Args:
      posed: the problem.
      spec: the optimizer.
      cache: of compiled programs; its devices are those that the lanes are spread over.
      rates: of the lanes, sorted.
      chunk: how many are in one program; if None, as many as half of the memory holds.
      stem: folder and beginning of the name of each chunk's folder.
      checkpoint_seconds: see `run`.
      follow: is told after each step the rates of a chunk, and all rows of its lanes.
    """
    if (rows := read(stem, rates)) is not None:
        return rows
    found, count, fewer = [], at_once(rates, chunk), chunk is None
    key = "lanes", posed.form, spec.name, spec.static, *spec.traced, count, fewer
    key = *key, posed.settings.clip, signature((posed.problem(0), posed.start))
    ready = cache.get(key, lambda: compile_(posed, spec, count, cache.devices, fewer=fewer))
    for some in (rates[i : i + ready.count] for i in range(0, len(rates), ready.count)):
        folder = part(stem, some)
        with tqdm(total=posed.settings.steps, unit="step", desc=folder.name, disable=None) as bar:

            def show(step: int, rows: Rows, bar: tqdm = bar, some: Sequence[float] = some) -> None:
                lowest = np.nanmin(rows[-1, :, 2], initial=np.inf)
                arm.advance(bar, step, f"lowest loss {lowest:.6g}")
                follow(some, rows)

            found.append(run(posed, spec, ready, some, folder, show, checkpoint_seconds))
    return np.concatenate(found, 1)


def at_once(rates: Sequence[float], chunk: int | None) -> int:
    """How many rates are in one program, of all in programs of at most `chunk`, or of all there are."""
    chunks = math.ceil(len(rates) / min(chunk or len(rates), len(rates)))
    return math.ceil(len(rates) / chunks)


def part(stem: pathlib.Path, rates: Sequence[float]) -> pathlib.Path:
    """The folder of a chunk, named by its first and last rate with all digits: two may agree in many."""
    return stem.with_name(f"{stem.name}-{rates[0]}-{rates[-1]}")


def read(stem: pathlib.Path, rates: Sequence[float]) -> Rows | None:
    """The rows of all rates, if all have run, in chunks of any size."""
    found, begin = [], 0
    while begin < len(rates):
        ends = range(begin + 1, len(rates) + 1)
        paths = {end: part(stem, rates[begin:end]) / "rows.npy" for end in ends}
        begin = max((end for end, path in paths.items() if path.exists()), default=0)
        if not begin:
            return None
        found.append(np.load(paths[begin]))
    return np.concatenate(found, 1)


def work(
    given: Settings,
    spec: catalogue.Spec,
    rates: Sequence[float],
    chunk: int | None,
    stem: pathlib.Path,
    checkpoint_seconds: float,
) -> None:
    """`sweep` in a process of its own."""
    cache = Cache()
    sweep(task.pose(given, cache), spec, cache, rates, chunk, stem, checkpoint_seconds)


def begin(
    posed: task.Task, lanes: Lanes, problem: objective.Problem, values: dict[str, jax.Array]
) -> tuple[training.TransferState, Rows]:
    """The states at the start, and rows of which the first is filled."""
    state = lanes.init(problem, *mesh.put_everywhere(lanes.grid, (jnp.copy(posed.start), values)))
    rows = np.full((posed.settings.steps + 1, lanes.count, len(COLUMNS)), np.nan)
    rows[0] = np.stack(training.metrics(state)[:6], -1)
    return state, rows
