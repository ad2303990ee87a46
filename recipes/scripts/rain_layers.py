"""Extract whole rain layers from pairs of a rainy and a clean picture, for a bank of streaks.

    python recipes/scripts/rain_layers.py RainTrainH STREAKS/heavy [--least 20]

For pairs that were made by O = min(255, B + S) with a grey S (Yang et al., CVPR 2017): wherever a
channel is below 255, S = O - B. Where all three channels are 255, as in skies, O - B is only a
lower bound of S, and shows the shapes of the scene. So only the largest rectangle with hardly any
such pixels is taken from each picture. With `data.streaks: STREAKS`, half of the heavy rain then
consists of these layers.
"""

from __future__ import annotations

import argparse
import logging
import sys
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from c2fdft_cli.cli.app import report
from c2fdft_cli.data.images.picture import read_rgb8
from c2fdft_cli.data.layouts.pairs import find_pairs
from c2fdft_cli.errors import C2fdftError
from c2fdft_cli.words import many

MOST_WHITE = 0.01
"""Largest share of the rectangle's pixels that may be 255 in all channels."""
LEAST_SIDE, STEP = 96, 8
"""Smallest side of the rectangle, and the step of the search for it, in px."""
log = logging.getLogger("rain_layers")


def layer_of(rainy: NDArray[np.uint8], clean: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return S, uint8 [h, w], as the maximum of O - B over the channels.

    A channel at 255 gives a smaller difference than the others, so the maximum is exact unless all
    three are at 255.
    """
    difference = rainy.astype(np.int16) - clean
    layer: NDArray[np.uint8] = np.clip(difference.max(axis=2), 0, 255).astype(np.uint8)
    return layer


def known_part(white: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """Return rows and columns of the largest rectangle with at most MOST_WHITE white pixels.

    None if no such rectangle has sides of at least LEAST_SIDE. white: `[h, w]`, true where all
    channels are 255.
    """
    height, width = white.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = white.cumsum(0).cumsum(1)
    best, area = None, 0
    tops, lefts = (np.arange(0, side + 1, STEP) for side in (height, width))
    wide = lefts[None] - lefts[:, None]  # widths, [left edge, right edge]
    for top, bottom in combinations(tops, 2):
        band = sums[bottom, lefts] - sums[top, lefts]
        size = np.where(wide >= LEAST_SIDE, wide * (bottom - top), 0)
        size[band[None] - band[:, None] > MOST_WHITE * size] = 0
        left, right = np.unravel_index(size.argmax(), size.shape)
        if bottom - top >= LEAST_SIDE and size[left, right] > area:
            best = slice(top, bottom), slice(lefts[left], lefts[right])
            area = size[left, right]
    return best


def main() -> int:
    """Write a layer for each pair that has one; return 1 if no pair has."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--least",
        type=float,
        default=20.0,
        help="smallest mean of a layer that is kept, in 8-bit levels (default: 20)",
    )
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pairs = [pair for split in find_pairs(given.pairs).splits.values() for pair in split]
    given.out.mkdir(parents=True, exist_ok=True)
    written = 0
    for pair in pairs:
        rainy, clean = read_rgb8(pair.lq), read_rgb8(pair.gt)
        part = known_part(rainy.min(axis=2) == 255)
        if part is None:
            side = f"{LEAST_SIDE} x {LEAST_SIDE} px"
            log.info("%s: skipped, no part of %s is free of white pixels", pair.name, side)
            continue
        layer = layer_of(rainy, clean)[part]
        size = "{1} x {0} px".format(*layer.shape)
        if layer.mean() < given.least:
            log.info("%s: skipped, the mean of %s is %.1f", pair.name, size, layer.mean())
            continue
        # The pair's name includes its folder; file names alone may repeat.
        cv2.imwrite(str(given.out / f"{pair.name.replace('/', '_')}.png"), layer)
        written += 1
        log.info("%s: %s", pair.name, size)
    log.info("%s in %s", many(written, "layer"), given.out)
    return 0 if written else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except C2fdftError as error:
        sys.exit(report(error))
