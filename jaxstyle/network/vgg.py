"""The VGG networks: parameters and an image in, named feature maps out.

Images are float32 `[height, width, 3]`, RGB, in [0, 255]. A layer is called `block{b}_conv{c}` and means
the output of that convolution after its ReLU, `[height', width', channels]`.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015,
table 1, configurations D (VGG16) and E (VGG19).
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float

from jaxstyle.network import convolution
from jaxstyle.network.convolution import Filters, Maps

#: Convolutions in each of the five blocks.
BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}

#: Channels that the convolutions of each block give.
CHANNELS = (64, 128, 256, 512, 512)


class Network(NamedTuple):
    """The convolutions of a VGG by layer name, and the normalisation that belongs to them.

    The network's input is `(image - mean) / std` with the image in RGB, [0, 255]. Weights trained on BGR
    have the input channels of `block1_conv1` reversed when they are loaded.
    """

    convolutions: Mapping[str, Filters]
    mean: Float[Array, "3"]
    std: Float[Array, "3"]


def layer_names(architecture: str) -> Sequence[str]:
    """All layers of `vgg16` or `vgg19`, shallow to deep."""
    return tuple(
        f"block{block}_conv{conv}"
        for block, count in enumerate(BLOCKS[architecture], start=1)
        for conv in range(1, count + 1)
    )


@struct.dataclass
class PreparedNetwork:
    """A network down to one layer, its convolutions ready to be evaluated many times. A pytree of arrays.

    `pooling` and `padding` are static, see `prepare`. Of an image only the first `rows` rows are seen, None are all:
    what lies below counts as outside, and feature maps are zero there.
    """

    filters: Mapping[str, Filters]
    mean: Float[Array, "3"]
    std: Float[Array, "3"]
    pooling: str = struct.field(pytree_node=False)
    padding: str = struct.field(pytree_node=False)
    rows: int | None = struct.field(pytree_node=False, default=None)

    @property
    def blocks(self) -> Sequence[Sequence[str]]:
        """The layers by block, shallow to deep."""
        return [
            list(names) for _, names in itertools.groupby(self.filters, lambda name: name[: len("block1")])
        ]


def prepare(
    network: Network,
    deepest: str,
    method: str = "auto",
    pooling: str = "max",
    padding: str = "zero",
    precision: str = "float32",
) -> PreparedNetwork:
    """Transforms the filters of `network` down to the layer `deepest`.

    Args:
      network: the parameters.
      deepest: the last layer that will be evaluated.
      method: of the convolutions, as in `convolution.prepare`.
      pooling: of 2×2 windows before each block but the first, one of `convolution.POOLING`.
      padding: what the first convolution sees around the image: "zero", or "edge", the nearest pixel of the
        image, so that its borders look like no edge. Deeper convolutions pad with zeros.
      precision: of the convolutions, as in `convolution.prepare`.

    Raises:
      KeyError: the network has no layer `deepest`.
      ValueError: there is no such method, pooling, padding or precision.
    """
    if pooling not in convolution.POOLING or padding not in ("zero", "edge"):
        raise ValueError(f"pooling {pooling!r}, padding {padding!r}: one of them there is not")
    names = list(network.convolutions)
    if deepest not in names:
        raise KeyError(deepest)
    return PreparedNetwork(
        {
            name: convolution.prepare(*network.convolutions[name], method, precision)
            for name in names[: names.index(deepest) + 1]
        },
        network.mean,
        network.std,
        pooling,
        padding,
    )


def pool(network: PreparedNetwork, maps: Maps) -> Float[Array, "height//2 width//2 channels"]:
    """What a block is given of the last maps of the one before; an odd last row or column is left out."""
    return convolution.POOLING[network.pooling](maps)


def convolve(
    network: PreparedNetwork,
    name: str,
    maps: Maps,
    known: Float[Array, "height width channels'"] | None = None,
) -> Float[Array, "height width channels'"]:
    """Feature maps of one layer from those of the layer before in its block, or from what the block is given.

    Args:
      network: the network.
      name: the layer.
      maps: what it convolves.
      known: in place of the result: see `convolution.convolve_relu`.
    """
    filters, rows = network.filters[name], network.rows and network.rows >> halvings(name)
    if name == "block1_conv1":
        maps = (maps - network.mean[None, None]) / network.std[None, None]
        if network.padding == "edge":
            if rows is not None:  # what is below continues the edge too
                maps = convolution.first_rows(maps, rows, maps[rows - 1 : rows])
            frame = (1, 1), (1, 1), (0, 0)
            known, around = known if known is None else jnp.pad(known, frame), jnp.pad(maps, frame, "edge")
            return convolution.convolve_relu(around, filters, known, rows and rows + 1)[1:-1, 1:-1]
    return convolution.convolve_relu(convolution.first_rows(maps, rows), filters, known, rows)


def layer(network: PreparedNetwork, name: str, maps: Maps) -> Float[Array, "height' width' channels'"]:
    """Feature maps of one layer from those of the layer before, or from the image.

    At the beginning of a block but the first, the maps are pooled.
    """
    begins = name.endswith("_conv1") and name != "block1_conv1"
    return convolve(network, name, pool(network, maps) if begins else maps)


def features(
    network: PreparedNetwork, image: Float[Array, "height width 3"], layers: Collection[str]
) -> dict[str, Float[Array, "height' width' channels"]]:
    """Feature maps of `layers`, evaluated to the deepest of them and no further.

    Raises:
      KeyError: the network has no such layer.
    """
    if missing := set(layers) - set(network.filters):
        raise KeyError(min(missing))
    maps, taps = image, {}
    for name in network.filters:
        if len(taps) == len(layers):
            break
        maps = layer(network, name, maps)
        if name in layers:
            taps[name] = maps
    return taps


def smallest_side(layer: str) -> int:
    """The smallest side in pixels of an image that `layer` does not shrink to nothing."""
    return 2 ** halvings(layer)


def halvings(layer: str) -> int:
    """How often an image is pooled before `layer`."""
    return int(layer[len("block")]) - 1


def size(layer: str, image_shape: Sequence[int]) -> int:
    """Number of elements, height · width · channels, of the feature maps of `layer` for an image."""
    height, width = (side >> halvings(layer) for side in image_shape[:2])
    return height * width * CHANNELS[halvings(layer)]
