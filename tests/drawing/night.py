"""Night: a sky of eddies over a village, in the manner of 1889; composed for 4:3."""

import numpy as np
from PIL import Image, ImageDraw

from drawing.brush import (
    SUPERSAMPLING,
    Mask,
    Paths,
    Picture,
    Plan,
    Points,
    brush,
    grid,
    light,
    look_up,
    paint,
    ramp,
)

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
    canvas = Image.new("RGBA", (width * SUPERSAMPLING, height * SUPERSAMPLING), (20, 32, 80, 100))
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
