"""What the settings describe: pictures and network as a problem at each scale."""

import dataclasses
import functools
import hashlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxstyle.errors import UserError
from jaxstyle.images import color, pictures, start
from jaxstyle.losses import objective, recipes, strips
from jaxstyle.losses.content import CONTENT_LOSSES
from jaxstyle.losses.style import STYLE_LOSSES, WITHOUT_SHARES
from jaxstyle.losses.terms import TOTALS
from jaxstyle.network import vgg, weights

from . import inputs, regions, room
from .cache import Cache, signature
from .settings import Settings


class Task(NamedTuple):
    """What the settings describe.

    Attributes:
      settings: with all that was left to defaults written out.
      form: of the losses.
      shapes: of the image at each scale, that of the result last.
      problem: by the number of its scale, posed when it is asked for.
      choices: of the problem of a scale, by its number and the image that begins there: see `objective.taking`.
      start: the start image, of the first shape.
      finish: what `preserve_color` does to a result, of any of the shapes.
      facts: for the manifest.
      masks: of the regions that were found in the pictures, if the settings ask for some.
    """

    settings: Settings
    form: objective.Form
    shapes: Sequence[tuple[int, int, int]]
    problem: Callable[[int], objective.Problem]
    choices: Callable[[int, np.ndarray], Sequence[Mapping[str, Any]]]
    start: jax.Array
    finish: Callable[[np.ndarray], np.ndarray]
    facts: dict[str, Any]
    masks: regions.Found | None = None


#: What is told of a form of the losses with a network for which its weights of the terms are not, by whether the
#: network takes pixels in [0, 255], as Keras's do.
FOREIGN = {
    ("ivanov2017", False): (
        "--loss=ivanov2017: its weights of the terms belong to --weights=vgg16-keras (extra keras-weights); "
        "with torchvision's network total variation outweighs the style, and pictures go dark"
    ),
    ("gatys", True): (
        "--loss=gatys: its weights of the terms belong to --weights=vgg16-torchvision; Keras's features are some "
        "100 times as large, so that the style outweighs the photo, or with nearest, split and rot the photo "
        "the style"
    ),
}


def load(settings: Settings, cache: Cache) -> weights.Weights:
    """The weights, read once; of a network that does not suit the losses, a word about it."""

    def read() -> weights.Weights:
        found = weights.load(settings.weights)
        if told := FOREIGN.get((settings.loss, bool((np.asarray(found.network.std) == 1).all()))):
            print(told, file=sys.stderr)
        return found

    return cache.get(("weights", settings.weights), read)


def prepare(settings: Settings, cache: Cache, deepest: str, *, once: bool = False) -> vgg.PreparedNetwork:
    """The network down to a layer, its filters transformed. For what is done `once` direct: they compile fast."""
    method, precision = settings.convolution, settings.precision or "float32"
    if once:
        method, precision = "direct", "float32"
    options = deepest, method, settings.pooling, settings.padding, precision
    return cache.get(
        ("network", settings.weights, *options), lambda: vgg.prepare(load(settings, cache).network, *options)
    )


def read_form(settings: Settings) -> objective.Form:
    """The form of the losses.

    Raises:
      UserError: the study's form with what it does not have, or shares or strips for a loss that has none.
    """
    form = objective.FORMS[settings.loss]._replace(remat=settings.remat, strips=settings.strips or 1)
    name = inputs.style_loss(settings)
    if settings.loss != "gatys":
        for flag, own in (("style_loss", "gram"), ("content_loss", "squares"), ("total", "sum")):
            if (value := getattr(settings, flag) or own) != own:
                raise UserError(f"--{flag}={value}: --loss={settings.loss} has {own} alone")
    else:
        content = CONTENT_LOSSES[settings.content_loss or "squares"]
        total = TOTALS[settings.total or "sum"]
        form = form._replace(style=STYLE_LOSSES[name], content=content, total=total)
        if settings.total == "product" and settings.init == "content":
            raise UserError(
                "--total=product: is least at the photo, where --init=content begins; take --init=noise"
            )
    if settings.precision == "bfloat16" and settings.convolution == "winograd":
        raise UserError("--precision=bfloat16: Winograd's convolution is of float32; take auto or direct")
    masks = settings.content_mask or [""] * len(settings.style)
    blended = [text for text, mask in zip(settings.style, masks, strict=False) if not mask]
    shares = {inputs.parse_style(text)[1]: text for text in blended}
    if name in WITHOUT_SHARES and len(shares) > 1:
        raise UserError(
            f"--style={shares[max(shares)]}: --style_loss={name} takes of all style pictures what is "
            "nearest, whatever their shares; leave these out, or give each picture its --content_mask"
        )
    if settings.preserve_color == "palette" and any([*masks, *(settings.style_mask or ()), settings.regions]):
        raise UserError(
            "--preserve_color=palette: gives the whole picture the palette of whole pictures; leave out masks and "
            "--regions"
        )
    if form.strips > 1 and not strips.divisible(form):
        raise UserError(
            f"--strips={form.strips}: --loss={settings.loss} with --style_loss={name} and "
            f"--content_loss={settings.content_loss or 'squares'} and --total={settings.total or 'sum'} is no sum "
            "over positions; take 1, or gatys with gram or wasserstein, squares and sum"
        )
    return form


