"""One photo, one or more style pictures, one optimizer -> one picture.

python -m experiments.stylize --content=me.jpg --style=painting.jpg --size=512 --workdir=runs/me

A folder or a pattern such as 'photos/*.jpg' as --content makes a picture of each photo, in a run of its own in
`--workdir`/NAME; what they have in common is read, computed and compiled once.
"""

import dataclasses
import glob
import math
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from jaxstyle import files
from jaxstyle.errors import UserError
from jaxstyle.images import pictures
from jaxstyle.lab.preview import Preview
from jaxstyle.optimizers import catalogue
from jaxstyle.runs import journal, loop, memory, mesh, processes, workdir

from . import arm, inputs, launch, programs, room, settings, task
from .cache import Cache
from .settings import Settings

_OPTIMIZER = flags.DEFINE_string(
    "optimizer", Settings.optimizer, "NAME or NAME:key=value,key=value, as in adam:learning_rate=10."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, f"Write the picture to this file too: {', '.join(pictures.SUFFIXES)}."
)
_QUALITY = flags.DEFINE_integer(
    "quality", 95, "Of --output where its format has one.", lower_bound=1, upper_bound=100
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Say what the run would take: size, layers, memory, evaluations, time; and stop."
)
_PREVIEW = flags.DEFINE_bool(
    "preview",
    False,
    "Draw the picture in the terminal while it is made, by kitty's protocol or sixel, else in coloured half blocks "
    "(extra preview).",
)
_WORKDIR = launch.define_workdir("PHOTO-STYLE")

flags.adopt_module_key_flags(launch)


def photos(content: str) -> list[str]:
    """The photos that --content names: itself, or the pictures of a folder or a pattern.

    Raises:
      UserError: the folder or the pattern has none.
    """
    if not content:
        raise UserError("--content=: names no photo; a picture, a folder or a pattern is needed")
    path = pathlib.Path(content)
    if path.is_dir():
        found = [str(file) for file in pictures.in_folder(path)]
    elif glob.has_magic(content) and not path.exists():
        found = glob.glob(content)
    else:
        return [content]
    if not found:
        raise UserError(
            f"--content={content}: there is no picture; a picture, a folder or a pattern is needed"
        )
    return sorted(found)


def check_output(output: str, given: Settings, found: Sequence[str], directory: pathlib.Path | None) -> None:
    """Tells early that --output cannot be written, or is a file that the picture is to be made of, or of a run.

    Raises:
      UserError: it is so.
    """
    pictures.check_writable(output, given.bits)
    for path in (*found, *inputs.paths(given), given.weights):
        if os.path.exists(path) and os.path.exists(output) and os.path.samefile(path, output):
            raise UserError(
                f"--output={output}: is {path!r}, which the picture is made of; take another name"
            )
    folder, name = os.path.split(os.path.realpath(output))
    own = directory is not None and folder == os.path.realpath(directory)
    if name in workdir.FILES and (own or os.path.exists(os.path.join(folder, "run.flags"))):
        raise UserError(f"--output={output}: is the {name} of a run; take another name")


class Request(NamedTuple):
    """What the flags ask for besides the picture itself."""

    output: str | None
    quality: int
    dry_run: bool
    preview: Preview | None
    conduct: launch.Conduct


#: Pixels of a scale whose time and memory tell those of larger ones.
TELLING = 512 * 400


