"""The programs of an optimizer at one scale of a task, compiled once: where they run, and what they are made of."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxstyle import training
from jaxstyle.errors import UserError
from jaxstyle.images import start
from jaxstyle.losses import objective, rows
from jaxstyle.network import convolution
from jaxstyle.optimizers import catalogue
from jaxstyle.runs import memory, mesh

from . import program_cache, room
from .cache import Cache, signature
from .task import Task

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


def hyperparameters(spec: catalogue.Spec, seed: int) -> dict[str, jax.Array]:
    """The traced hyperparameters as arrays, and the random key for an optimizer that wants one."""
    values = jax.device_put({name: np.float32(value) for name, value in spec.traced.items()})
    if spec.needs_key:
        values["key"] = start.stream(seed, "optimizer")
    return values


class Functions(NamedTuple):
    """What begins and advances states, or lanes of them.

    Attributes:
      unseen: of what is given to begin with, the state whose losses are not known.
      step: of a problem and a state.
      settle: of that state after a step, and what was given, the one to begin with.
    """

    unseen: Callable[..., training.TransferState]
    step: Callable[..., tuple[training.TransferState, training.Metrics]]
    settle: Callable[..., training.TransferState]


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
    check_strips(task, grid.shape["rows"])
    form = task.form._replace(devices=grid.shape["rows"])
    problem = rows.lay(form, task.problem(number), task.shapes[number])
    return Place(grid, form, mesh.put(problem, mesh.problems(grid, problem)))


def check_strips(task: Task, devices: int) -> None:
    """Refuses strips of a picture that is spread over devices.

    Raises:
      UserError: it is so.
    """
    if task.form.strips > 1 and devices > 1:
        raise UserError(
            f"--strips={task.form.strips}: a picture that is spread over {devices} devices has none; take "
            "--devices=1, or no strips"
        )


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
        kept = catalogue.bytes_kept(spec, task.shapes[-1])
        memory.check(kept, memory.available(here.grid.devices.flat), *task.shapes[-1][:2])
        return cache.get(key, lambda: _on_host(program, task, number, here, values))
    ready = cache.get(key, lambda: _on_mesh(program, task, number, here, values, key))
    needed, free = needed_at_last(ready, task, number, here), memory.available(here.grid.devices.flat)
    memory.check(needed, free, *task.shapes[-1][:2], _constant(here.problem), room.needs_less(here.form))
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

    Its first calls compile, with arrays that lie where those of a run do; the run's are then as fast as all others.
    """
    shape = task.shapes[number]
    structure = program.init(here.problem, *mesh.put_everywhere(here.grid, (jnp.zeros(shape), values)))
    structure = structure._replace(choices=_choices(task, number))
    program.step(here.problem, structure)

    def begin(problem: objective.Problem, choose: Choose, *given: Any) -> training.TransferState:
        if not number:
            return program.init(problem, *given)
        (before,) = given
        image = program.enlarged(shape, before)
        choices = structure.choices and choose(np.asarray(image))
        return program.init(problem, image, before.hyperparameters, before, choices)

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
    grid, shape = here.grid, task.shapes[number]

    def states(number: int) -> mesh.States:
        image = jax.ShapeDtypeStruct(task.shapes[number], jnp.float32)
        return mesh.states(grid, jax.eval_shape(program.unseen, image, values, _choices(task, number)))

    after = states(number)
    if number:
        before = states(number - 1)
        given, lie = (before.folded(),), (before.shardings,)
        functions = _from_state(program, shape, before, after.structure)
    else:
        given = jax.ShapeDtypeStruct(shape, jnp.float32), values
        lie = mesh.everywhere(grid, given)
        functions = Functions(program.unseen, program.step, lambda seen, *_: program.settle(seen))
    ready = compile_states(here, after, functions, given, lie, key)
    result = jax.jit(
        lambda state: program.result(after.unfold(state)),
        in_shardings=(after.shardings,),
        out_shardings=mesh.everywhere(grid, 0),
    )
    result = _compile(grid, ("result", key), result, after.folded())

    def begin(problem: objective.Problem, choose: Choose, *given: Any) -> training.TransferState:
        unseen = ready.unseen(*given)
        if after.structure.choices:
            choices = choose(np.asarray(result(unseen)))
            unseen = unseen._replace(choices=mesh.put(choices, after.shardings.choices))
        seen, _ = ready.step(problem, unseen)
        return ready.settle(seen, *given)

    moves = after.put, after.fetch
    return Compiled(begin, after.structure, ready.step, result, memory.required(ready.step), moves)


def _from_state(
    program: training.Program, shape: tuple[int, int, int], before: mesh.States, like: training.TransferState
) -> Functions:
    """What begins from the last state of the scale before, and advances."""

    def unseen(state: training.TransferState) -> training.TransferState:
        state = before.unfold(state)
        blank = jax.tree.map(jnp.zeros_like, like.choices)
        return program.unseen(program.enlarged(shape, state), state.hyperparameters, blank)

    def settle(seen: training.TransferState, state: training.TransferState) -> training.TransferState:
        return program.settle(seen, before.unfold(state))

    return Functions(unseen, program.step, settle)


def compile_states(
    here: Place, states: mesh.States, functions: Functions, given: Sequence[Any], lie: Any, key: Hashable
) -> Functions:
    """The functions compiled, of states as they lie on a mesh, folded. The step writes into the state it is given.

    Args:
      here: where.
      states: where those of the functions lie.
      functions: of unfolded states.
      given: what is given to begin with, or its shapes and dtypes.
      lie: the shardings of that.
      key: of what all this is traced for.
    """
    problem = here.problem

    def unseen(*given: Any) -> training.TransferState:
        return states.fold(functions.unseen(*given))

    def step(
        problem: objective.Problem, state: training.TransferState
    ) -> tuple[training.TransferState, training.Metrics]:
        state, metrics = functions.step(problem, states.unfold(state))
        return states.fold(state), metrics

    def settle(seen: training.TransferState, *given: Any) -> training.TransferState:
        return states.fold(functions.settle(states.unfold(seen), *given))

    unseen = jax.jit(unseen, in_shardings=lie, out_shardings=states.shardings)
    settle = jax.jit(settle, in_shardings=(states.shardings, *lie), out_shardings=states.shardings)
    step = convolution.jit(
        step,
        in_shardings=(mesh.problems(here.grid, problem), states.shardings),
        out_shardings=(states.shardings, mesh.everywhere(here.grid, 0)),
        donate_argnums=1,
    )
    folded = states.folded()
    return Functions(
        step=_compile(here.grid, ("step", key), step, problem, folded),
        unseen=_compile(here.grid, ("unseen", key), unseen, *given),
        settle=_compile(here.grid, ("settle", key), settle, folded, *given),
    )


def _compile(grid: Mesh, key: Hashable, function: Any, *arguments: Any) -> jax.stages.Compiled:
    def lower() -> jax.stages.Lowered:
        with mesh.told(grid):
            return function.lower(*arguments)

    return program_cache.compiled(key, lower, tuple(grid.devices.flat))
