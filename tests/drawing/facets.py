"""Facets: overlapping planes, in the manner of 1910; composed for 4:3."""

import numpy as np
from PIL import Image

from drawing.brush import SUPERSAMPLING, Picture, Plan, grid, light, paint, ramp

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
    drawing = drawing.resize((width * SUPERSAMPLING, height * SUPERSAMPLING), Image.Resampling.BICUBIC)
    canvas = drawing.copy()
    paint(canvas, rng, plan, 1500, length=0.036, width=0.020, jitter=6, where=~contours)
    paint(canvas, rng, plan, 2600, length=0.024, width=0.013, jitter=9, where=~contours)
    paint(canvas, rng, plan, 3600, length=0.017, width=0.009, jitter=9, where=~contours)
    dry = np.where(contours, rng.uniform(150, 255, contours.shape), 0).astype(np.uint8)
    canvas.paste(drawing, mask=Image.fromarray(dry).resize(canvas.size, Image.Resampling.BICUBIC))
    return light(canvas, rng, relief=0.2, weave=9)
