"""Start images, and the streams of random numbers of a run: pure functions of the seed."""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

Image = Float[Array, "height width 3"]

#: What Keras subtracts from RGB: the mean colour of ImageNet.
IMAGENET_MEAN = (123.68, 116.779, 103.939)


def stream(seed: int, name: str) -> Key[Array, ""]:
    """The key of one named use of randomness, independent of all others of the same seed."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def noise(key: Key[Array, ""], content: Image, styles: Sequence[Image]) -> Image:
    """White noise with the mean and the standard deviation of the photo's colours."""
    del styles
    return _noise_like(key, content.shape, content.reshape(-1, 3))


def style_statistics(key: Key[Array, ""], content: Image, styles: Sequence[Image]) -> Image:
    """White noise with the mean and the standard deviation of the style pictures' colours."""
    return _noise_like(key, content.shape, jnp.concatenate([style.reshape(-1, 3) for style in styles]))


def _noise_like(key: Key[Array, ""], shape: tuple[int, int, int], colours: Float[Array, "pixels 3"]) -> Image:
    mean, std = jnp.mean(colours, 0), jnp.std(colours, 0)
    return mean[None, None] + std[None, None] * jax.random.normal(key, shape, colours.dtype)


def ivanov2017(key: Key[Array, ""], content: Image, styles: Sequence[Image]) -> Image:
    """The study's start image, clip(c · Normal(1, 0.01), 0, 255) of the photo c less ImageNet's mean.

    The study clips the centred photo, so that it starts from what is brighter than the mean: kept as it was.
    Its network saw the clipped values as centred ones; as an image they are the mean colour and more.
    """
    del styles
    mean = jnp.asarray(IMAGENET_MEAN, content.dtype)[None, None]
    grain = 1 + 0.01 * jax.random.normal(key, content.shape, content.dtype)
    return jnp.clip((content - mean) * grain, 0, 255) + mean


_MAKERS = {"noise": noise, "style_statistics": style_statistics, "ivanov2017": ivanov2017}

KINDS = ("content", *_MAKERS)


def image(kind: str, seed: int, content: Image, styles: Sequence[Image]) -> Image:
    """The start image of one of `KINDS` for the photo `content` and style pictures, all RGB in [0, 255]."""
    if kind == "content":  # without a key, which three small programs make
        return content
    return _MAKERS[kind](stream(seed, "init"), content, styles)
