"""Runs a command on a network of random weights and few channels, so that tests need not wait for VGG16.

python tests/narrow.py experiments.compare --steps=3 ...
"""

import atexit
import functools
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from jaxstyle.network import vgg, weights
from jaxstyle.quality import photo

ROOT = pathlib.Path(__file__).parent.parent


@functools.cache
def _cache() -> str:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return folder


def command(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Arguments for `subprocess` that run a command so. Compiled programs are shared until Python ends."""
    ours = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": _cache(), "JAX_ENABLE_COMPILATION_CACHE": "true"}
    return {
        "args": [sys.executable, __file__, module, *arguments],
        "cwd": ROOT,
        "env": os.environ | ours | environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


def network() -> vgg.Network:
    rng = np.random.default_rng(0)
    channels, convolutions = 3, {}
    for layer in vgg.layer_names("vgg16"):
        width = 4 * int(layer[5])
        kernel = rng.normal(0, (2 / (9 * channels)) ** 0.5, (3, 3, channels, width)).astype(np.float32)
        convolutions[layer] = vgg.Convolution(kernel, np.zeros(width, np.float32))
        channels = width
    return vgg.Network(convolutions, np.float32([120, 115, 100]), np.float32([58, 57, 57]))


def _python() -> str:
    """A Python for the jobs that a command starts, in which they are as narrow as the command."""
    script = pathlib.Path(_cache(), "python")
    job = "-u -m submitit.core._submit"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in\n"{job} "*) shift 2; exec {sys.executable} -u {__file__} "$@";;\n'
        f'*) exec {sys.executable} "$@";;\nesac\n'
    )
    script.chmod(0o755)
    return str(script)


if __name__ == "__main__":
    sys.executable = _python()
    weights.load = lambda name: weights.Weights(name, "vgg16", network(), "0" * 64)
    weights.lpips_heads = lambda: {layer: np.ones(4 * int(layer[5]), np.float32) for layer in photo.LAYERS}
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