def check_sides(settings: Settings, given: inputs.Pictures, deepest: str) -> None:
    """Refuses pictures that a layer shrinks to nothing.

    Raises:
      UserError: one is so small.
    """
    for source in given.sources:
        height, width, *_ = source.shape
        if min(height, width) < vgg.smallest_side(deepest):
            raise UserError(
                f"--size={settings.size}: {deepest} shrinks {source.path} of {width}x{height} to nothing; "
                f"each side must have {vgg.smallest_side(deepest)} pixels or more, at the first of "
                f"--scales={settings.scales} too"
            )


def result_shape(settings: Settings) -> tuple[int, int]:
    """Height and width of the result."""
    photo = pictures.read(settings.content, 256, settings.resize, smallest=pictures.MIN_SIDE)
    width, height = pictures.fit(pictures.parse_size(settings.size), photo.shape[1], photo.shape[0])
    return height, width


class Material(NamedTuple):
    """What a task is posed of: its settings, nothing left open, and what they name, read.

    `given` are the pictures at each scale, `begun_from` the start picture, if it is from a file.
    """

    settings: Settings
    form: objective.Form
    weighting: recipes.Weighting
    given: Sequence[inputs.Pictures]
    start: jax.Array
    begun_from: Sequence[inputs.Source]
    masks: regions.Found | None
    sha256: str

    @property
    def deepest(self) -> str:
        """The last layer that is evaluated."""
        return max(*self.weighting.content, *self.weighting.style)


def pose(settings: Settings, cache: Cache) -> Task:
    """Reads what the settings name. A problem is posed when it is asked for.

    Raises:
      UserError: a file or a flag cannot be used.
    """
    read = _read(settings, cache)
    settings, given = read.settings, read.given
    photos = {each.photo.shape: each.photo for each in given}
    palette = [(each.picture, each.share) for each in given[-1].styles]

    @functools.cache
    def finish(shape: tuple[int, int, int]) -> color.Finish:
        return color.PRESERVE[settings.preserve_color].finish(photos[shape], palette)

    problem = functools.cache(functools.partial(_pose_scale, read, cache))
    return Task(
        settings=settings,
        form=read.form,
        shapes=[each.photo.shape for each in given],
        problem=problem,
        choices=lambda number, image: _choices(read, cache, number, image, problem(number).regions),
        start=read.start,
        finish=lambda image: finish(image.shape)(image),
        facts={
            "pictures": describe([*given[-1].sources, *read.begun_from]),
            "weights": {"name": settings.weights, "sha256": read.sha256},
            "seed": settings.seed,
        },
        masks=read.masks,
    )


def _read(settings: Settings, cache: Cache) -> Material:
    """Reads what the settings name, and settles what they leave to defaults.

    Raises:
      UserError: a file or a flag cannot be used.
    """
    form = read_form(settings)
    settings = inputs.with_schedule(settings)
    loaded = load(settings, cache)
    network = loaded.network
    recipe = inputs.read_recipe(settings, tuple(network.convolutions))
    deepest = max([*recipe.content_layers, *recipe.style_layers])
    names = [name for name in network.convolutions if name <= deepest]
    shape = result_shape(settings)
    settings = room.with_strips(settings, form, names, shape, len(cache.devices))
    form = form._replace(strips=settings.strips, remat=settings.remat)
    room.check_memory(settings, form, names, shape, cache.devices)
    masks = regions.find(settings, network, cache)
    given = [inputs.read_pictures(settings, size, regions.pairs(masks)) for size in inputs.sizes(settings)]
    for each in given:
        check_sides(settings, each, deepest)
    begin, begun_from = inputs.read_start(settings, given[0])
    weighting = inputs.weighting(recipe, given[-1].photo.shape)
    settings = inputs.with_recipe(settings, recipe, given[-1].photo.shape)
    return Material(settings, form, weighting, given, begin, begun_from, masks, loaded.sha256)


