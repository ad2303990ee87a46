"""Pairs for weights to restore: in a folder, in a list, or clean images with noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from c2fdft_cli.data.images.picture import image_size, read_picture, read_rgb8
from c2fdft_cli.data.layouts.listing import beyond_the_first, remarks_on_pairs, top_images
from c2fdft_cli.data.layouts.pairs import FilePair, Unpaired, check_sizes, find_pairs
from c2fdft_cli.engine.evaluate.pairing import listed_pairs
from c2fdft_cli.engine.sampling.pairs import DecodedPair, PairSource
from c2fdft_cli.engine.sampling.sampler import noise_generator
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.words import many

OTHER_WAYS = (
    "give both images of a pair the same name; for clean images, add noise with --sigma 25; "
    "for photos without targets, restore them and use --no-reference; "
    "for other pairs, list them: --pairs LIST.csv"
)
"""What to try if a folder's pairs cannot be found: some options of `prepare` are not `eval`'s."""
SIGMA_LIMIT = 255.0
_ADDED = -1  # number of the added noise's sample; samples from 0 up belong to the sampler


def _read(files: FilePair) -> DecodedPair:
    """Read a pair; depth, grey and the sampler's noise are as in `restore` of the degraded file.

    Raises:
        DataError: an image cannot be read, or the sizes differ.
    """
    check_sizes(files)
    lq, gt = read_picture(files.lq), read_picture(files.gt)
    return DecodedPair(files.name, lq.pixels, gt.pixels, files.lq.stem, lq.grey)


def _source(pairs: Sequence[FilePair], found_by: str, notices: Sequence[str]) -> PairSource:
    remarks = remarks_on_pairs([(pair.lq, pair.gt) for pair in pairs])
    note = "; ".join([*notices, *remarks]) or None
    return PairSource(
        [pair.name for pair in pairs],
        lambda i: _read(pairs[i]),
        lambda i: check_sizes(pairs[i]),
        found_by,
        note,
    )


def _with_noise(path: Path, sigma: float, seed: int) -> DecodedPair:
    """Read a clean image and add white Gaussian noise to it.

    The clean image is uint8, the noisy one float32, neither rounded nor clipped. The noise is a
    function of the seed and the image's name; sigma only scales it.
    """
    gt = read_rgb8(path)
    source = noise_generator(seed, path.stem, _ADDED)
    noise = torch.randn(gt.shape, generator=source).numpy()
    return DecodedPair(path.stem, gt.astype(np.float32) + np.float32(sigma) * noise, gt, path.stem)


def open_list(pairs_file: Path, folder: Path | None = None) -> PairSource:
    """Open all pairs (degraded, clean) of a list, in its order; for `folder` see `listed_pairs`.

    Raises:
        DataError: as `listed_pairs`.
    """
    found = listed_pairs(pairs_file, folder)
    return _source(found.pairs, found.found_by, ())


def _outside(unpaired: Sequence[Unpaired]) -> list[str]:
    """Report the images that are on neither side of the pairs: [] or one sentence."""
    others = [one.path for one in unpaired if one.side is None]
    if not others:
        return []
    return [f"on neither side of the pairs: {many(len(others), 'image')}, such as {others[0]}"]


def open_folder(folder: Path, sigma: float | None = None, seed: int = 0) -> PairSource:
    """Find the images to restore, and their targets.

    Args:
        folder: pairs in a published layout; with `sigma`, clean images.
        sigma: standard deviation of the noise to add, in 8-bit levels.
        seed: the seed of that noise.

    Raises:
        UsageError: sigma is not in (0, 255].
        DataError: no pairs (or images), a set that contains training images, or two clean images
            with the same name.
    """
    if sigma is None:
        found = find_pairs(folder, advice=OTHER_WAYS)
        if len(found.splits) > 1:
            hint = f"name the part to score, such as {folder / 'test'}"
            raise DataError("the set contains training images", where=folder, hint=hint)
        return replace(
            _source(found.pairs, found.layout, [*found.notices, *_outside(found.unpaired)]),
            without_target=[one.path for one in found.unpaired if one.side == "lq"],
            without_input=[one.path for one in found.unpaired if one.side == "gt"],
        )
    if not 0 < sigma <= SIGMA_LIMIT:
        raise UsageError(f"--sigma must be in (0, {SIGMA_LIMIT:g}], got {sigma:g}")
    images, notices = top_images(folder)
    name, count = Counter(path.stem for path in images).most_common(1)[0]
    if count > 1:
        raise DataError(f"two images have the name {name}", where=folder, hint="rename one")
    return PairSource(
        [path.stem for path in images],
        lambda i: _with_noise(images[i], sigma, seed),
        lambda i: image_size(images[i]),
        "their clean images",
        "; ".join(
            [
                f"Gaussian noise of sigma {sigma:g} (seed {seed}, floats, unclipped)",
                *notices,
                *beyond_the_first(images),
            ]
        ),
    )
