"""Measured quality: LPIPS against the reference implementation's values, style distances against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxstyle import pictures, quality, vgg, weights


@pytest.fixture(scope="module")
def network():
    return vgg.prepare(weights.load("vgg16-torchvision").network, "block5_conv3", "direct")


@pytest.fixture(scope="module")
def heads():
    return weights.lpips_heads()


@pytest.fixture(scope="module")
def images():
    portrait, cat = pictures.read("sample:portrait", 64), pictures.read("sample:cat", (64, 64))
    noise = np.random.default_rng(0).normal(0, 30, portrait.shape)
    noisy = np.clip(portrait + noise, 0, 255).astype(np.float32)
    return {"portrait": portrait, "cat": cat, "noisy": noisy}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    # lpips 0.1.4 on torch 2.13.0, net="vgg", its own heads and torchvision's convolutions, images / 127.5 - 1.
    [("portrait", "cat", 0.6578973), ("portrait", "noisy", 0.3234972), ("cat", "noisy", 0.6952513)],
)
def test_lpips_has_the_values_of_the_reference_implementation(
    network, heads, images, first, second, expected
):
    found = quality.lpips(network, heads, jnp.asarray(images[first]), jnp.asarray(images[second]))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_lpips_is_zero_for_equal_images_and_does_not_depend_on_their_order(network, heads, images):
    portrait, cat = jnp.asarray(images["portrait"]), jnp.asarray(images["cat"])
    assert quality.lpips(network, heads, cat, cat) == 0
    np.testing.assert_allclose(
        quality.lpips(network, heads, portrait, cat), quality.lpips(network, heads, cat, portrait), rtol=1e-5
    )


def test_the_heads_weigh_channels_and_are_not_negative(heads):
    assert [head.shape for head in heads.values()] == [(64,), (128,), (256,), (512,), (512,)]
    assert list(heads) == list(quality.LPIPS_LAYERS)
    assert all(head.min() >= 0 for head in heads.values())


def test_style_distances_are_relative_distances_of_blended_gram_matrices(random_network, content, style):
    network = vgg.prepare(random_network, "block5_conv3")
    found = quality.style_distances(network, content, [(style, 3.0), (content[::-1], 1.0)])

    def gram(image, layer):
        maps = np.float64(vgg.features(network, image, [layer])[layer])
        flat = maps.reshape(-1, maps.shape[-1])
        return flat.T @ flat / len(flat)

    for layer in quality.HELD_OUT_LAYERS:
        target = 0.75 * gram(style, layer) + 0.25 * gram(content[::-1], layer)
        expected = np.linalg.norm(gram(content, layer) - target) / np.linalg.norm(target)
        np.testing.assert_allclose(found[layer], expected, rtol=1e-3)


def test_a_picture_has_its_own_style(random_network, style):
    network = vgg.prepare(random_network, "block5_conv3")
    assert max(quality.style_distances(network, style, [(style, 1.0)]).values()) < 1e-6
