"""Malformed files and flags, by a seed: each is refused in one line, soon and in little memory, or is harmless.

    python tests/fuzz.py --files=400 --flagsets=100

Files are made from valid ones: pictures of five formats, weights of two, and checkpoints. Each is read in a process
of its own. `tests/test_fuzz.py` is the short form.
"""

import argparse
import functools
import io
import json
import pathlib
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator

import h5py
import numpy as np
import safetensors.numpy
from absl import logging
from forked import LIMIT, Outcome, call, command
from PIL import Image

from experiments import arm  # noqa: F401 - imports once what every command needs
from jaxstyle.errors import UserError
from jaxstyle.images import encode, pictures
from jaxstyle.network import vgg, weights
from jaxstyle.runs.checkpoints import Checkpoints

MEMORY = 2048  # MiB
FORMATS = ("png", "jpeg", "webp", "tiff", "gif")
COMMANDS = ("stylize", "compare", "sweep")
STATE = {"image": np.zeros((16, 16, 3), np.float32), "step": np.int32(7), "key": np.zeros(2, np.uint32)}


# --- files --------------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Data with one to four faults, most of them near its beginning, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        size = len(changed)
        if not size:
            break
        at = min(int(size ** rng.random()), size - 1)
        length = min(rng.choice((1, 2, 4, 8, 64, 1024)), size - at)
        match rng.randrange(7):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at : at + length] = rng.choice((b"\x00", b"\xff", b"\x7f")) * length
            case 4:
                changed[at : at + length] = rng.randbytes(length)
            case 5:
                changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 1000))
            case 6:  # a length or a count
                number = rng.choice((0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1)).to_bytes(4, "big")
                changed[at : at + 4] = rng.choice((number, number[::-1]))
    return bytes(changed)


