"""Whether a picture fits into memory, and the strips that make it fit."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterable, Sequence

import jax

from jaxstyle.errors import UserError
from jaxstyle.images import pictures
from jaxstyle.losses import objective, strips
from jaxstyle.optimizers import catalogue
from jaxstyle.runs import memory, processes, workdir

from . import inputs
from .settings import Settings, parse

#: Images that a run keeps besides an evaluation and its optimizer's memory: start, best, trial, gradients, content.
IMAGES = 12


def with_strips(
    settings: Settings, form: objective.Form, names: Sequence[str], shape: Sequence[int], devices: int
) -> Settings:
    """The settings with the number of strips, so that the record of a run does not depend on what memory is free.

    Args:
      settings: of a run.
      form: of its losses.
      names: the layers that are evaluated.
      shape: of the result.
      devices: over which it is spread; on several it has no strips.

    Raises:
      UserError: it does not fit in the most strips that there are. A scale before the last would not tell.
    """
    if settings.strips or devices > 1:
        return dataclasses.replace(settings, strips=settings.strips or 1)
    free = memory.available()
    form = strips.fitting(form, names, shape, free - _images(settings, shape))
    if form.strips > 1:  # of a tenth less, as what is expected may be so much too high
        memory.check(int(expected(settings, form, names, shape) / 1.1), free, *shape)
    return dataclasses.replace(settings, strips=form.strips, remat=form.remat)


def chosen(settings: Settings) -> Sequence[str]:
    """The flags that `with_strips` sets: where a run has begun, it goes on with its own."""
    if settings.strips:
        return ()
    return ("strips",) if settings.remat else ("strips", "remat")


@processes.alone
def as_begun(settings: Settings, *directories: pathlib.Path) -> Settings:
    """The settings with the strips of the first run that has begun there, where memory may be free that was not."""
    begun = (values for each in directories if (values := workdir.values(workdir.flags_of(each))))
    if settings.strips or not (flags := next(begun, None)):
        return settings
    with contextlib.suppress(UserError):  # no record, which is told when the run is to go on
        # Of these alone, as a sweep's are more than a run's.
        own = {name: flags.get(name, ()) for name in ("content", "strips", "remat")}
        there = parse("".join(f"--{name}={value}\n" for name in own for value in own[name]))
        again = settings.remat or ((there.strips or 1) > 1 and there.remat)
        return dataclasses.replace(settings, strips=there.strips, remat=again)
    return settings


def _images(settings: Settings, shape: Sequence[int]) -> int:
    """Bytes that a run keeps besides an evaluation."""
    spec = catalogue.parse(settings.optimizer, settings.loss, settings.parametrization)
    return IMAGES * 4 * 3 * shape[0] * shape[1] + catalogue.bytes_kept(spec, shape)


def heaviest(settings: Settings, texts: Iterable[str]) -> Settings:
    """The settings with the one of several optimizers that keeps most: what fits is decided for all together."""
    each = (dataclasses.replace(settings, optimizer=text) for text in texts)
    return max(each, key=lambda given: _images(given, (64, 64)))


def expected(settings: Settings, form: objective.Form, names: Sequence[str], shape: Sequence[int]) -> int:
    """Bytes that a run will take at an evaluation of these layers."""
    return strips.estimate(form, names, shape) + _images(settings, shape)


def share(needed: int | None, free: int, devices: int) -> str:
    """What is said of the bytes that a run takes and those that are free on each of its devices; see `memory`."""
    told = "not known" if needed is None else f"about {needed / 2**30:.2f} GiB"
    each = " on each device" * (devices > 1)
    if free == sys.maxsize:
        return f"{told}{each}; how much is free is not told"
    return f"{told} of {free / 2**30:.1f} GiB that are free{each}"


def needs_less(form: objective.Form) -> str:
    """The flag with which an evaluation needs less memory, if there is one; on several devices it has no strips."""
    divisible = strips.divisible(form) and form.devices == 1
    if divisible and form.strips == 1:
        return "--strips=4"
    if not form.remat:
        return "--remat"
    return "--strips=64" if divisible and form.strips < 64 else ""


def check_memory(
    settings: Settings,
    form: objective.Form,
    names: Sequence[str],
    shape: Sequence[int],
    devices: Sequence[jax.Device],
) -> None:
    """Refuses at once a size whose pictures or feature maps alone do not fit; the rest is known once it is compiled.

    Each of the devices has a part of the maps.

    Raises:
      UserError: it is so.
    """
    size, free = pictures.parse_size(settings.size), len(devices) * memory.available(devices)
    largest = max(settings.style_scale)
    longer = inputs.longer_side(inputs.scaled(size, largest))
    # Pillow's picture, its floats and the result of a filter: some ten bytes a value.
    if 30 * longer**2 > free:
        raise UserError(
            f"--style_scale={largest}: style pictures of {longer} pixels do not fit into memory; "
            "smaller ones do"
        )
    least = int(strips.estimate(form, names, shape) / 1.6)
    memory.check(least, free, *shape, helps=needs_less(form._replace(devices=len(devices))))
