"""Measures results by more than the loss that was optimised -> one JSON line a result.

python -m experiments.measure --result=runs/me --result=runs/compare
python -m experiments.measure --result=other.png --content=me.jpg --style=painting.jpg

A result is the folder of a run, whose record says what it was made of; a folder of runs, for all of them; that of a
comparison, for all its arms; or any picture, for which the flags say it. How much of the photo is left, 0 all:

  lpips            the learned perceptual distance to it
  self_similarity  how differently its parts resemble each other, whatever their colours and strokes, from 0 to 1

And how much of the style has come, 0 all but for the effectiveness, of which more is better:

  style            the mean relative distance of Gram matrices at five layers that the default losses do not optimise
                   (nearest and split do, the first four of them); style_by_layer each
  effectiveness    the mean there of -log of the divergence of the features' distributions (the E of Yeh et al. 2020);
                   effectiveness_by_layer each
  sifid            the Fréchet distance of these distributions in block2_conv2, SIFID's formula
  palette          the distance of colours, in units of CIE Lab

Pictures are compared at the size of the result. Colours are treated as in the run: with --preserve_color the style is
that which the run was given, and with masks that of each region, weighted as in the run. `experiments.verify` tells
whether the pictures of a record are still the same.
"""

import json
import os
import pathlib

from absl import flags

from jaxstyle.errors import UserError

from . import launch, settings, yardstick
from .cache import Cache
from .settings import Settings

_RESULT = flags.DEFINE_multi_string(
    "result",
    ["runs/portrait-night"],
    "Folder of a run, of runs or of a comparison, or a picture; repeatable.",
)

#: What is said of a picture by flags, and of a run by its record.
OF_PICTURES = (
    *("content", "style", "content_mask", "style_mask", "regions", "seed", "weights"),
    *("size", "resize", "style_scale", "preserve_color"),
)
for _name in (*OF_PICTURES, "compilation_cache"):
    flags.declare_key_flag(_name)

#: Files of folders that commands have written and that hold no picture.
_OF_NO_PICTURE = ("sweep.csv", "tables.md", "plane.png")


def _arms(folder: pathlib.Path) -> list[pathlib.Path]:
    return [record.parent for record in sorted(folder.glob("arms/*/run.flags"))]


def results(path: pathlib.Path) -> list[pathlib.Path]:
    """The pictures and the folders of ended runs that a result stands for.

    Raises:
      UserError: there is none, or a run has not ended.
    """
    if os.path.isfile(path):
        return [path]
    folders = [path]
    if os.path.isdir(path) and not (path / "image.png").exists():
        runs = [record.parent for depth in ("*", "*/*") for record in sorted(path.glob(f"{depth}/run.flags"))]
        pictured = [
            run for run in runs if _arms(run) or not any((run / name).exists() for name in _OF_NO_PICTURE)
        ]
        folders = _arms(path) or [each for run in pictured for each in _arms(run) or [run]] or folders
    for folder in folders:
        for name in ("run.flags", "image.png"):
            if not os.path.isfile(folder / name):
                raise UserError(
                    f"--result={path}: {str(folder / name)!r} is no file; a picture or the folder of a run that has "
                    "ended is needed"
                )
    return folders


def recorded(folder: pathlib.Path) -> Settings:
    """What a run's record says; where it is silent, the defaults.

    Raises:
      UserError: it cannot be read, names no photo, or has a value that a flag refuses.
    """
    path = folder / "run.flags"
    try:
        return settings.parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r}: cannot be read: {error}; an intact record is needed") from error
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}; the intact record of a run is needed") from error


def main() -> None:
    given, cache = settings.read(), Cache(launch.started()[:1])
    found = [each for path in _RESULT.value for each in results(pathlib.Path(path))]
    if not settings.given("content"):  # beside the picture of a run is what it was made of
        runs = [each.parent if each.name == "image.png" else each for each in found]
        found = [
            run if (run / "run.flags").is_file() else each for run, each in zip(runs, found, strict=True)
        ]
    if all(each.is_dir() for each in found) and (
        said := [name for name in OF_PICTURES if settings.given(name)]
    ):
        raise UserError(
            f"--{said[0]}: the record of a run says what it was made of; leave it out, or name a picture"
        )
    by = yardstick.load()
    for each in found:
        picture, of = (each / "image.png", recorded(each)) if each.is_dir() else (each, given)
        row = yardstick.measure(picture, of, by, cache)
        print(json.dumps({"result": str(each), **row}), flush=True)


if __name__ == "__main__":
    launch.run(main)
