"""Take the rain out of pairs of a rainy and a clean picture: whole layers for a bank of streaks.

    python recipes/scripts/rain_layers.py RainTrainH STREAKS/heavy [--least 20]

For pairs that were made by O = min(255, B + S) with a grey S (Yang et al., CVPR 2017): wherever a
channel is below 255, S = O - B there. Where all three are white, as in skies, S is known from below
only, and the shapes of the scene would stand in it: of each picture the largest rectangle with
hardly such pixels is taken. `data.streaks: STREAKS` then has these layers in half of its heavy
rain.
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

from c2fdft_cli.data.images.picture import read_rgb8
from c2fdft_cli.data.layouts.pairs import find_pairs
from c2fdft_cli.vocabulary import many

MOST_WHITE = 0.01
"""Share of pixels that may be white in all channels."""
LEAST_SIDE, STEP = 96, 8
"""Of the rectangle, and how finely it is searched for, in px."""
log = logging.getLogger("rain_layers")


def layer_of(rainy: NDArray[np.uint8], clean: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """S, uint8 [h, w]: the largest of O - B over the channels, of which a white one shows less."""
    difference = rainy.astype(np.int16) - clean
    return np.clip(difference.max(axis=2), 0, 255).astype(np.uint8)


def known_part(white: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """Rows and columns of the largest rectangle with hardly a white pixel; None where none is.

    white: `[h, w]`, whether all channels are.
    """
    height, width = white.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = white.cumsum(0).cumsum(1)
    best, area = None, 0
    tops, lefts = (np.arange(0, side + 1, STEP) for side in (height, width))
    wide = lefts[None] - lefts[:, None]  # from a left side, to a right one
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
    """Write a layer for each pair; 1 where none was good enough."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--least", type=float, default=20.0, help="least mean of a layer")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given.out.mkdir(parents=True, exist_ok=True)
    written = 0
    for pair in (one for split in find_pairs(given.pairs).splits.values() for one in split):
        rainy, clean = read_rgb8(pair.lq), read_rgb8(pair.gt)
        layer, part = layer_of(rainy, clean), known_part(rainy.min(axis=2) == 255)
        layer = layer[:0] if part is None else layer[part]
        keep = layer.size > 0 and layer.mean() >= given.least
        if keep:
            # the pair's name, as files of several folders may share theirs
            cv2.imwrite(str(given.out / f"{pair.name.replace('/', '_')}.png"), layer)
            written += 1
        left_out = "" if keep else ", left out"
        log.info("%s: %d x %d px%s", pair.name, *layer.shape[::-1], left_out)
    log.info("%s in %s", many(written, "layer"), given.out)
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
