"""Pairs for weights to restore: a folder in a published layout, or clean images with noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from c2fdft_cli.data.images.picture import read_rgb8
from c2fdft_cli.data.layouts.listing import some_images
from c2fdft_cli.data.layouts.pairs import FilePair, check_sizes, find_pairs
from c2fdft_cli.engine.sampling.pairs import DecodedPair
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


@dataclass(frozen=True)
class FolderPairs:
    """The pairs of a folder in a layout that `prepare` knows.

    Args:
        pairs: in natural order of their names.
        found_by: the layout, for people.
        note: what else people should know.
    """

    pairs: Sequence[FilePair]
    found_by: str
    note: str | None = None
    unit: str = "image"

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def names(self) -> list[str]:
        """Of the pairs."""
        return [pair.name for pair in self.pairs]

    def pair(self, i: int) -> DecodedPair:
        """Pair i, uint8; the noise is that of `restore` for the degraded file.

        Raises:
            DataError: an image that cannot be read, or sizes that differ.
        """
        files = self.pairs[i]
        check_sizes(files)
        return DecodedPair(files.name, read_rgb8(files.lq), read_rgb8(files.gt), files.lq.stem)


@dataclass(frozen=True)
class NoisyImages:
    """Clean images under white Gaussian noise, as denoisers are compared on.

    The noise is added to floating-point values, neither rounded nor clipped, and is a function of
    the seed and the image's name, the same for every sigma but for its scale.

    Args:
        images: the clean ones.
        sigma: standard deviation in 8-bit levels.
        seed: of the noise.
    """

    images: Sequence[Path]
    sigma: float
    seed: int = 0
    found_by: str = "their clean images"
    unit: str = "image"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def note(self) -> str:
        """What was done to the images, for people."""
        return f"Gaussian noise of sigma {self.sigma:g} (seed {self.seed}, floats, unclipped)"

    @property
    def names(self) -> list[str]:
        """Of the images."""
        return [path.stem for path in self.images]

    def pair(self, i: int) -> DecodedPair:
        """Pair i: float32 noisy, uint8 clean."""
        path = self.images[i]
        gt = read_rgb8(path)
        source = noise_generator(self.seed, path.stem, _ADDED)
        noise = torch.randn(gt.shape, generator=source).numpy()
        lq = gt.astype(np.float32) + np.float32(self.sigma) * noise
        return DecodedPair(path.stem, lq, gt, path.stem)


def open_folder(
    folder: Path, sigma: float | None = None, seed: int = 0
) -> FolderPairs | NoisyImages:
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
        return FolderPairs(found.pairs, found.layout, "; ".join(found.notices) or None)
    if not 0 < sigma <= SIGMA_LIMIT:
        raise UsageError(f"--sigma must be in (0, {SIGMA_LIMIT:g}], got {sigma:g}")
    images = some_images(folder)
    name, count = Counter(path.stem for path in images).most_common(1)[0]
    if count > 1:
        raise DataError(f"two images have the name {name}", where=folder, hint="rename one")
    return NoisyImages(images, sigma, seed)
