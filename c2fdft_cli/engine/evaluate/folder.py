"""Pairs for weights to restore: a folder in a published layout, or clean images with noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from c2fdft_cli.data.images.picture import list_images, read_rgb8
from c2fdft_cli.data.layouts.pairs import Pair, check_sizes, find_pairs
from c2fdft_cli.engine.sampling.pairs import PairSource
from c2fdft_cli.engine.sampling.restorer import noise_generator
from c2fdft_cli.errors import DataError, UsageError

SIGMA_LIMIT = 255.0
_ADDED = -1  # draws from 0 up are the noise that the sampler starts from


@dataclass(frozen=True)
class FolderPairs(PairSource):
    """The pairs of a folder in a layout that `prepare` knows.

    Args:
        pairs: in natural order of their names.
        found_by: the layout, for people.
        note: what else people should know.
    """

    pairs: Sequence[Pair]
    found_by: str
    note: str | None = None
    unit: str = "image"

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def names(self) -> list[str]:
        """Of the pairs."""
        return [pair.name for pair in self.pairs]

    def noise_name(self, i: int) -> str:
        """The degraded file's name."""
        return self.pairs[i].lq.name

    def pair(self, i: int) -> tuple[Any, Any]:
        """uint8 `[h, w, 3]`: degraded and clean.

        Raises:
            DataError: an image that cannot be read, or sizes that differ.
        """
        check_sizes(self.pairs[i])
        return read_rgb8(self.pairs[i].lq), read_rgb8(self.pairs[i].gt)


@dataclass(frozen=True)
class NoisyImages(PairSource):
    """Clean images under white Gaussian noise, as denoisers are compared on.

    The noise is added to floating-point values, neither rounded nor clipped, and is a function of
    the seed and the image's name, the same for every sigma but for its scale.

    Args:
        images: the clean ones.
        sigma: standard deviation in 8-bit levels.
        seed: of the noise.
        note: what was done to the images, for people.
    """

    images: Sequence[Path]
    sigma: float
    seed: int = 0
    found_by: str = "their clean images"
    note: str | None = None
    unit: str = "image"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> list[str]:
        """Of the images."""
        return [path.stem for path in self.images]

    def noise_name(self, i: int) -> str:
        """The image file's name."""
        return self.images[i].name

    def pair(self, i: int) -> tuple[Any, Any]:
        """`[h, w, 3]`: float32 noisy in 8-bit levels, uint8 clean."""
        gt = read_rgb8(self.images[i])
        source = noise_generator(self.seed, self.images[i].name, _ADDED)
        noise = torch.randn(gt.shape, generator=source).numpy()
        return gt.astype(np.float32) + np.float32(self.sigma) * noise, gt


def open_folder(
    folder: Path, sigma: float | None = None, seed: int = 0
) -> FolderPairs | NoisyImages:
    """Find what there is to restore and to hold the results against.

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
        found = find_pairs(folder)
        if len(found.splits) > 1:
            hint = f"give the split to score, such as {folder / 'test'}"
            raise DataError("this set contains training images", where=folder, hint=hint)
        return FolderPairs(found.pairs, found.layout, "; ".join(found.notices) or None)
    if not 0 < sigma <= SIGMA_LIMIT:
        raise UsageError(f"--sigma must be in (0, 255], got {sigma:g}")
    images = list_images(folder)
    if not images:
        raise DataError("no images in the folder", where=folder, hint="check the path")
    name, count = Counter(path.stem for path in images).most_common(1)[0]
    if count > 1:
        raise DataError(f"two images of one name: {name}", where=folder, hint="rename one")
    note = f"Gaussian noise of sigma {sigma:g} (seed {seed}, floats, unclipped)"
    return NoisyImages(images, sigma, seed, note=note)
