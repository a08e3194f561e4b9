"""Style pictures that the project draws itself, so that a demonstration needs no file from elsewhere.

A picture is planned as three maps (colour, direction of the brush, region) and then painted with thousands of
strokes from coarse to fine. A stroke is a bundle of bristles that follows the direction and stays in the region
where it began; each bristle leaves a colour and a thickness of paint, and light from the upper left makes the
relief of the paint visible. Positions and lengths are in units of the picture's height, x to the right and y down.
The pictures are composed for 4:3; a frame of another shape shows more or less of the night at its right.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

from jaxstyle.errors import UserError

Points = Float[np.ndarray, "count 2"]
Paths = Float[np.ndarray, "count steps 2"]
Mask = Bool[np.ndarray, "height width"]
Picture = UInt8[np.ndarray, "height width 3"]

_SUPERSAMPLING = 2


class Plan(NamedTuple):
    """What is to be painted, per pixel; the composing functions below change it in place."""

    colours: Float[np.ndarray, "height width 3"]  # RGB in [0, 255]
    angles: Float[np.ndarray, "height width"]  # of the brush, in radians from x towards y
    regions: Int[np.ndarray, "height width"]  # labels; a stroke does not leave its own; negative: contours


# Painting ---------------------------------------------------------------------------------------------------


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
    height, width = canvas.height // _SUPERSAMPLING, canvas.width // _SUPERSAMPLING
    reduced = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=np.float64)
    y, x = np.mgrid[:height, :width] * (2 * np.pi / max(height / 230, 2.5))
    surface = reduced[..., 3] + weave * (np.sin(x) * np.sin(y) + rng.normal(0, 0.5, (height, width)))
    slope = np.diff(surface, axis=0, prepend=surface[:1]) + np.diff(surface, axis=1, prepend=surface[:, :1])
    return np.clip(np.rint(reduced[..., :3] + relief * slope[..., None]), 0, 255).astype(np.uint8)


# Night: a sky of eddies over a village, in the manner of 1889 --------------------------------------------------

_MOON = (1.18, 0.16, 0.155)  # x, y, radius of the halo
_STARS = (
    *(
        (0.10, 0.13, 0.075),
        (0.33, 0.07, 0.060),
        (0.40, 0.27, 0.070),
        (0.57, 0.12, 0.050),
        (0.80, 0.08, 0.070),
    ),
    *(
        (0.97, 0.30, 0.060),
        (0.27, 0.50, 0.085),
        (1.02, 0.08, 0.045),
        (0.93, 0.50, 0.050),
        (1.27, 0.42, 0.060),
    ),
)
_EDDIES = ((0.62, 0.34, 0.19, 1), (0.86, 0.41, 0.12, -1), (0.13, 0.36, 0.11, 1))  # x, y, radius, sense
_BLUES = ((18, 28, 84), (28, 52, 128), (46, 92, 164), (104, 150, 196), (176, 204, 208))
_GLOW = ((255, 250, 226), (255, 228, 120), (246, 204, 70), (214, 206, 110), (150, 184, 160), (84, 136, 176))
_BARK = ((10, 20, 22), (26, 48, 36), (78, 66, 36))
_WALLS = ((74, 96, 130), (54, 78, 112), (96, 112, 128), (62, 92, 98), (112, 116, 104))
_ROOFS = ((50, 62, 92), (84, 80, 86), (44, 70, 92), (106, 82, 66))
_HOUSES = (  # x and y of the foot
    *(
        (0.49, 0.860),
        (0.60, 0.845),
        (0.70, 0.870),
        (0.93, 0.850),
        (1.03, 0.875),
        (1.14, 0.855),
        (1.25, 0.880),
    ),
    *((0.42, 0.920), (0.55, 0.930), (0.67, 0.945), (0.91, 0.935), (1.12, 0.950), (1.29, 0.955)),
)


def night_sky(height: int, width: int) -> Plan:
    """Wind in waves; eddies with spiral arms; stars and a moon in rings of light."""
    x, y = grid(height, width)
    streaks = (
        35 * y + 1.8 * np.sin(5.5 * x + 0.6) + 0.9 * np.sin(11 * x - 7 * y) + 2.4 * np.sin(3 * x + 4 * y)
    )
    colours = ramp(0.36 + 0.27 * np.sin(streaks) + 0.28 * (y - 0.3), _BLUES)
    wind = 1 - 1j * (0.275 * np.cos(5.5 * x + 0.6) + 0.2 * np.cos(11 * x - 7 * y))  # velocity in x + i·y
    for cx, cy, radius, sense in _EDDIES:
        offset = (x - cx) + 1j * (y - cy)
        t, theta = np.abs(offset) / radius, np.angle(offset)
        weight = np.exp(-(t**4))
        wind += weight * (np.exp(1j * (theta + sense * (np.pi / 2 + 0.22))) - wind)
        arms = ramp(0.52 + 0.42 * np.sin(16 * t - 2 * sense * theta), (*_BLUES, (226, 228, 196)))
        colours += weight[..., None] * (arms - colours)
    for cx, cy, radius in (*_STARS, _MOON):
        offset = (x - cx) + 1j * (y - cy)
        t, theta = np.abs(offset) / radius, np.angle(offset)
        wind += np.exp(-(t**4)) * (1j * np.exp(1j * theta) - wind)
        gaps = np.where(t > 0.3, 0.28 * (1 - np.cos(8 * np.pi * t)) * np.minimum(t, 1), 0)[..., None]
        glow = (1 - gaps) * ramp(t, (*_GLOW, (50, 96, 164))) + gaps * (30, 60, 140)
        colours += np.exp(-((t / 1.02) ** 6))[..., None] * (glow - colours)
    cx, cy, radius = _MOON
    disc = np.hypot(x - cx, y - cy) < 0.46 * radius
    bite = np.hypot(x - cx + 0.035, y - cy + 0.012) < 0.36 * radius
    colours[disc], colours[disc & ~bite] = (255, 238, 160), (242, 158, 30)
    return Plan(colours, np.angle(wind), np.zeros((height, width), int))


def add_hills(plan: Plan) -> None:
    """Three ridges, the nearest last."""
    height, width = plan.angles.shape
    x, y = grid(height, width)
    for ridge, lean, low, high in (
        (
            0.66 - 0.05 * np.sin(3.2 * x - 0.3) - 0.1 * np.maximum(x - 0.75, 0),
            0.35,
            (24, 40, 96),
            (96, 138, 180),
        ),
        (
            0.75 - 0.03 * np.sin(5 * x + 2) - 0.07 * np.maximum(x - 0.9, 0),
            -0.25,
            (22, 46, 70),
            (70, 116, 130),
        ),
        (0.83 + 0.02 * np.sin(7 * x), 0.1, (16, 34, 44), (74, 98, 72)),
    ):
        depth, ground = y - ridge, y > ridge
        bands = (0.5 + 0.5 * np.sin(70 * depth + 6 * np.sin(4 * x))) * np.exp(-4 * depth)
        plan.colours[ground] = ramp(bands[ground], (low, high))
        plan.angles[ground] = (np.gradient(ridge, axis=1) * height + lean * np.sin(9 * x))[ground]


def add_village(plan: Plan, rng: np.random.Generator) -> tuple[Mask, Paths, Points]:
    """Bushes, houses and a church: where they are, the outlines of the walls and roofs, and the windows."""
    height, width = plan.angles.shape
    x, y = grid(height, width)
    mask, outlines, windows = np.zeros((height, width), bool), [], [(0.816, 0.79), (0.848, 0.855)]

    def fill(corners: list[tuple[float, float]], colour: tuple[int, int, int], angle: float) -> None:
        stencil = Image.new("1", (width, height))
        ImageDraw.Draw(stencil).polygon([(px * height, py * height) for px, py in corners], fill=1)
        inside = np.asarray(stencil)
        plan.colours[inside], plan.angles[inside], mask[inside] = colour, angle, True
        outlines.extend(np.linspace(corners[i - 1], corners[i], 9) for i in range(len(corners)))

    def box(left: float, top: float, right: float, foot: float, colour: tuple[int, int, int]) -> None:
        fill([(left, foot), (left, top), (right, top), (right, foot)], colour, np.pi / 2)

    for cx in np.arange(0.40, 1.36, 0.055):
        (dx, dy), radius = rng.uniform(-0.016, 0.016, 2), rng.uniform(0.025, 0.042)
        offset = (x - cx - dx) + 1.25j * (y - 0.8 - dy)
        inside = np.abs(offset) < radius
        rings = 0.5 + 0.5 * np.sin(6 * np.pi * np.abs(offset[inside]) / radius)
        plan.colours[inside] = ramp(rings, ((20, 42, 40), (76, 104, 62)))
        plan.angles[inside], mask[inside] = np.angle(offset[inside]) + np.pi / 2, True
    for cx, foot in _HOUSES:
        w, h, peak = rng.uniform((0.035, 0.03, 0.025), (0.05, 0.045, 0.035))
        eaves, top = foot - h, foot - h - peak
        box(cx - w, eaves, cx + w, foot, _WALLS[rng.integers(len(_WALLS))])
        roof = [(cx - 1.15 * w, eaves), (cx - 0.6 * w, top), (cx + 0.7 * w, top), (cx + 1.15 * w, eaves)]
        fill(roof, _ROOFS[rng.integers(len(_ROOFS))], -0.9)
        windows.append((cx + w * rng.uniform(-0.4, 0.4), foot - 0.45 * h))
    box(0.775, 0.825, 0.865, 0.885, (70, 92, 124))
    fill([(0.765, 0.825), (0.785, 0.79), (0.85, 0.79), (0.875, 0.825)], (54, 70, 98), -0.5)
    box(0.80, 0.745, 0.833, 0.885, (88, 108, 138))
    fill([(0.795, 0.745), (0.816, 0.60), (0.838, 0.745)], (42, 58, 92), -1.5)
    return mask, np.stack(outlines), np.array(windows)


def add_cypress(plan: Plan) -> Mask:
    """A dark tree like a flame, and a smaller one behind it; returns where they are."""
    x, y = grid(*plan.angles.shape)
    side = x - 0.205 - 0.012 * np.sin(14 * y)
    tall = 0.135 * np.clip(y - 0.06, 0, 1) ** 0.85 * (1 + 0.2 * np.sin(23 * y + 1) + 0.09 * np.sin(51 * y))
    small = 0.07 * np.clip(y - 0.42, 0, 1) ** 0.6 * (1 + 0.2 * np.sin(37 * y))
    tree = (np.abs(side) < tall) | (np.abs(x - 0.33 - 0.01 * np.sin(17 * y)) < small)
    plan.colours[tree] = ramp(0.5 + 0.5 * np.sin(150 * side + 5 * np.sin(12 * y)), _BARK)[tree]
    plan.angles[tree] = (-np.pi / 2 + 0.5 * np.sin(16 * y + 30 * side) + 2 * side)[tree]
    return tree


def night(height: int, width: int) -> Picture:
    """A swirling, brush-stroked night: blues, yellow stars, a cypress, a village."""
    rng = np.random.default_rng(1889)
    plan = night_sky(height, width)
    add_hills(plan)
    village, outlines, windows = add_village(plan, rng)
    tree = add_cypress(plan)
    x, y = grid(height, width)
    lights = np.any([np.hypot(x - cx, y - cy) < 0.9 * radius for cx, cy, radius in (*_STARS, _MOON)], axis=0)
    canvas = Image.new("RGBA", (width * _SUPERSAMPLING, height * _SUPERSAMPLING), (20, 32, 80, 100))
    paint(canvas, rng, plan, 1500, length=0.14, width=0.030, jitter=14)
    paint(canvas, rng, plan, 3000, length=0.075, width=0.017, jitter=18)
    paint(canvas, rng, plan, 3500, length=0.055, width=0.010, jitter=20)
    paint(canvas, rng, plan, 9000, length=0.03, width=0.008, jitter=14, where=(lights | village) & ~tree)
    paint(canvas, rng, plan, 9000, length=0.045, width=0.006, jitter=12, where=tree)
    outlines = outlines[~look_up(tree, outlines).any(axis=1)]
    brush(canvas, rng, outlines, np.full((len(outlines), 3), (16.0, 24.0, 44.0)), 0.004)
    dabs = windows[:, None] + np.linspace((0, -0.006), (0, 0.006), 3)
    brush(canvas, rng, dabs, np.full((len(dabs), 3), (246.0, 206.0, 84.0)), 0.009)
    return light(canvas, rng, relief=0.25, weave=4)


# Facets: overlapping planes, in the manner of 1910 -------------------------------------------------------------

_EARTHS = (  # ochre, grey, olive, blue-green, each from dark to light
    ((38, 26, 18), (104, 74, 42), (180, 138, 82), (236, 210, 154)),
    ((30, 30, 30), (88, 86, 80), (156, 150, 134), (224, 216, 190)),
    ((34, 34, 22), (92, 86, 50), (158, 146, 94), (220, 206, 154)),
    ((24, 42, 48), (66, 96, 96), (122, 150, 136), (200, 208, 184)),
)
_SHARES = (0.46, 0.29, 0.19, 0.06)
_TURNS = np.radians([90, 64, -64, 30, -33, 3])  # the few directions that the edges share


def facet_planes(rng: np.random.Generator, height: int, width: int, count: int = 360) -> Plan:
    """Translucent planes, large to small and towards the middle, each dark or light at one edge and fading across.

    Fading lets a plane pass into what is behind it. Dark or light contours, some of them hatched, are regions
    of their own with negative labels.
    """
    all_x, all_y = grid(height, width)
    aspect = width / height
    cloud = np.sin(5 * all_x + 2 * all_y) * np.sin(3 * all_y - 2 * all_x + 1)
    ground = 0.62 + 0.18 * cloud - 0.2 * np.abs(all_x - aspect / 2) * all_y
    everywhere = Plan(
        ramp(ground, ((84, 70, 50), (158, 132, 90), (214, 194, 148))),
        np.full((height, width), 0.1),
        np.zeros((height, width), int),
    )
    for index in range(1, count + 1):
        late = index / count
        size = 0.42 * (1 - late) ** 1.5 + 0.075
        cy = rng.uniform(-0.05, 1.05)
        cx = aspect / 2 + 0.05 * np.sin(5 * cy) + rng.normal(0, (0.55 - 0.33 * late) * (0.45 + 0.6 * cy))
        turn = rng.choice(_TURNS) + rng.normal(0, 0.08)
        length, breadth = size * rng.uniform((0.8, 0.3), (1.6, 0.8))
        taper, bend = rng.choice((0, 0.4, 0.9, 1.0)), rng.choice((0, 0, 0, 0.5, -0.7))

        reach = 0.5 * np.hypot(length, 2.3 * breadth)
        left, right = np.clip([int((cx - reach) * height), int((cx + reach) * height)], 0, width)
        top, foot = np.clip([int((cy - reach) * height), int((cy + reach) * height)], 0, height)
        box = np.s_[top:foot, left:right]
        plan, x, y = Plan(*(part[box] for part in everywhere)), all_x[box] - cx, all_y[box] - cy
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        s = along / length
        t = across / breadth + bend * (s**2 - 0.08)
        half = 0.5 - 0.5 * taper * s
        inside = (np.abs(s) < 0.5) & (np.abs(t) < half)
        fade = np.clip(t + half, 0, 1)

        dark = rng.random() < 0.58
        tone = rng.uniform(0, 0.28) + 0.55 * fade if dark else rng.uniform(0.82, 1) - 0.4 * fade
        opacity = np.where(inside, np.clip(1.05 - 1.15 * fade, 0, 0.92), 0)[..., None]
        plan.colours[:] += opacity * (ramp(tone, _EARTHS[rng.choice(4, p=_SHARES)]) - plan.colours)
        seen = inside & (fade < 0.5)
        plan.angles[seen] = turn if rng.random() < 0.4 else rng.normal(0, 0.15)
        plan.regions[seen] = index

        ink = rng.choice((0.0024, 0.0038, 0.0055))
        contour = inside & ((t + half) * breadth < ink)
        if rng.random() < 0.6:
            contour |= inside & ((s + 0.5) * length < ink)
        if rng.random() < 0.12:
            contour |= inside & (np.mod(across, 0.02) < 0.0025) & (fade < 0.7)
        plan.colours[contour] = (30, 24, 20) if rng.random() < 0.82 else (238, 224, 180)
        plan.regions[contour] = -index
    return everywhere


def facets(height: int, width: int) -> Picture:
    """Angular planes in ochre, umber, grey and olive with a few blue-greens, contours and short dabs."""
    rng = np.random.default_rng(1910)
    plan = facet_planes(rng, height, width)
    contours = plan.regions < 0
    drawing = Image.fromarray(np.clip(np.rint(plan.colours), 0, 255).astype(np.uint8)).convert("RGBA")
    drawing.putalpha(120)
    drawing = drawing.resize((width * _SUPERSAMPLING, height * _SUPERSAMPLING), Image.Resampling.BICUBIC)
    canvas = drawing.copy()
    paint(canvas, rng, plan, 1500, length=0.036, width=0.020, jitter=6, where=~contours)
    paint(canvas, rng, plan, 2600, length=0.024, width=0.013, jitter=9, where=~contours)
    paint(canvas, rng, plan, 3600, length=0.017, width=0.009, jitter=9, where=~contours)
    dry = np.where(contours, rng.uniform(150, 255, contours.shape), 0).astype(np.uint8)
    canvas.paste(drawing, mask=Image.fromarray(dry).resize(canvas.size, Image.Resampling.BICUBIC))
    return light(canvas, rng, relief=0.2, weave=9)


_PAINTERS = {"night": night, "facets": facets}
STYLES: tuple[str, ...] = tuple(_PAINTERS)


def draw(name: str, height: int = 768, width: int = 1024) -> Picture:
    """The sample style picture of that name, one of `STYLES`: RGB, sides of 2 pixels or more.

    The same bytes each time; another version of NumPy or Pillow may round a stroke differently.

    Raises:
      UserError: there is no such picture.
    """
    if name not in _PAINTERS:
        raise UserError(f"sample style {name!r}: no such picture; there are {', '.join(STYLES)}")
    return _PAINTERS[name](height, width)
