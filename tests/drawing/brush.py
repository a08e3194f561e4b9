"""Painting with thousands of strokes from coarse to fine.

A picture is planned as three maps (colour, direction of the brush, region). A stroke is a bundle of bristles that
follows the direction and stays in the region where it began; each bristle leaves a colour and a thickness of paint,
and light from the upper left makes the relief of the paint visible. Positions and lengths are in units of the
picture's height, x to the right and y down.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

Points = Float[np.ndarray, "count 2"]
Paths = Float[np.ndarray, "count steps 2"]
Mask = Bool[np.ndarray, "height width"]
Picture = UInt8[np.ndarray, "height width 3"]

SUPERSAMPLING = 2


class Plan(NamedTuple):
    """What is to be painted, per pixel; the functions that compose change it in place."""

    colours: Float[np.ndarray, "height width 3"]  # RGB in [0, 255]
    angles: Float[np.ndarray, "height width"]  # of the brush, in radians from x towards y
    regions: Int[np.ndarray, "height width"]  # labels; a stroke does not leave its own; negative: contours


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels' centres, both `[height, width]`."""
    y, x = np.mgrid[:height, :width]
    return (x + 0.5) / height, (y + 0.5) / height


def ramp(t: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Colours `[..., 3]` at t in [0, 1] (clipped) between evenly spaced ones."""
    knots = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(t, knots, channel) for channel in zip(*colours, strict=True)], axis=-1)


def look_up(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The nearest pixels of a map at points `[..., 2]`; outside, those of its border."""
    column, row = np.moveaxis(np.floor(points * image.shape[0]).astype(int), -1, 0)
    return image[np.clip(row, 0, image.shape[0] - 1), np.clip(column, 0, image.shape[1] - 1)]


def scatter(rng: np.random.Generator, count: int, aspect: float) -> Points:
    """About `count` points in random order that cover the picture evenly: one somewhere in each cell of a grid."""
    rows = max(1, round(np.sqrt(count / aspect)))
    columns = max(1, round(rows * aspect))
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    return rng.permutation((cells + rng.random(cells.shape)) / (columns, rows) * (aspect, 1))


def follow(plan: Plan, starts: Points, lengths: Float[np.ndarray, " count"], steps: int = 10) -> Paths:
    """Paths of `steps` + 1 points along the plan's directions, centred on `starts`, by Euler's method."""
    home, halves = look_up(plan.regions, starts), []
    for sign in (-1, 1):
        points, half = starts, []
        for _ in range(steps // 2):
            angle = look_up(plan.angles, points)
            ahead = points + (sign * lengths / steps * np.stack([np.cos(angle), np.sin(angle)])).T
            points = np.where((look_up(plan.regions, ahead) == home)[:, None], ahead, points)
            half.append(points)
        halves.append(half)
    return np.stack([*halves[0][::-1], starts, *halves[1]], axis=1)


def brush(
    canvas: Image.Image,
    rng: np.random.Generator,
    paths: Paths,
    colours: Float[np.ndarray, "count 3"],
    width: float,
) -> None:
    """Draw strokes in place on an RGBA canvas whose fourth channel is the thickness of the paint."""
    count, steps, _ = paths.shape
    pixels, across = paths * canvas.height, width * canvas.height
    bristles = int(np.clip(across / 3, 2, 7))
    places = (np.arange(bristles) + 0.5) / bristles - 0.5
    tangents = np.gradient(pixels, axis=1)
    normals = np.stack([-tangents[..., 1], tangents[..., 0]], axis=-1)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
    lines = pixels[:, None] + across * places[:, None, None] * normals[:, None]
    lines += rng.normal(0, 0.06 * across, (count, bristles, 1, 2))
    shades = rng.normal(0, 11, (count, bristles, 1)) + rng.normal(0, 3, (count, bristles, 3))
    thickness = 210 * (1 - 2.2 * places**2) + rng.normal(0, 35, (count, bristles))
    paint = np.concatenate([colours[:, None] + shades, thickness[..., None]], axis=-1)
    paint = np.clip(np.rint(paint), 0, 255).astype(int)
    ends = rng.integers(0, steps // 4 + 1, (count, bristles, 2))  # bristles lift off one by one
    pen, line_width = ImageDraw.Draw(canvas), max(1, round(1.5 * across / bristles))
    joint = "curve" if line_width > 6 else None
    for stroke in range(count):
        for bristle in range(bristles):
            first, last = ends[stroke, bristle]
            line = lines[stroke, bristle, first : steps - last].ravel().tolist()
            pen.line(line, tuple(paint[stroke, bristle].tolist()), line_width, joint)


def paint(
    canvas: Image.Image,
    rng: np.random.Generator,
    plan: Plan,
    count: int,
    length: float,
    width: float,
    jitter: float,
    where: Mask | None = None,
) -> None:
    """A layer of strokes on the canvas: as many as `count` spread all over, kept only `where` the mask is set.

    `jitter` is the standard deviation of a stroke's colour around the plan's.
    """
    starts = scatter(rng, count, canvas.width / canvas.height)
    if where is not None:
        starts = starts[look_up(where, starts)]
    lengths = length * rng.uniform(0.6, 1.4, len(starts))
    tones = rng.normal(0, jitter, (len(starts), 1)) + rng.normal(0, jitter / 2, (len(starts), 3))
    brush(canvas, rng, follow(plan, starts, lengths), look_up(plan.colours, starts) + tones, width)


def light(canvas: Image.Image, rng: np.random.Generator, relief: float, weave: float) -> Picture:
    """The finished picture: paint and the weave of the canvas lit from the upper left, at the final size."""
    height, width = canvas.height // SUPERSAMPLING, canvas.width // SUPERSAMPLING
    reduced = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=np.float64)
    y, x = np.mgrid[:height, :width] * (2 * np.pi / max(height / 230, 2.5))
    surface = reduced[..., 3] + weave * (np.sin(x) * np.sin(y) + rng.normal(0, 0.5, (height, width)))
    slope = np.diff(surface, axis=0, prepend=surface[:1]) + np.diff(surface, axis=1, prepend=surface[:, :1])
    return np.clip(np.rint(reduced[..., :3] + relief * slope[..., None]), 0, 255).astype(np.uint8)
