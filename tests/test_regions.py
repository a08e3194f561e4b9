"""Regions that two pictures have in common: what is alike goes together, and the masks are those of the run."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import narrow
import numpy as np
import pytest
from PIL import Image
from scipy.cluster.vq import kmeans2

from jaxstyle.images import pictures, regions

KEY = jax.random.key(0)


@functools.partial(jax.jit, static_argnums=2)
def find(photo, style, count):
    return regions.find([photo], [style], count, KEY)


def maps(labels, kinds, seed=0):
    """Feature maps where each label has a feature of its own, with a little noise."""
    rng = np.random.default_rng(seed)
    return np.float32(kinds[labels] + rng.normal(0, 0.05, (*labels.shape, kinds.shape[1])))


KINDS = np.random.default_rng(1).normal(size=(3, 16))
#: Thirds from left to right, and from below.
THIRDS = np.repeat(np.arange(3), 6)[None] * np.ones((12, 1), int)
BELOW = THIRDS.T[::-1]


def test_what_is_alike_in_both_pictures_is_one_region_wherever_it_is():
    photo, style = find(maps(THIRDS, KINDS), maps(BELOW, KINDS, 2), 3)
    number = {kind: int(photo[0, 6 * kind]) for kind in range(3)}
    assert sorted(number.values()) == [0, 1, 2]
    for found, kinds in ((photo, THIRDS), (style, BELOW)):
        np.testing.assert_array_equal(found, np.vectorize(number.get)(kinds))


def test_a_painting_whose_features_are_others_is_divided_as_the_photo_is():
    """A channel's mean and scale are those of a picture, and tell no regions apart."""
    photo, style = find(maps(THIRDS, KINDS), 30 + 7 * maps(THIRDS, KINDS, 2), 3)
    np.testing.assert_array_equal(photo, style)


def test_what_one_picture_lacks_goes_to_the_nearest_that_both_have():
    kinds = np.stack([KINDS[0], KINDS[1], KINDS[1] + 0.3 * KINDS[2]])
    alone = np.where(THIRDS == 2, 1, THIRDS)
    photo, style = find(maps(THIRDS, kinds), maps(alone, kinds, 2), 3)
    assert set(np.unique(photo)) == set(np.unique(style)) == {*range(int(photo.max()) + 1)}


def test_centres_are_those_of_scipys_k_means():
    points = np.float32(
        np.concatenate([np.random.default_rng(k).normal(4 * k, 1, (50, 3)) for k in range(4)])
    )
    found = jax.jit(regions._k_means, static_argnums=1)(jnp.asarray(points), 4, KEY)
    expected, _ = kmeans2(points, np.asarray(found) + 0.1, iter=50, minit="matrix")
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.all(np.diff(np.sort(found[:, 0])) > 2)


def test_masks_make_up_the_picture_and_are_soft_at_their_borders():
    masks = regions.masks(jnp.asarray(THIRDS), 3, (48, 72, 3))
    assert (masks.shape, masks.dtype) == ((3, 48, 72), np.uint8)
    assert np.abs(masks.sum(0, dtype=int) - 255).max() <= 1
    assert masks[0, :, :20].min() == 255
    assert masks[1, :, :20].max() == 0


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A photo and a style picture of two halves each."""
    folder, rng = tmp_path_factory.mktemp("regions"), np.random.default_rng(0)
    rough = rng.uniform(0, 255, (64, 32, 3))
    halves = rough, 90 + 0.1 * rough
    pictures.write(folder / "photo.png", np.concatenate(halves, 1))
    pictures.write(folder / "style.png", np.concatenate([half.swapaxes(0, 1) for half in halves], 0))
    return folder


def run(folder, *arguments, module="stylize"):
    flags = [f"--content={folder}/photo.png", f"--style={folder}/style.png", "--size=48", "--steps=3"]
    flags += ["--style_loss=gram", *narrow.FEW]  # which compile faster
    flags *= module == "stylize" and not arguments[0].startswith("--flagfile")
    return narrow.run(f"experiments.{module}", *flags, *arguments)


def test_the_masks_that_a_run_found_given_back_make_the_same_picture(folder):
    found, given, again = (folder / name for name in ("found", "given", "again"))
    done = run(folder, "--regions=2", "--scales=2", f"--workdir={found}")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (found / "regions").iterdir())
    assert names == ["content-1.png", "content-2.png", "style-1.png", "style-2.png"]
    with Image.open(found / "regions" / "content-1.png") as mask, Image.open(found / "image.png") as image:
        assert mask.size == image.size
    masks = [f"--{flag}_mask={found}/regions/{flag}-{k}.png" for k in (1, 2) for flag in ("content", "style")]
    done = run(folder, f"--style={folder}/style.png", *masks, "--scales=2", f"--workdir={given}")
    assert done.returncode == 0, done.stderr
    done = run(folder, f"--flagfile={found}/run.flags", f"--workdir={again}")
    assert done.returncode == 0, done.stderr
    first, *others = (pictures.read(each / "image.png") for each in (found, given, again))
    for other in others:
        np.testing.assert_array_equal(first, other)
    done = run(folder, f"--result={found}", f"--result={given}", module="measure")
    assert done.returncode == 0, done.stderr
    one, other = map(json.loads, done.stdout.splitlines())
    assert {**one, "result": None} == {**other, "result": None}


def test_a_dry_run_says_how_much_of_the_pictures_each_region_has(folder):
    done = run(folder, "--regions=2", "--dry_run", f"--workdir={folder}/dry")
    assert "regions: " in done.stdout, done.stderr
    assert "% of the photo with" in done.stdout
    assert not pathlib.Path(folder, "dry").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--style=sample:night", "--style=sample:facets"], "--regions=2: 3 given of --style"),
        (["--style_mask="], "--regions=2: --style_mask is given too"),
    ],
)
def test_regions_with_masks_or_several_styles_are_refused_in_one_line(folder, flags, named):
    done = run(folder, *flags, "--regions=2", f"--workdir={folder}/refused")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert named in done.stderr
