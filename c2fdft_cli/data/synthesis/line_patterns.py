"""Draw fences, blinds and lattices on clean crops: straight lines that belong to the picture.

Thin bright lines that look like rain are rare in photographs, so a network that learns only from
photographs and rain mistakes all such lines for rain. These patterns teach it which ones to keep.
"""

from __future__ import annotations

import math

import numpy as np

from c2fdft_cli.data.pixels import Floats, Pixels

SPACING, WIDTH = (5.0, 40.0), (0.8, 5.0)
"""Ranges in px, from line to line and across a line, sampled uniformly in their logarithms."""
MOST_COVERED = 0.45
"""Largest width as a share of the spacing."""
TAPER = 0.3
"""Largest relative change of the spacing across the crop, as by perspective."""
JITTER = 0.12
"""Largest shift of a line as a share of the spacing."""


def draw_line_pattern(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """Return a copy of a clean crop, uint8 [h, w, 3], with one pattern of lines on it.

    The lines have one direction or two that cross, are light or dark, cover all of the crop or one
    side of a straight edge, and are sometimes in front of a darkened background.
    """
    h, w = clean.shape[:2]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    y, x = y - h / 2, x - w / 2
    angle = rng.uniform(0, math.pi)
    angles = [angle]
    if rng.random() < 0.6:
        angles.append(angle + math.pi / 2 + rng.normal(0, 0.15))
    covered = np.zeros((h, w), np.float32)
    for one in angles:
        np.maximum(covered, _lines(x, y, one, rng), out=covered)
    side = _one_side(x, y, rng) if rng.random() < 0.5 else np.ones((h, w), np.float32)
    scene = clean.astype(np.float32)
    if rng.random() < 0.4:
        scene *= (1 - rng.uniform(0.5, 0.95) * side)[:, :, None]
    level = rng.uniform(150, 255) if rng.random() < 0.75 else rng.uniform(0, 60)
    colour = np.clip(level + rng.normal(0, 12, 3), 0, 255).astype(np.float32)
    share = (rng.uniform(0.5, 1) * covered * side)[:, :, None]
    drawn: Pixels = np.rint(scene + share * (colour - scene)).astype(np.uint8)
    return drawn


def _lines(x: Floats, y: Floats, angle: float, rng: np.random.Generator) -> Floats:
    """Return parallel lines as the share of each pixel that they cover, [h, w] in 0..1."""
    spacing = math.exp(rng.uniform(*np.log(SPACING)))
    widest = min(WIDTH[1], MOST_COVERED * spacing)
    width = math.exp(rng.uniform(math.log(WIDTH[0]), math.log(widest)))
    across = math.cos(angle) * x + math.sin(angle) * y
    along = math.cos(angle) * y - math.sin(angle) * x
    # The lines fan out: their spacing changes along them. Distances in px use that in the middle.
    fan = 1 + rng.uniform(-TAPER, TAPER) * along / max(x.shape)
    position = across * fan / spacing + rng.random()
    number = np.rint(position).astype(np.intp)
    first = int(number.min())
    shift = rng.uniform(0, JITTER) * rng.uniform(-1, 1, int(number.max()) - first + 1)
    distance = np.abs(position - number - shift[number - first]) * spacing
    covered: Floats = np.clip(width / 2 + 0.5 - distance, 0, min(1.0, width)).astype(np.float32)
    return covered


def _one_side(x: Floats, y: Floats, rng: np.random.Generator) -> Floats:
    """Return 1 on one side of a straight edge through the crop and 0 on the other, [h, w]."""
    angle = rng.uniform(0, 2 * math.pi)
    offset = rng.uniform(-0.3, 0.3) * max(x.shape)
    edge = math.cos(angle) * x + math.sin(angle) * y + offset
    side: Floats = np.clip(edge + 0.5, 0, 1).astype(np.float32)
    return side
