"""The network against an independent convolution and pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxstyle.network import vgg

#: Compiled as one program.
features = jax.jit(vgg.features, static_argnums=2)

POOLING = {
    "max": lambda windows: windows.max((1, 3)),
    "average": lambda windows: windows.mean((1, 3)),
    "l2": lambda windows: np.sqrt((windows**2).mean((1, 3))),
}


def reference_features(network, image, pooling="max", padding="zero"):
    """VGG in float64 on SciPy's correlation, one channel at a time."""
    outside = {"zero": "constant", "edge": "nearest"}[padding]
    maps = (np.float64(image) - network.mean) / network.std
    taps = {}
    for name, (kernel, bias) in network.convolutions.items():
        if name.endswith("_conv1") and name != "block1_conv1":
            height, width = (side // 2 for side in maps.shape[:2])
            maps = POOLING[pooling](maps[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1))
        maps = np.stack(
            [
                bias[o]
                + sum(
                    ndimage.correlate(maps[..., i], np.float64(kernel[:, :, i, o]), mode=outside)
                    for i in range(kernel.shape[2])
                )
                for o in range(kernel.shape[3])
            ],
            axis=-1,
        )
        maps, outside = np.maximum(maps, 0), "constant"
        taps[name] = maps
    return taps


@pytest.mark.parametrize("method", ["direct", "winograd"])
def test_features_agree_with_scipy_at_every_layer(random_network, content, method):
    expected = reference_features(random_network, content)
    found = features(vgg.prepare(random_network, "block5_conv3", method), content, tuple(expected))
    assert found.keys() == expected.keys()
    for name in expected:
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5 * scale, err_msg=name)


@pytest.mark.parametrize(("pooling", "padding"), [("average", "zero"), ("l2", "edge"), ("max", "edge")])
def test_pooling_and_padding_agree_with_numpy(random_network, content, pooling, padding):
    expected = reference_features(random_network, content, pooling, padding)
    network = vgg.prepare(random_network, "block3_conv1", pooling=pooling, padding=padding)
    layers = ("block1_conv1", "block1_conv2", "block2_conv1", "block3_conv1")
    for name, maps in features(network, content, layers).items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(maps, expected[name], atol=2e-5 * scale, err_msg=name)


def test_the_network_is_prepared_down_to_the_layer_asked_for_and_no_further(random_network):
    assert list(vgg.prepare(random_network, "block2_conv1").filters) == [
        "block1_conv1",
        "block1_conv2",
        "block2_conv1",
    ]


def test_an_unknown_layer_is_named(random_network, content):
    with pytest.raises(KeyError, match="block6_conv1"):
        vgg.prepare(random_network, "block6_conv1")
    with pytest.raises(KeyError, match="block4_conv1"):
        vgg.features(vgg.prepare(random_network, "block2_conv1"), content, ["block4_conv1"])


@pytest.mark.parametrize("layer", ["block1_conv2", "block3_conv1", "block5_conv1"])
def test_the_smallest_side_leaves_one_pixel(random_network, layer):
    side = vgg.smallest_side(layer)
    network = vgg.prepare(random_network, layer)
    assert jax.eval_shape(features, network, jnp.zeros((side, side, 3)), (layer,))[layer].shape[:2] == (1, 1)


def test_the_architectures_have_13_and_16_convolutions():
    assert len(vgg.layer_names("vgg16")) == 13
    assert len(vgg.layer_names("vgg19")) == 16
