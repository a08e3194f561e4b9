"""What the commands share: their flags, how flags become a problem, and how a command starts and fails."""

import functools
import math
import os
import pathlib
import signal
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging

from jaxstyle import training
from jaxstyle.errors import UserError
from jaxstyle.images import color
from jaxstyle.losses import objective
from jaxstyle.losses.style import STYLE_LOSSES
from jaxstyle.network import convolution
from jaxstyle.runs import memory


def path(text: str) -> str:
    """A path as it is, or as a percent-encoded `file:` URI, which may stand for any name in one line."""
    kind, colon, name = text.partition(":")
    return os.fsdecode(urllib.parse.unquote_to_bytes(name)) if kind + colon == "file:" else text


class _PathParser(flags.ArgumentParser):
    """See `path`."""

    def parse(self, argument: str) -> str:
        return path(argument)


class _PathSerializer(flags.ArgumentSerializer):
    """A path as one line of a flagfile, which neither ends lines within values nor keeps spaces at their ends."""

    def serialize(self, value: str) -> str:
        if not isinstance(value, str):  # the default of a repeatable flag, for the help
            return super().serialize(value)
        if value.isprintable() and value.strip() == value and not value.startswith("file:"):
            return value
        return f"file:{urllib.parse.quote(os.fsencode(value))}"


_PATH = (_PathParser(), _PathSerializer())


def _define_path(name: str, default: str | None, help_: str) -> flags.FlagHolder[str]:
    return flags.DEFINE(_PATH[0], name, default, help_, serializer=_PATH[1])


CONTENT = _define_path(
    "content", "sample:portrait", "The photo: a picture file, or sample:portrait or sample:cat."
)
STYLE = flags.DEFINE_multi(
    *_PATH,
    "style",
    ["sample:night"],
    "The style picture: a file, or sample:night or sample:facets; with a share, as in a.jpg:2, if there are several.",
)
SIZE = flags.DEFINE_string(
    "size", "400", "Longer side of the result in pixels, aspect kept; WxH fixes both sides."
)
RESIZE = flags.DEFINE_enum(
    "resize",
    "lanczos",
    ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"],
    "Pillow's filter for bringing the input pictures to size; the 2017 study had nearest.",
)
WEIGHTS = _define_path(
    "weights",
    "vgg16-torchvision",
    "The network: vgg16-torchvision, vgg16-keras (extra keras-weights), or a .safetensors or .h5 file.",
)
LOSS = flags.DEFINE_enum(
    "loss",
    "gatys",
    sorted(objective.FORMS),
    "Form of the losses: gatys is Gatys et al. 2016, ivanov2017 that of the study.",
)
CONTENT_WEIGHT = flags.DEFINE_float(
    "content_weight",
    None,
    "Weight of the content loss; by default what suits --loss.",
    lower_bound=0,
)
STYLE_WEIGHT = flags.DEFINE_float(
    "style_weight", None, "Weight of the style loss; by default what suits --loss and --size.", lower_bound=0
)
TV_WEIGHT = flags.DEFINE_float(
    "tv_weight", None, "Weight of the total variation; by default what suits --loss.", lower_bound=0
)
CONTENT_LAYER = flags.DEFINE_multi_string(
    "content_layer",
    ["block4_conv2"],
    "Layer of the content loss as NAME or NAME:weight; repeatable.",
)
STYLE_LAYER = flags.DEFINE_multi_string(
    "style_layer",
    None,
    "Layer of the style loss as NAME or NAME:weight; repeatable; by default five that suit --loss.",
)
STYLE_LOSS = flags.DEFINE_enum(
    "style_loss",
    "gram",
    list(STYLE_LOSSES),
    "What of a style picture's features is matched: Gram matrices, mean and covariance (wasserstein), distributions "
    "along random directions (sliced), or patches (mrf).",
)
STYLE_SCALE = flags.DEFINE_float(
    "style_scale",
    1.0,
    "Size of the style pictures, relative to --size: larger gives larger brush strokes.",
    lower_bound=0.05,
    upper_bound=20,
)
POOLING = flags.DEFINE_enum(
    "pooling", "max", list(convolution.POOLING), "How the network shrinks its feature maps."
)
PADDING = flags.DEFINE_enum(
    "padding",
    None,
    ["zero", "edge"],
    "What the network sees around the image: zeros, or its edge continued, which keeps borders clean. By default "
    "edge, and zero for --loss=ivanov2017.",
)
PRESERVE_COLOR = flags.DEFINE_enum(
    "preserve_color",
    "none",
    list(color.PRESERVE),
    "Keep the photo's colours: style in luminance alone, or style pictures recoloured by histogram or by a linear "
    "map.",
)
CONTENT_MASK = flags.DEFINE_multi(
    *_PATH,
    "content_mask",
    None,
    "Picture whose white is the region of the photo that takes a style; one for each --style, in their order.",
)
STYLE_MASK = flags.DEFINE_multi(
    *_PATH,
    "style_mask",
    None,
    "Picture whose white is the region of a style picture that its style is taken from; one for each --style.",
)
CONTENT_WEIGHT_MASK = _define_path(
    "content_weight_mask",
    None,
    "Picture whose white is where the photo is kept; the weight of the content loss goes there.",
)
INIT = _define_path(
    "init", "content", "Start image: content, noise, style_statistics, ivanov2017, or a picture file."
)
STEPS = flags.DEFINE_integer(
    "steps", 200, "Iterations of the optimizer, shared out among the --scales.", lower_bound=1
)
SCALES = flags.DEFINE_integer(
    "scales",
    None,
    "From coarse to fine: so many sizes, each √2 times the one before, up to --size. By default as many as leave the "
    "longer side 256 pixels or more; 1 in compare and sweep, for --loss=ivanov2017, and from a start picture.",
    lower_bound=1,
    upper_bound=16,
)
CLIP = flags.DEFINE_bool("clip", False, "Bring every iterate to [0, 255], not the result alone.")
KEEP = flags.DEFINE_enum(
    "keep",
    "last",
    list(training.KEEPERS),
    "Which image is the result: the last, the one of the lowest loss, or an average that forgets 1 % a step.",
)
SAVE_EVERY = flags.DEFINE_integer(
    "save_every",
    0,
    "Steps between pictures in snapshots/, of which animation.webp is made at the end; 0 is none.",
    lower_bound=0,
)
BITS = flags.DEFINE_integer("bits", 8, "Of each colour in the result: 8, or 16 for PNG and TIFF.")
flags.register_validator("bits", lambda bits: bits in (8, 16), "must be 8 or 16")
SEED = flags.DEFINE_integer(
    "seed", 0, "Every random number of the run comes from it.", lower_bound=0, upper_bound=2**32 - 1
)
CONVOLUTION = flags.DEFINE_enum(
    "convolution",
    "auto",
    ["auto", "direct", "winograd"],
    "How the 3x3 convolutions are computed; auto takes the faster for each layer.",
)
REMAT = flags.DEFINE_bool(
    "remat",
    False,
    "Compute feature maps a second time instead of keeping them: less memory, more time, the same result.",
)
OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Delete what an earlier run of other flags left in --workdir."
)
CHECKPOINT_SECONDS = flags.DEFINE_float(
    "checkpoint_seconds",
    30.0,
    "Seconds between checkpoints, from which a run goes on; more where writing them took more than 2.5 % of its "
    "time. 0 is one after every step.",
    lower_bound=0,
)
for _name in ("style_scale", "checkpoint_seconds"):
    flags.register_validator(_name, math.isfinite, "must be a number")
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder for compiled programs; by default jaxstyle in the user's cache folder, none if empty.",
)
DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", True, "Ask a GPU for the same bits every time; a CPU gives them anyway."
)