def picture_files() -> dict[str, bytes]:
    """A valid picture of each format, some with the metadata that is read as well."""
    y, x = np.mgrid[0:40, 0:48]
    image = Image.fromarray(np.stack([5 * x, 6 * y, 255 - 2 * x - 2 * y], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    profile = encode.srgb_profile()
    found = {}
    for format_ in FORMATS:
        encoded = io.BytesIO()
        extra = {} if format_ == "gif" else {"exif": exif, "icc_profile": profile}
        image.save(encoded, format_, **extra)
        found[format_] = encoded.getvalue()
    return found


def write_valid(folder: pathlib.Path) -> None:
    """Writes valid weights of a VGG16, in float16, and two checkpoints."""
    stems, channels, arrays = weights._torchvision_stems("vgg16"), 3, {}
    with h5py.File(folder / "valid.h5", "w") as file:
        for layer in vgg.layer_names("vgg16"):
            width = vgg.CHANNELS[int(layer[5]) - 1]
            kernel, bias = np.ones((3, 3, channels, width), np.float16), np.ones(width, np.float16)
            arrays[f"{stems[layer]}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
            arrays[f"{stems[layer]}.bias"] = bias
            file.create_dataset(f"{layer}/{layer}/kernel:0", data=kernel)
            file.create_dataset(f"{layer}/{layer}/bias:0", data=bias)
            channels = width
    safetensors.numpy.save_file(arrays, folder / "valid.safetensors")
    for step in (1, 2):
        Checkpoints(folder / "valid").save(step, STATE, np.zeros((3, 7)))


def read_checkpoint(folder: pathlib.Path) -> None:
    """Restores what a folder has; what is damaged must be noticed."""
    logging.set_verbosity(logging.FATAL)
    found = Checkpoints(folder).restore(lambda step: STATE)
    if found:
        for name, leaf in STATE.items():
            np.testing.assert_array_equal(found[0][name], leaf)


def refusing(read: Callable[[], object]) -> None:
    """Ends a process as a command does that is given a file of no use."""
    try:
        read()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def file_outcomes(count: int, rng: random.Random, folder: pathlib.Path) -> Iterator[tuple[str, Outcome]]:
    """What comes of `count` malformed files, in turn of each kind: half pictures, and the rest alike."""
    valid_pictures = picture_files()
    made = call(lambda: write_valid(folder))  # elsewhere, since JAX begins threads
    assert made.status == 0, made.errors
    for i in range(count):
        if i % 2:
            kind = FORMATS[i // 2 % len(FORMATS)]
            path = folder / f"{i}.{kind}"
            path.write_bytes(mutated(valid_pictures[kind], rng))
            yield kind, call(functools.partial(refusing, lambda path=path: pictures.read(path, 64)))
        elif i % 4:
            kind = ("safetensors", "h5")[i // 4 % 2]
            path = folder / f"{i}.{kind}"
            path.write_bytes(mutated((folder / f"valid.{kind}").read_bytes(), rng))
            yield kind, call(functools.partial(refusing, lambda path=path: weights.load(path)))
        else:
            path = folder / f"{i}"
            shutil.copytree(folder / "valid", path)
            files = sorted(each for each in path.rglob("*") if each.is_file())
            for damaged in rng.sample(files, rng.randint(1, 4)):
                if rng.random() < 0.2:
                    damaged.unlink()
                else:
                    damaged.write_bytes(mutated(damaged.read_bytes(), rng))
            yield "checkpoint", call(lambda path=path: read_checkpoint(path))
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# --- flags --------------------------------------------------------------------------------------------------------

NUMBERS = ("", "x", "-1", "1e400", "nan", "1,2", "--")
NAMES = ("", "x", "block9_conv1", "ADAM!", "☃", "\x00", "a\nb", " ", "../..", "<script>", "%s%n", "'; ls")


def malformed_flag(rng: random.Random, folder: pathlib.Path) -> str:
    """A flag that every command must refuse."""
    number, name = rng.choice(NUMBERS), rng.choice(NAMES)
    junk = "".join(chr(rng.randrange(1, 0x3000)) for _ in range(rng.randrange(1, 30)))
    layer = rng.choice(("content_layer", "style_layer"))
    choices = [
        *(f"--{flag}={number}" for flag in ("steps", "seed", "size")),
        f"--{rng.choice(('content', 'style', 'tv'))}_weight={rng.choice(('', 'x', '-1', '-inf', '1,2', '--'))}",
        f"--size={rng.choice(('0', '-5', '10x', '1e3', '99999', '8', '20x3', '1x1', '64x64x64'))}",
        f"--steps={rng.choice(('0', '1.5', '9' * 30 + 'x'))}",
        f"--seed={rng.choice(('4294967296', '1.5', '-1'))}",
        *(f"--{flag}=x{name}" for flag in ("loss", "resize", "convolution", "optimizer", "init", "weights")),
        *(f"--{flag}={folder}/no{name}" for flag in ("content", "style", "weights", "init", "flagfile")),
        *(f"--{flag}={folder}" for flag in ("style", "weights", "flagfile")),
        *(f"--{flag}={number}" for flag in ("scales", "style_scale", "save_every", "bits")),
        *(f"--{flag}=x{name}" for flag in ("style_loss", "pooling", "padding", "preserve_color", "keep")),
        *(f"--{flag}={folder}/no{name}" for flag in ("content_mask", "style_mask", "content_weight_mask")),
        f"--scales={rng.choice(('0', '17', '-1'))}",
        f"--content={folder}/no*{name}.png",
        f"--{layer}=x{name}",
        f"--{layer}=block1_conv1:{rng.choice(('x', '-1', 'nan', 'inf', ':', ''))}",
        f"--optimizer=adam:{rng.choice(('x=1', 'b1', 'b1=x', 'b1=nan', '=', ',,='))}",
        f"--content=file:{rng.choice(('%00', '%zz', '%ff%fe', '', '%0A'))}",
        f"--style=sample:{name}x",
        f"--workdir={folder}/file/under",
        f"--workdir={folder}/{'long' * 100}",
        f"--workdir={folder}/nul\x00",
        f"--{rng.choice(('overwrite', 'deterministic'))}=maybe{name}",
        f"--checkpoint_seconds={rng.choice(('x', '-1', ''))}",
        f"--x{name}={junk}",
        f"x{junk}",
    ]
    return rng.choice(choices)


def flag_outcomes(count: int, rng: random.Random, folder: pathlib.Path) -> Iterator[tuple[str, Outcome]]:
    """What comes of `count` sets of flags, in turn for each command, each with one malformed or more."""
    (folder / "file").touch()
    for path in (folder / "content.png", folder / "style.png"):
        path.write_bytes(picture_files()["png"])
    before = snapshot(folder)
    good = f"--content={folder}/content.png", f"--style={folder}/style.png", "--size=64", "--steps=1"
    for k in range(count):
        name = COMMANDS[k % len(COMMANDS)]
        bad = [malformed_flag(rng, folder) for _ in range(rng.choice((1, 1, 1, 2, 5)))]
        # A null character cannot be an argument, but a flagfile may have one.
        yield f"{name} {bad}", command(name, [*good, f"--workdir={folder}/new", *bad], folder)
    written = snapshot(folder).items() - before.items()
    assert not written, written


def snapshot(folder: pathlib.Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in folder.rglob("*")}


# --- verdicts -----------------------------------------------------------------------------------------------------


def fault(outcome: Outcome, statuses: set[int]) -> str | None:
    """What is wrong with how a process ended, if anything is."""
    if outcome.seconds > LIMIT:
        return f"took {outcome.seconds:.0f} s"
    if outcome.memory > MEMORY:
        return f"took {outcome.memory} MiB"
    if "Traceback" in outcome.errors or outcome.status not in statuses:
        return f"status {outcome.status}"
    if outcome.status == 2 and len(outcome.errors.splitlines()) != 1:
        return "not one line"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--flagsets", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    faults, kinds, seconds, memory = 0, Counter(), 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for part in ("files", "flags"):
            (folder / part).mkdir()
        plans = (
            (file_outcomes(arguments.files, random.Random(arguments.seed), folder / "files"), {0, 2}),
            (flag_outcomes(arguments.flagsets, random.Random(arguments.seed), folder / "flags"), {2}),
        )
        for outcomes, statuses in plans:
            for what, outcome in outcomes:
                kinds[f"{what.partition(' ')[0]} {'read' if outcome.status == 0 else 'refused'}"] += 1
                seconds, memory = max(seconds, outcome.seconds), max(memory, outcome.memory)
                if found := fault(outcome, statuses):
                    faults += 1
                    print(f"{what}: {found}: {outcome.errors}")
    print(
        json.dumps(
            {"faults": faults, "seconds": round(seconds, 1), "MiB": memory} | dict(sorted(kinds.items()))
        )
    )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