def describe(posed: task.Task, spec: catalogue.Spec, cache: Cache) -> None:
    """Prints what a run would take. Four steps are made for it, at the last scale or at one that is large enough."""
    smaller = task.beginning_at(TELLING, posed, cache)
    pixels = [height * width for height, width, _ in smaller.shapes]
    tried = next((k for k, count in enumerate(pixels) if count >= TELLING), len(pixels) - 1)
    height, width, _ = posed.shapes[-1]
    start = jax.image.resize(smaller.start, smaller.shapes[tried], "linear")
    rest = smaller._replace(
        shapes=smaller.shapes[tried:], problem=lambda k: smaller.problem(tried + k), start=start
    )
    devices = programs.spread(spec, cache)
    here, begun = programs.place(rest, 0, mesh.grid(devices)), time.perf_counter()
    ready, problem = programs.compiled(rest, spec, 0, cache, here), here.problem
    compiling = time.perf_counter() - begun
    first = start, programs.hyperparameters(spec, posed.settings.seed)
    state = ready.begin(problem, lambda image: (), *mesh.put_everywhere(here.grid, first))
    state, _ = jax.block_until_ready(ready.step(problem, state))
    seconds = programs.seconds_of_evaluation(ready, problem, state)
    seconds *= pixels[-1] / pixels[tried]
    scales, wanted = len(posed.shapes), posed.settings.evaluations
    least = min(posed.settings.steps + scales, wanted or math.inf)
    share = sum(height * width for height, width, _ in posed.shapes) / pixels[-1]
    needed, strips = programs.needed_at_last(ready, rest, 0, here), posed.form.strips
    if strips > 1 and tried < len(pixels) - 1:  # their windows do not grow as the image does
        needed = room.expected(posed.settings, posed.form, list(problem.network.filters), posed.shapes[-1])
    print(f"size: {', '.join(f'{w}x{h}' for h, w, _ in posed.shapes)}")
    if posed.masks:
        print(f"regions: {posed.masks}")
    print(f"content layers: {', '.join(posed.settings.content_layer)}")
    print(f"style layers: {', '.join(posed.settings.style_layer)}")
    if strips > 1:
        print(f"strips: {strips}{', and feature maps are computed again' if posed.form.remat else ''}")
    print(f"memory: {room.share(needed, memory.available(devices), len(devices))}")
    print(f"evaluations: {least} at least; at {width}x{height} one takes {seconds:.2f} s")
    seconds *= share * least / scales
    kept = jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir
    compiling *= scales - bool(kept)  # what was compiled here a run finds
    print(f"time: about {seconds:.0f} s, and {compiling:.0f} s to compile")


def stylize(given: Settings, directory: pathlib.Path | None, request: Request, cache: Cache) -> None:
    """Makes the picture of the settings in a directory, by default one of its name, or goes on with it.

    Raises:
      UserError: it cannot be made there.
    """
    spec = arm.parse_optimizer(given)
    if "@" not in given.optimizer:  # so that the record of a run does not depend on what suits
        variables = dict(spec.static).get("parametrization", "pixels")
        given = dataclasses.replace(given, parametrization=variables)
    if directory is not None:
        make(given, spec, directory, request, cache)
        return
    posed = task.pose(given, cache)
    launch.in_workdir(
        *(None, inputs.run_name(given), settings.record(posed.settings), room.chosen(given)),
        lambda directory: make(given, spec, directory, request, cache, posed),
    )


def make(
    given: Settings,
    spec: catalogue.Spec,
    directory: pathlib.Path,
    request: Request,
    cache: Cache,
    posed: task.Task | None = None,
) -> None:
    """Makes the picture of the settings in a directory, or goes on with it; `posed` are they, where they were read.

    Raises:
      UserError: it cannot be made there.
    """
    begun = given if request.conduct.overwrite else room.as_begun(given, directory)
    if posed is None or begun != given:
        posed = task.pose(begun, cache)
    programs.check_strips(posed, len(programs.spread(spec, cache)))
    if request.dry_run:
        describe(posed, spec, cache)
        return
    with workdir.claimed(directory):
        record = settings.record(posed.settings)
        state = workdir.begin(directory, record, request.conduct.overwrite, inputs=posed.facts)
        if state in journal.ENDED:
            print(f"{state} before; --overwrite runs it again")
            plot(directory)
            image = processes.first(lambda: pictures.read_result(directory / "image.png", given.bits))
            if request.preview:
                request.preview.show(image)
            copy(lambda: image, directory, posed.settings, request)
            return
        print("compiling …", flush=True)
        with tqdm(total=posed.settings.steps, unit="step", disable=None) as bar:

            def on_compiled(seconds: float) -> None:
                bar.write(f"compiled in {seconds:.1f} s")
                if request.preview:
                    request.preview.leave()

            result = arm.run(
                posed,
                spec,
                cache,
                directory,
                request.conduct,
                on_compiled=on_compiled,
                report=lambda row: arm.advance(bar, int(row[0]), f"loss {row[3]:.6g}"),
                show=request.preview and request.preview.show,
            )
        tell(result)
        plot(directory)
        copy(lambda: posed.finish(result.image), directory, posed.settings, request)


