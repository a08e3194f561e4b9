"""Start images, and the streams of random numbers of a run: pure functions of the seed."""

import zlib

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


def noise(key: Key[Array, ""], content: Image) -> Image:
    """White noise with the mean and the standard deviation of the photo's colours."""
    mean, std = jnp.mean(content, (0, 1)), jnp.std(content, (0, 1))
    return mean[None, None] + std[None, None] * jax.random.normal(key, content.shape, content.dtype)


def ivanov2017(key: Key[Array, ""], content: Image) -> Image:
    """The study's start image, clip(c · Normal(1, 0.01), 0, 255) of the photo c less ImageNet's mean.

    The study clips the centred photo, so that it starts from what is brighter than the mean: kept as it was.
    Its network saw the clipped values as centred ones; as an image they are the mean colour and more.
    """
    mean = jnp.asarray(IMAGENET_MEAN, content.dtype)[None, None]
    grain = 1 + 0.01 * jax.random.normal(key, content.shape, content.dtype)
    return jnp.clip((content - mean) * grain, 0, 255) + mean


KINDS = ("content", "noise", "ivanov2017")


def image(kind: str, seed: int, content: Image) -> Image:
    """The start image of one of `KINDS` for the photo `content`."""
    if kind == "content":
        return content
    return {"noise": noise, "ivanov2017": ivanov2017}[kind](stream(seed, "init"), content)
