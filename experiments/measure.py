"""Measures results by more than the loss that was optimised -> one JSON line a result.

python -m experiments.measure --result=runs/me --result=runs/compare

A result is the folder of a run; that of a comparison stands for all its arms. `lpips` is the learned perceptual
distance to the photo: how much of it is left, 0 all. `style` is the mean relative distance of Gram matrices at layers
that no default of the program optimises, `style_by_layer` each: how much of the style has come, 0 all.
"""

import json
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from absl import flags

from experiments import inputs, launch
from jaxstyle import pictures, quality, vgg, weights
from jaxstyle.errors import UserError

_RESULT = flags.DEFINE_multi_string(
    "result", ["runs/stylize"], "Folder of a run or of a comparison; repeatable."
)


def runs(path: pathlib.Path) -> list[pathlib.Path]:
    """The folders of the runs that a result stands for.

    Raises:
      UserError: there is no picture of a run.
    """
    found = sorted(picture.parent for picture in path.glob("arms/*/image.png")) or [path]
    for folder in found:
        for name in ("run.flags", "image.png"):
            if not (folder / name).is_file():
                raise UserError(
                    f"--result={path}: has no {name}; the folder of a run that has ended is needed"
                )
    return found


def recorded(folder: pathlib.Path) -> dict[str, list[str]]:
    """The flags of a run's record, each with its values."""
    values: dict[str, list[str]] = {}
    for line in (folder / "run.flags").read_text("utf-8", "replace").splitlines():
        name, _, value = line.removeprefix("--").partition("=")
        values.setdefault(name, []).append(value)
    return values


def measure(folder: pathlib.Path) -> dict[str, object]:
    """The row of one run. Pictures are compared at the size of the result.

    Raises:
      UserError: a picture of the record cannot be read.
    """
    given = recorded(folder)
    try:
        content, styles, scale = given["content"][0], given["style"], float(given["style_scale"][0])
        resize = given["resize"][0]
    except (KeyError, ValueError) as error:
        raise UserError(f"{str(folder / 'run.flags')!r}: is not the record of a run: {error}") from error
    result = jnp.asarray(pictures.read(folder / "image.png"))
    height, width, _ = result.shape
    photo = jnp.asarray(pictures.read(launch.path(content), (width, height), resize))
    shared = [inputs.parse_style(launch.path(text)) for text in styles]
    size = inputs.scaled(max(width, height), scale)
    wanted = [(jnp.asarray(pictures.read(path, size, resize)), share) for path, share in shared]
    network = vgg.prepare(weights.load("vgg16-torchvision").network, "block5_conv3", "direct")
    heads = weights.lpips_heads()
    distance = jax.jit(quality.lpips)(network, heads, result, photo)
    layers = {
        layer: float(value)
        for layer, value in jax.jit(quality.style_distances)(network, result, wanted).items()
    }
    return {
        "result": str(folder),
        "lpips": float(distance),
        "style": sum(layers.values()) / len(layers),
        "style_by_layer": layers,
    }


def rows() -> Iterator[dict[str, object]]:
    for path in _RESULT.value:
        for folder in runs(pathlib.Path(path)):
            yield measure(folder)


def main() -> None:
    for row in rows():
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    launch.run(main)
