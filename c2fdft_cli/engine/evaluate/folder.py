"""Pairs for weights to restore: a folder in a published layout, or clean images with noise."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from c2fdft_cli.data.images.picture import read_rgb8
from c2fdft_cli.data.layouts.listing import some_images
from c2fdft_cli.data.layouts.pairs import FilePair, check_sizes, find_pairs
from c2fdft_cli.engine.sampling.pairs import DecodedPair, PairSource
from c2fdft_cli.engine.sampling.restorer import noise_generator
from c2fdft_cli.errors import DataError, UsageError

OTHER_WAYS = (
    "give both images of a pair one name; to clean images add noise: --sigma 25; "
    "score photos without targets by --no-reference, once they are restored; "
    "list other pairs for `c2fdft prepare --pairs`, and score its shards by --data"
)
"""What to try where a folder's pairs cannot be told: `prepare` has options that `eval` has not."""
SIGMA_LIMIT = 255.0
_ADDED = -1  # draws from 0 up are the noise that the sampler starts from


def _read(files: FilePair) -> DecodedPair:
    """uint8; the noise that sampling starts from is that of `restore` for the degraded file.

    Raises:
        DataError: an image that cannot be read, or sizes that differ.
    """
    check_sizes(files)
    return DecodedPair(files.name, read_rgb8(files.lq), read_rgb8(files.gt), files.lq.stem)


def _with_noise(path: Path, sigma: float, seed: int) -> DecodedPair:
    """A clean image, uint8, and under white Gaussian noise, float32, neither rounded nor clipped.

    The noise is a function of the seed and the image's name, the same for every sigma but for its
    scale.
    """
    gt = read_rgb8(path)
    source = noise_generator(seed, path.stem, _ADDED)
    noise = torch.randn(gt.shape, generator=source).numpy()
    return DecodedPair(path.stem, gt.astype(np.float32) + np.float32(sigma) * noise, gt, path.stem)


def open_folder(folder: Path, sigma: float | None = None, seed: int = 0) -> PairSource:
    """Find what there is to restore and to compare the results with.

    Args:
        folder: pairs in a published layout; with `sigma`, clean images.
        sigma: of the noise to add, in 8-bit levels.
        seed: of that noise.

    Raises:
        UsageError: a sigma outside of 0 to 255.
        DataError: no pairs (or images), a set that has training images in it, or two clean images
            of one name.
    """
    if sigma is None:
        found = find_pairs(folder, advice=OTHER_WAYS)
        if len(found.splits) > 1:
            hint = f"name the part to score, such as {folder / 'test'}"
            raise DataError("the set has training images in it", where=folder, hint=hint)
        names, note = [pair.name for pair in found.pairs], "; ".join(found.notices) or None
        return PairSource(names, lambda i: _read(found.pairs[i]), found.layout, note)
    if not 0 < sigma <= SIGMA_LIMIT:
        raise UsageError(f"--sigma must be in (0, {SIGMA_LIMIT:g}], got {sigma:g}")
    images = some_images(folder)
    name, count = Counter(path.stem for path in images).most_common(1)[0]
    if count > 1:
        raise DataError(f"two images have the name {name}", where=folder, hint="rename one")
    return PairSource(
        [path.stem for path in images],
        lambda i: _with_noise(images[i], sigma, seed),
        "their clean images",
        f"Gaussian noise of sigma {sigma:g} (seed {seed}, floats, unclipped)",
    )