def beginning_at(pixels: int, posed: Task, cache: Cache) -> Task:
    """The task with scales before its own, the first of so many pixels up to twice as many.

    It is the same one where its first scale has fewer, and for the study's loss, which is of one size. Evaluations,
    which a run of one size may be given, are not counted.
    """
    height, width, _ = posed.shapes[0]
    more = int(math.log2(max(height * width / pixels, 1)))
    if more == 0 or posed.settings.loss != "gatys":
        return posed
    scales, steps = more + posed.settings.scales, posed.settings.steps
    given = dataclasses.replace(posed.settings, scales=scales, steps=max(scales, steps), evaluations=None)
    return pose(given, cache)


def describe(sources: Sequence[inputs.Source]) -> dict[str, Any]:
    """What a manifest says of pictures: by path its SHA-256, and by flag the shape that it was brought to."""
    found: dict[str, Any] = {}
    for source in sources:
        if source.path not in found:
            found[source.path] = {"sha256": pictures.sha256(source.path), "shapes": {}}
        found[source.path]["shapes"][source.flag] = list(source.shape)
    return found


def _pose_scale(read: Material, cache: Cache, number: int) -> objective.Problem:
    """The problem at one scale. What is summed over positions has a factor, so that it weighs as much at all."""
    settings, form, given = read.settings, read.form, read.given[number]
    more = np.float32(np.prod(read.given[-1].photo.shape) / np.prod(given.photo.shape))
    direct = prepare(settings, cache, read.deepest, once=True)
    arguments = direct, given.content, [], read.weighting, given.content_mask
    posed = cache.evaluate(_pose, (form,), given.content.shape, *arguments)
    posed = posed._replace(
        network=prepare(settings, cache, read.deepest),
        content_weights={name: more * np.asarray(each) for name, each in posed.content_weights.items()},
        regions=_regions(settings, cache, form, tuple(read.weighting.style), given.styles),
        tv_weight=more * np.asarray(posed.tv_weight),
    )
    image = np.asarray(read.start) if read.begun_from and not number else given.content
    return objective.taking(posed, _choices(read, cache, number, image, posed.regions))


def _choices(
    read: Material, cache: Cache, number: int, image: np.ndarray, regions: Sequence[objective.Region]
) -> Sequence[Mapping[str, Any]]:
    """`objective.choices` of photo and image at a scale, compiled once for each size."""
    if read.form.style.choose is None:
        return ()
    direct = prepare(read.settings, cache, read.deepest, once=True)
    picture = objective.mixture(read.form, read.given[number].content, image)
    arguments = direct, picture, [region._replace(choices={}) for region in regions]
    return cache.evaluate(_choose, (read.form, tuple(read.weighting.style)), picture.shape, *arguments)


def _regions(
    settings: Settings,
    cache: Cache,
    form: objective.Form,
    layers: Sequence[str],
    styles: list[objective.Style],
) -> list[objective.Region]:
    """`objective.regions` of style pictures, evaluated once for the same ones."""
    direct = prepare(settings, cache, max(layers), once=True)
    digest = hashlib.sha256(signature(styles).encode())
    for leaf in jax.tree.leaves(styles):
        digest.update(np.ascontiguousarray(leaf))
    arguments = direct, styles, np.uint32(settings.seed)
    options = (form, layers)
    network = settings.weights, settings.pooling, settings.padding
    return cache.get(
        ("regions", *options, *network, settings.seed, digest.digest()),
        lambda: cache.evaluate(_pose_regions, options, styles[0].picture.shape, *arguments),
    )


def _pose(form: objective.Form, *arguments: Any) -> objective.Problem:
    return objective.pose(form, *arguments, read=strips.reading(form.strips))


def _pose_regions(
    form: objective.Form, layers: Sequence[str], network: vgg.PreparedNetwork, styles: list, seed: np.uint32
) -> list[objective.Region]:
    key = start.stream(seed, "style_loss")
    return objective.regions(form, layers, network, styles, key, strips.reading(form.strips))


def _choose(
    form: objective.Form, layers: Sequence[str], network: vgg.PreparedNetwork, picture: Any, regions: Any
) -> Sequence[Mapping[str, Any]]:
    return objective.choices(form, layers, network, picture, regions, strips.reading(form.strips))
