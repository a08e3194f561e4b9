"""Layers and weights that suit each form of the losses, and what they come to for an image."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxstyle.network import vgg


class Recipe(NamedTuple):
    """Layers with their weights, the weights of the terms that multiply them, and the network's padding.

    A content weight of None is one over the number of elements that the content loss sums, so that a recipe
    suits pictures of any size.
    """

    content_layers: Mapping[str, float]
    style_layers: Mapping[str, float]
    content_weight: float | None
    style_weight: float
    tv_weight: float
    padding: str = "edge"


#: What suits each form with Gram matrices. For `gatys` it was chosen by looking: with equal weights the third and the
#: fourth block drown the first, and with it the colours of the style. For `ivanov2017` it is the study's.
RECIPES = {
    "gatys": Recipe(
        content_layers={"block4_conv2": 1.0},
        style_layers={
            "block1_conv1": 100.0,
            "block2_conv1": 10.0,
            "block3_conv1": 1.0,
            "block4_conv1": 1.0,
            "block5_conv1": 1.0,
        },
        content_weight=None,
        style_weight=10.0,
        tv_weight=0.0,
    ),
    "ivanov2017": Recipe(
        content_layers={"block4_conv2": 1.0},
        style_layers={f"block{block}_conv1": 1.0 for block in range(1, 6)},
        content_weight=1e3,
        style_weight=1e6,
        tv_weight=1e-2,
        padding="zero",
    ),
}


#: The style loss that suits each form. For `gatys` it was chosen by the plane of style against photo, on ten test
#: pairs (docs/styles.md); the study had Gram matrices.
STYLE_LOSS = {"gatys": "wasserstein", "ivanov2017": "gram"}

#: Style weights that suit a style loss other than Gram matrices, by what is left of the photo (docs/styles.md; for
#: `wasserstein` docs/performance.md, "How many sizes and steps").
STYLE_WEIGHTS = {"wasserstein": 1.25, "sliced": 4.0, "rot": 3.0}

_BLOCKS_1_TO_4 = vgg.layer_names("vgg16")[:10]

#: Layers that suit a style loss other than Gram matrices. Patches of the first two blocks are small and many: Li and
#: Wand 2016, section 3, take these.
STYLE_LAYERS = {
    "mrf": {"block3_conv1": 1.0, "block4_conv1": 1.0},
    "nearest": dict.fromkeys(_BLOCKS_1_TO_4, 100.0),
    "split": dict.fromkeys(_BLOCKS_1_TO_4, 10.0),
    "rot": dict.fromkeys([f"block{block}_conv1" for block in range(1, 6)], 4.0),
}

#: Layers that suit a content loss other than squares.
CONTENT_LAYERS = {"self_similarity": {"block4_conv2": 200.0}}


def suiting(loss: str, style_loss: str, content_loss: str = "squares") -> Recipe:
    """The layers and weights that suit a form with a style loss and a content loss, all by their names."""
    base = RECIPES[loss]
    return base._replace(
        content_layers=CONTENT_LAYERS.get(content_loss, base.content_layers),
        style_layers=STYLE_LAYERS.get(style_loss, base.style_layers),
        style_weight=STYLE_WEIGHTS.get(style_loss, base.style_weight),
    )


class Weighting(NamedTuple):
    """The weights of a total loss, all factors included: by layer, and of the total variation."""

    content: Mapping[str, float]
    style: Mapping[str, float]
    tv: float


def content_weight(recipe: Recipe, image_shape: Sequence[int]) -> float:
    """The content weight of a recipe for an image of shape (height, width, 3)."""
    if recipe.content_weight is not None:
        return recipe.content_weight
    return 1 / max(1, sum(vgg.size(name, image_shape) for name in recipe.content_layers))


def weighting(recipe: Recipe, image_shape: Sequence[int]) -> Weighting:
    """The weights of a recipe for an image of shape (height, width, 3)."""
    weight = content_weight(recipe, image_shape)
    return Weighting(
        {name: weight * layer for name, layer in recipe.content_layers.items()},
        {name: recipe.style_weight * layer for name, layer in recipe.style_layers.items()},
        recipe.tv_weight,
    )
