"""What tests share: small random networks and problems."""

import atexit
import gc
import os
import pathlib
import shutil
import tempfile

# Before JAX starts. XLA compiles in a third of the time; what it makes is slower, which small pictures do not feel.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# What the tests compile is kept for them all, processes among them, and not in the user's cache.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _kept = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, _kept, ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import jax
import numpy as np
import pytest

import jaxstyle
from jaxstyle import machine
from jaxstyle.losses import objective, recipes
from jaxstyle.network import vgg, weights
from jaxstyle.quality import photo

jax.config.update("jax_numpy_rank_promotion", "raise")


#: The files that take longest begin first, so that all workers end together.
LONG = (
    *("stylize", "optimizers", "devices", "objective", "compare", "cluster", "quality", "studio", "strips"),
    *("parametrization", "kill", "fuzz", "benchmark", "study", "processes", "regions", "weights", "sweep"),
    *("style_losses", "library"),
    *(
        "convolution",
        "run",
        "tensorboard",
        "packaging",
        "notebooks",
        "training",
        "samples",
    ),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The whole suite runs on several cores; what is named on the command line in this process, where it is seen."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(machine.cores(), 4) if whole else 0


@pytest.fixture(scope="session")
def random_network() -> vgg.Network:
    """A VGG16 of the right depth and few channels, so that it is evaluated in no time."""
    rng = np.random.default_rng(0)
    channels, convolutions = 3, {}
    for name in vgg.layer_names("vgg16"):
        width = 4 * int(name[5])
        kernel = rng.normal(0, (2 / (9 * channels)) ** 0.5, (3, 3, channels, width))
        bias = rng.normal(0, 0.1, width)
        convolutions[name] = vgg.Filters(kernel.astype(np.float32), bias.astype(np.float32))
        channels = width
    return vgg.Network(convolutions, np.float32([120, 115, 100]), np.float32([58, 57, 57]))


@pytest.fixture
def narrow_weights(random_network, monkeypatch) -> None:
    """What a test reads weights of in this process is narrow."""

    def load(name: str) -> weights.Weights:
        return weights.Weights(name, "vgg16", random_network, "0" * 64)

    def heads() -> dict[str, np.ndarray]:
        return {layer: np.ones(4 * int(layer[5]), np.float32) for layer in photo.LAYERS}

    for name, exported, narrow in (("load", "load_weights", load), ("lpips_heads", "lpips_heads", heads)):
        monkeypatch.setattr(weights, name, narrow)
        monkeypatch.setitem(vars(jaxstyle), exported, narrow)


@pytest.fixture(scope="session")
def content() -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, (40, 36, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def style() -> np.ndarray:
    return np.random.default_rng(2).uniform(0, 255, (33, 48, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def make_problem(random_network, content, style):
    """Poses the small problem in a form of the losses."""

    def make(form: objective.Form, tv_weight: float = 1e-3) -> objective.Problem:
        return jaxstyle.pose(
            form,
            vgg.prepare(random_network, "block3_conv1"),
            content,
            [objective.Style(style)],
            recipes.Weighting({"block2_conv2": 1.0}, {"block1_conv1": 10.0, "block3_conv1": 5.0}, tv_weight),
        )

    return make


@pytest.fixture(scope="session")
def study() -> pathlib.Path:
    """The 2017 study's pictures and the values that it printed."""
    folder = os.environ.get("JAXSTYLE_IVANOV2017")
    if not folder:
        pytest.skip("JAXSTYLE_IVANOV2017 does not name the folder of the study's pictures")
    return pathlib.Path(folder)


def pytest_collection_finish() -> None:
    """Garbage is looked for less often, and not among what is imported: tracing makes a lot that is none."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
