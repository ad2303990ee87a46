"""Chooses the validation pairs: a share of all pairs, by a hash of their names."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from c2fdft_cli.data.layouts.pairs import FilePair
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.files.failures import read_error
from c2fdft_cli.files.reading import sha256_of
from c2fdft_cli.words import many

VAL_SHARE = 0.05
VAL_MOST = 50


def val_size(count: int, wanted: int | None) -> int:
    """Return how many of `count` pairs to use for validation.

    Args:
        count: number of pairs.
        wanted: number that the user requested, or None for 5 % (at least 1, at most 50).

    Raises:
        UsageError: `wanted` is negative or leaves nothing to train on.
    """
    if wanted is None:
        return min(max(1, round(VAL_SHARE * count)), VAL_MOST)
    if wanted < 0 or (wanted and wanted >= count):
        raise UsageError(
            f"{wanted} of {many(count, 'pair')} cannot be used for validation",
            hint="leave some for training",
        )
    return wanted


def choose_val(
    pairs: Sequence[FilePair], size: int, contents: Mapping[Path, Hashable]
) -> tuple[set[str], list[str]]:
    """Choose about `size` validation pairs; return their names and notices.

    Pairs that share an image or a folder (a scene, a video) stay in the same split. If all such
    groups have more than `size` pairs, only pairs that share an image are kept together. Whole
    groups are taken in the order of a hash of their names, those that fit, so that adding images
    moves few others to another split.

    Args:
        pairs: all pairs.
        size: number of pairs to choose, from `val_size`.
        contents: a key for the content of each file, see `content_keys`.
    """
    if not size:
        return set(), []
    scenes = _take(groups_of(pairs, contents, scenes=True), size)
    if scenes:
        return scenes, []
    groups = groups_of(pairs, contents, scenes=False)
    if len(groups) < 2:
        what = "one pair cannot be split" if len(pairs) == 1 else "all pairs share one image"
        what += ", so none is left for validation"
        return set(), [f"{what}; name a folder of other pairs with --val"]
    notices = []
    if any("/" in pair.name for pair in pairs):
        what = "train and val contain images of the same folder"
        notices.append(f"{what}; to avoid this, name a folder of other pairs with --val")
    return _take(groups, size) or min(groups, key=len), notices


def _take(groups: Sequence[set[str]], wanted: int) -> set[str]:
    """Take as many whole groups as fit into `wanted` pairs, but never all groups."""
    ordered = sorted(groups, key=lambda names: _order(min(names)))
    taken: set[str] = set()
    count = 0
    for names in ordered:
        if len(taken) + len(names) <= wanted and count + 1 < len(groups):
            taken |= names
            count += 1
    return taken


def groups_of(
    pairs: Sequence[FilePair], contents: Mapping[Path, Hashable], *, scenes: bool
) -> list[set[str]]:
    """Group the names of pairs that share an image, directly or through other pairs.

    Args:
        pairs: all pairs.
        contents: a key for the content of each file.
        scenes: also group pairs whose names have the same folder.
    """
    parent: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = parent[above]
            key = above
        return key

    for pair in pairs:
        shared: list[Hashable] = [contents[pair.lq], contents[pair.gt]]
        if scenes and "/" in pair.name:
            shared.append(("folder", pair.name.rpartition("/")[0]))
        for key in shared:
            parent[root(key)] = root(("pair", pair.name))
    groups: dict[Hashable, set[str]] = defaultdict(set)
    for pair in pairs:
        groups[root(("pair", pair.name))].add(pair.name)
    return list(groups.values())


def content_keys(
    pairs: Sequence[FilePair], pixels_key: Callable[[Path], Hashable]
) -> dict[Path, Hashable]:
    """Return a key per file: equal for clean images with equal pixels, else for equal bytes.

    Published sets such as Rain100L store the same clean image in files that differ, so `pixels_key`
    gives a key for a clean file's pixels: training and validation must not share a clean image.
    """
    keys = {pair.gt: pixels_key(pair.gt) for pair in pairs}
    return keys | _byte_keys({pair.lq for pair in pairs} - keys.keys())


def _byte_keys(paths: Iterable[Path]) -> dict[Path, Hashable]:
    """Return a key per file, equal for files with equal bytes; reads only files of equal size."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        by_size[_size(path)].append(path)
    return {
        path: (size, "" if len(alike) == 1 else sha256_of(path))
        for size, alike in by_size.items()
        for path in alike
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise read_error(error, path) from error


def _order(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


class SplitGuard:
    """Detects an image that is in both train and val, by the SHA-256 of its pixels.

    The validation pairs must be added first.

    Attributes:
        equal: number of pairs so far whose degraded image equals the clean one.
    """

    def __init__(self) -> None:
        self.equal = 0
        self._val: dict[tuple[str, str], str] = {}

    @property
    def notices(self) -> list[str]:
        """What the user should know about the pairs that were added."""
        same = f"in {many(self.equal, 'pair')} the degraded image equals the clean one"
        return [same] if self.equal else []

    def add(self, split: str, name: str, sha256_lq: str | None, sha256_gt: str) -> None:
        """Add the digests of a pair; DataError if a training image is a validation image too."""
        self.equal += sha256_lq == sha256_gt
        for kind, digest in (("lq", sha256_lq), ("gt", sha256_gt)):
            if digest is None:
                continue
            if split == "val":
                self._val.setdefault((kind, digest), name)
            elif (kind, digest) in self._val:
                other = self._val[kind, digest]
                raise DataError(
                    f"the same {kind} image is in train (pair {name}) and in val (pair {other})",
                    hint="remove one, or name a folder of other pairs with --val",
                )
