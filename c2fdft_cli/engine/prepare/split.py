"""Which pairs validate: a share of them, chosen by a hash of their names."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from c2fdft_cli.data.layouts.pairs import FilePair
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.vocabulary import many

VAL_SHARE = 0.05
VAL_MOST = 50


def val_size(count: int, wanted: int | None) -> int:
    """How many of `count` pairs are to validate.

    Args:
        count: number of pairs.
        wanted: how many the user wants, or None for 5 % (at least 1, at most 50).

    Raises:
        UsageError: `wanted` is negative or leaves nothing to train on.
    """
    if wanted is None:
        return min(max(1, round(VAL_SHARE * count)), VAL_MOST)
    if wanted < 0 or (wanted and wanted >= count):
        raise UsageError(
            f"{wanted} of {many(count, 'pair')} cannot be used to validate on",
            hint="leave some to train on",
        )
    return wanted


def choose_val(
    pairs: Sequence[FilePair], size: int, contents: Mapping[Path, Hashable]
) -> tuple[set[str], list[str]]:
    """Names of about `size` pairs that validate, and notices.

    Pairs that share an image, or a folder (a scene, a video), stay on one side; where all folders
    are larger than the share, only those that share an image do. Whole groups are taken in the
    order of a hash of their names while they fit, so that adding images moves few others.

    Args:
        pairs: all pairs.
        size: how many, from `val_size`.
        contents: of each file, see `content_keys`.
    """
    if not size:
        return set(), []
    scenes = _take(groups_of(pairs, contents, scenes=True), size)
    if scenes:
        return scenes, []
    groups = groups_of(pairs, contents, scenes=False)
    if len(groups) < 2:
        what = "all pairs share one image: no pair is left to validate on"
        return set(), [f"{what}; name a folder of others with --val"]
    notices = []
    if any("/" in pair.name for pair in pairs):
        what = "images of one folder are on both sides"
        notices.append(f"{what}; name a folder of others with --val")
    return _take(groups, size) or min(groups, key=len), notices


def _take(groups: Sequence[set[str]], wanted: int) -> set[str]:
    """As many whole groups as fit; never all of them."""
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
    """Pairs that share an image (or a folder of their names), directly or through others."""
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
    """A key per file: equal for clean images with equal pixels, and for files with equal bytes.

    Published sets hold the same clean image in files that differ (Rain100L does), so `pixels_key`
    names a clean file by its pixels; that is what training and validation must not share.
    """
    keys = {pair.gt: pixels_key(pair.gt) for pair in pairs}
    return keys | _byte_keys({pair.lq for pair in pairs} - keys.keys())


def _byte_keys(paths: Iterable[Path]) -> dict[Path, Hashable]:
    """A key per file, equal for files with equal bytes; only files of equal size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        by_size[_size(path)].append(path)
    return {
        path: (size, "" if len(alike) == 1 else _sha256(path))
        for size, alike in by_size.items()
        for path in alike
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError("cannot read the file", where=path, hint=error.strerror) from error


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError("cannot read the file", where=path, hint=error.strerror) from error


def _order(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


class SplitGuard:
    """Notices an image that is in train and in val, by the SHA-256 of its pixels.

    Show it the pairs to validate on first.

    Attributes:
        equal: how many pairs so far have a degraded image that is the clean one.
    """

    def __init__(self) -> None:
        self.equal = 0
        self._val: dict[tuple[str, str], str] = {}

    @property
    def notices(self) -> list[str]:
        """What the user may want to know of the pairs seen."""
        same = f"in {many(self.equal, 'pair')} the degraded image equals the clean one"
        return [same] if self.equal else []

    def add(self, split: str, name: str, sha256_lq: str | None, sha256_gt: str) -> None:
        """DataError where a training image is one of those to validate on."""
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
                    hint="remove one, or name a folder of others with --val",
                )
