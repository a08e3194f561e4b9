"""The objective of an image whose rows lie on several devices: the same loss and gradient, of rows that divide.

    problem = rows.lay(form, problem, height)
    evaluation = rows.evaluate(form, problem, image)

XLA gives a device the rows of its neighbours that a convolution needs, and nothing more, where each device has the
same number of rows at every layer: a multiple of 16 of the image's, down to block 5. So an image gets rows below it
until they divide. What the network makes of them is zero, as its own padding is, and they weigh nothing in a loss.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jax import Array

from jaxstyle.losses import objective, strips
from jaxstyle.losses.objective import Evaluation, Form, Image, Problem
from jaxstyle.network import vgg


def tall(form: Form, network: vgg.PreparedNetwork, height: int) -> int:
    """The rows that an image of `height` rows is given, so that they divide at every layer of the network.

    A form of the losses that is no sum over positions keeps its own: it is the same in uneven parts, and XLA moves
    more between devices for it.
    """
    step = form.devices * 2 ** vgg.halvings(max(network.filters))
    return -(-height // step) * step if form.devices > 1 and strips.divisible(form) else height


def lay(form: Form, problem: Problem, shape: Sequence[int]) -> Problem:
    """A problem that was posed for an image of a shape (height, width, 3), for `evaluate`."""
    height, width, _ = shape
    rows = tall(form, problem.network, height)
    if rows == height:
        return problem

    def below(maps: Mapping[str, Array]) -> dict[str, Array]:
        return {name: _with_rows(each, rows >> vgg.halvings(name)) for name, each in maps.items()}

    own = {
        name: jnp.ones((height >> vgg.halvings(name), width >> vgg.halvings(name)))
        for name in problem.style_weights
    }
    return problem._replace(
        network=problem.network.replace(rows=height),
        content_targets=below(problem.content_targets),
        content_guides=problem.content_guides and below(problem.content_guides),
        regions=[region._replace(guides=below(region.guides or own)) for region in problem.regions],
    )


def evaluate(form: Form, problem: Problem, image: Image) -> Evaluation:
    """What `objective.evaluate` gives, of a problem that was laid out for `form.devices`."""
    height = len(image)
    rows = tall(form, problem.network, height)
    if rows > height:
        # The variation is that of the image alone.
        form = form._replace(variation=lambda tall, variation=form.variation: variation(tall[:height]))
    found = objective.evaluate(form, problem, _with_rows(image, rows))
    return found._replace(gradient=found.gradient[:height])


def _with_rows(maps: Array, rows: int) -> Array:
    """Maps with zeros below, so that there are so many rows."""
    return jnp.pad(maps, [(0, rows - len(maps))] + [(0, 0)] * (maps.ndim - 1))