#: Flags that say where and how a run goes, but not what it is.
_NOT_RECORDED = frozenset(
    {"workdir", "output", "quality", "dry_run", "overwrite", "checkpoint_seconds", "compilation_cache"}
)


def run(main: Callable[[], None]) -> None:
    """Starts a command: parses flags, sets JAX up, and turns a user's mistake into one line and status 2."""
    app.run(functools.partial(_guarded, main), flags_parser=_parse)


def _parse(arguments: Sequence[str]) -> Sequence[str]:
    try:
        rest = flags.FLAGS(arguments)
        if rest[1:]:
            raise UserError(f"{rest[1]!r} is not a flag; flags are written --name=value")
        for flag in _recorded():
            texts = flag.value if isinstance(flag.value, list) else [flag.value]
            if flag.parser is not _PATH[0] and not all(str(text).isprintable() for text in texts):
                raise UserError(f"--{flag.name}={flag.value!r}: must be one line of printable characters")
    # ValueError: a flagfile that is no text, or whose name has a null character
    except (flags.Error, UserError, ValueError) as error:
        _fail(error)
    return rest


def _fail(error: Exception) -> None:
    print(f"{pathlib.Path(sys.argv[0]).stem}: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def _guarded(main: Callable[[], None], _: Sequence[str]) -> None:
    from jaxstyle.runs.loop import Interrupted

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be Unicode
    _end_on_signals()
    memory.use_one_arena()
    _set_up_jax()
    try:
        main()
    except UserError as error:
        _fail(error)
    except Interrupted as interruption:
        print(f"interrupted by {interruption}; the same command goes on from here", file=sys.stderr)
        sys.exit(interruption.exit_status)


def _end_on_signals() -> None:
    """Has SIGINT and SIGTERM end the process at once, with status 130 or 143, and without a traceback.

    Python's own handlers would wait until XLA has compiled. Nothing is lost: where a run has something to
    keep, it takes the signals over (see `loop.interruptible`).
    """
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        number = os.read(receiver, 1)[0]
        os.write(2, f"interrupted by {signal.Signals(number).name}; the same command starts again\n".encode())
        os._exit(128 + number)

    threading.Thread(target=wait, daemon=True).start()


def _set_up_jax() -> None:
    import jax

    if DETERMINISTIC.value:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    folder = COMPILATION_CACHE.value
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join(cache, "jaxstyle")
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _recorded() -> Iterator[flags.Flag[Any]]:
    for module, known in flags.FLAGS.flags_by_module_dict().items():
        if module == sys.argv[0] or module.startswith(__package__):
            yield from (flag for flag in known if flag.name not in _NOT_RECORDED)


def recorded_flags() -> str:
    """The text of `run.flags`: every flag of the commands, those that only say where left out."""
    return "".join(
        flag.serialize() + "\n"
        for flag in sorted(_recorded(), key=lambda flag: flag.name)
        if flag.value is not None
    )