def tell(result: loop.Result) -> None:
    """Prints how a run ended."""
    if result.status == "diverged" and not np.isfinite(result.rows[-1, 3]):
        print(
            "diverged at the start: its loss is not finite. What usually helps are smaller --content_weight, "
            "--style_weight and --tv_weight."
        )
    elif result.status == "diverged":
        print(
            f"diverged at step {len(result.rows)}: the loss was no longer finite. What usually helps is a "
            "smaller learning rate, or lbfgs, which has none."
        )
    else:
        print(f"loss {result.rows[0, 3]:.6g} -> {result.rows[-1, 3]:.6g} in {result.rows[-1, 2]:.1f} s")


@processes.alone
def plot(directory: pathlib.Path) -> None:
    """Draws the loss of a run that has ended to `losses.png`, unless it is there."""
    path = directory / "losses.png"
    if not path.exists():
        from jaxstyle.lab import figures  # which takes 0.2 s that nothing should wait for before it is needed

        rows = journal.read_metrics(directory / "metrics.csv")
        files.write_atomically(path, figures.png(figures.terms(rows)))


@processes.alone
def copy(image: Callable[[], np.ndarray], directory: pathlib.Path, given: Settings, request: Request) -> None:
    """Writes the picture that --output asks for, and says where it is.

    Raises:
      UserError: it cannot be written.
    """
    if request.output:
        pictures.write(request.output, image(), settings.record(given), request.quality, given.bits)
    print(f"picture: {request.output or directory / 'image.png'}")


def stylize_all(
    given: Settings, found: list[str], directory: pathlib.Path | None, request: Request, cache: Cache
) -> None:
    """Makes a picture of each photo, in a folder of its name; without a directory, as if it were alone.

    Raises:
      UserError: two photos have one name; or, when all others are painted, one cannot be.
    """
    if request.output:
        raise UserError(
            f"--output={request.output}: is for one photo; the pictures of a folder or a pattern are in --workdir, "
            "each in a folder"
        )
    names = [pathlib.Path(path).name for path in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--content={given.content}: has {twice!r} twice; their runs need different names")
    each = {name: dataclasses.replace(given, content=path) for path, name in zip(found, names, strict=True)}
    refused = {}
    for name, one in each.items():  # what cannot be painted is told before hours of work
        try:
            task.pose(one, cache)
        except UserError as error:
            print(f"{name}: cannot be painted: {error}", flush=True)
            refused[name] = error
    for name, one in each.items():
        if name not in refused:
            print(name, flush=True)  # so that a full disk under it is not taken for this photo's fault
            try:
                stylize(one, directory and directory / name, request, cache)
            except UserError as error:
                print(f"{name}: was not painted: {error}", flush=True)
                refused[name] = error
    if refused:
        raise UserError(
            f"--content={given.content}: {len(refused)} of {len(each)} photos were not painted: "
            f"{'; '.join(map(str, refused.values()))}"
        )


def main() -> None:
    given, where = settings.read(optimizer=_OPTIMIZER.value), _WORKDIR.value
    preview = Preview() if _PREVIEW.value and not _DRY_RUN.value else None
    request = Request(_OUTPUT.value, _QUALITY.value, _DRY_RUN.value, preview, launch.conduct())
    cache, directory = Cache(launch.devices()), None if where is None else pathlib.Path(where)
    arm.parse_optimizer(given)
    found = processes.first(lambda: photos(given.content))
    if request.output:
        processes.first(lambda: check_output(request.output, given, found, directory))
    if found == [given.content]:
        stylize(given, directory, request, cache)
    else:
        stylize_all(given, found, directory, request, cache)


if __name__ == "__main__":
    launch.run(main, several=True)
