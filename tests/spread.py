"""What a training step moves between devices and holds on each, from its compiled program: a JSON line a number.

Each optimizer that is given has them all.

    PYTHONPATH=. python tests/spread.py --size=1024x1024 --devices=1,2,4,8 --optimizer=adam
    PYTHONPATH=. python tests/spread.py --size=37x301 --devices=1,4 --optimizer=adam --narrow --steps=2

The devices are virtual ones of this CPU. With `--steps` so many are made as well, from noise, and a row tells how far
the first gradient and the last image are from those of the first number of devices, relative to their largest value.
`--lanes=N` is a sweep's step, of N learning rates at once.
`--narrow` takes a network of few channels, whose programs compile in seconds.
"""

import argparse
import json
import math
import re
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
from narrow import network

from experiments import benchmark, lanes, programs
from experiments.cache import Cache
from experiments.settings import Settings
from experiments.task import Task
from jaxstyle.losses import objective, recipes
from jaxstyle.network import convolution, vgg
from jaxstyle.optimizers import catalogue
from jaxstyle.runs import mesh

BYTES = {"f32": 4, "c64": 8, "s32": 4, "u32": 4, "pred": 1}
COLLECTIVE = re.compile(
    r"= (.*?) (collective-permute|all-reduce|all-gather|all-to-all|reduce-scatter)(?:-start)?\("
)


def collectives(text: str) -> dict[str, dict[str, int]]:
    """By kind: how many a program has, the bytes that they give one device, and those of the largest array.

    What is in a loop is counted once: a line search has its evaluation in one.
    """
    found: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "bytes": 0, "largest": 0})
    for shapes, name in COLLECTIVE.findall(text):
        row = found[name]
        row["count"] += 1
        for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            size = BYTES[kind] * math.prod(int(side) for side in sides.split(",") if side)
            row["bytes"] += size
            row["largest"] = max(row["largest"], size)
    return dict(found)


def pose(narrow: bool, height: int, width: int, method: str) -> objective.Problem:
    """A problem of random pictures; of the whole network only its shapes matter, and all is zero."""
    prepared = vgg.prepare(
        network() if narrow else benchmark.random_network(), "block5_conv1", method, padding="edge"
    )
    content, style = jax.random.uniform(jax.random.key(0), (2, height, width, 3), maxval=255.0)
    weighting = recipes.weighting(recipes.RECIPES["gatys"], content.shape)

    def make(content: jax.Array, style: jax.Array) -> objective.Problem:
        return objective.pose(objective.GATYS, prepared, content, [objective.Style(style)], weighting)

    if narrow:
        return convolution.jit(make)(content, style)
    shapes = jax.eval_shape(make, content, style)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)._replace(network=prepared)


def sizes(devices: int, step: jax.stages.Compiled) -> dict:
    """What a compiled step tells of itself."""
    held = step.memory_analysis()
    return {
        "devices": devices,
        "temporary_bytes": held.temp_size_in_bytes,
        "argument_bytes": held.argument_size_in_bytes,
        "collectives": collectives(step.as_text()),
    }


def task_of(problem: objective.Problem, shape: tuple) -> Task:
    start = jax.random.uniform(jax.random.key(1), shape, maxval=255.0)
    posed = {"problem": lambda _: problem, "choices": lambda *_: (), "start": start}
    return Task(Settings(steps=0), objective.GATYS, [shape], finish=np.asarray, facts={}, **posed)


def measure_lanes(task: Task, spec: catalogue.Spec, count: int, devices: int, steps: int) -> dict:
    """The row of a sweep's step at so many rates, from 1 on, each twice that before."""
    ready = lanes.compile_(task, spec, count, jax.devices()[:devices], fewer=False)
    row = sizes(devices, ready.step)
    if steps:
        problem = programs.place(task, 0, ready.grid).problem
        values = lanes.hyperparameters(spec, 0, [2.0**k for k in range(ready.count)])
        state, _ = lanes.begin(task, ready, problem, values)
        gradient = ready.states.fetch(state).iterate.evaluation.gradient
        for _ in range(steps):
            state, metrics = ready.step(problem, state)
        images = ready.states.fetch(state).iterate.image
        row |= {"total": float(metrics.total[0]), "image": images, "first": gradient}
    return row


def measure(task: Task, spec: catalogue.Spec, devices: int, steps: int) -> dict:
    here = programs.place(task, 0, mesh.grid(jax.devices()[:devices]))
    ready = programs.compiled(task, spec, 0, Cache(), here)
    row = sizes(devices, ready.step)
    if steps:
        start = task.start
        first = mesh.put_everywhere(here.grid, (start, programs.hyperparameters(spec, 0)))
        state = ready.begin(here.problem, lambda image: (), *first)
        gradient = ready.moves[1](state).iterate.evaluation.gradient
        for _ in range(steps):
            state, metrics = ready.step(here.problem, state)
        row |= {"total": float(metrics.total), "image": np.asarray(ready.result(state)), "first": gradient}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="37x301")
    parser.add_argument("--devices", default="1,4")
    parser.add_argument("--optimizer", action="append")
    parser.add_argument("--convolution", default="direct")
    parser.add_argument("--narrow", action="store_true")
    parser.add_argument("--lanes", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0)
    asked = parser.parse_args()
    counts = [int(text) for text in asked.devices.split(",")]
    jax.config.update("jax_num_cpu_devices", max(counts))
    jax.config.update("jax_enable_compilation_cache", False)
    width, height = map(int, asked.size.split("x"))
    problem = pose(asked.narrow, height, width, asked.convolution)
    task = task_of(problem, (height, width, 3))
    for text in asked.optimizer or ["adam"]:
        spec, whole = catalogue.parse(text), None
        for count in counts:
            if asked.lanes:
                row = measure_lanes(task, spec, asked.lanes, count, asked.steps)
            else:
                row = measure(task, spec, count, asked.steps)
            if asked.steps:
                whole = whole or dict(row)
                for name in ("first", "image"):
                    row[name] = float(np.abs(row[name] - whole[name]).max() / np.abs(whole[name]).max())
            print(json.dumps({"optimizer": text} | row), flush=True)


if __name__ == "__main__":
    main()
