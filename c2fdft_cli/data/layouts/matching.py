"""Which clean file belongs to which degraded one, by their names alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import PurePath
from typing import NamedTuple

Words = tuple[str, ...]
Key = tuple[object, ...]


class Matching(NamedTuple):
    """Indices into the two lists that were matched, and why the others were not."""

    pairs: list[tuple[int, int]]
    lq_reasons: dict[int, str]
    gt_reasons: dict[int, str]


def name_words(name: str) -> Words:
    """A file's stem cut at every sign and between letters and digits, in lower case.

    >>> name_words("0001_NOISY_SRGB_010")
    ('0001', 'noisy', 'srgb', '010')
    """
    return tuple(re.findall(r"[^\W\d_]+|\d+", name.casefold()))


def match_names(lq: Sequence[PurePath], gt: Sequence[PurePath], kinds: Collection[str]) -> Matching:
    """Match degraded files to clean ones; several degraded may share a clean one.

    The first of these rules that matches anything is used for all: the same stem; the same words
    once those that name a kind (`kinds`: "rain", "clean", ...) are gone; a clean name that begins
    the degraded one (901_1 -> 901). First within the same sub-folder, then in any.

    Args:
        lq, gt: paths relative to the folders that hold them.
        kinds: words, in lower case, that tell degraded from clean.
    """

    def words(path: PurePath) -> Key:
        return tuple(word for word in name_words(path.stem) if word not in kinds)

    found: list[list[int]] = [[] for _ in lq]
    for folder in (lambda path: path.parent, lambda _: None):
        rules: tuple[tuple[Callable[[PurePath], Key], bool], ...] = (
            (lambda path: (path.stem,), False),
            (words, False),
            (words, True),
        )
        for key, by_prefix in rules:
            found = _look_up(lq, gt, folder, key, by_prefix)
            if any(found):
                return _decide(lq, gt, found)
    return _decide(lq, gt, found)


def _look_up(
    lq: Sequence[PurePath],
    gt: Sequence[PurePath],
    folder: Callable[[PurePath], PurePath | None],
    key: Callable[[PurePath], Key],
    by_prefix: bool,
) -> list[list[int]]:
    """For each degraded file the clean ones with its key, or with the longest start of it."""
    index: dict[tuple[PurePath | None, Key], list[int]] = defaultdict(list)
    for number, path in enumerate(gt):
        index[folder(path), key(path)].append(number)
    found = []
    for path in lq:
        whole = key(path)
        lengths = range(len(whole) - 1, 0, -1) if by_prefix else (len(whole),)
        tries = (index.get((folder(path), whole[:length])) for length in lengths)
        found.append(next((candidates for candidates in tries if candidates), []))
    return found


def _decide(
    lq: Sequence[PurePath], gt: Sequence[PurePath], found: Sequence[Sequence[int]]
) -> Matching:
    """One clean file each; among several the one with the same suffix, or none."""
    result = Matching([], {}, {})
    for number, candidates in enumerate(found):
        same = [one for one in candidates if gt[one].suffix == lq[number].suffix]
        chosen = same if len(same) == 1 else candidates
        if len(chosen) == 1:
            result.pairs.append((number, chosen[0]))
        elif chosen:
            names = ", ".join(str(gt[one]) for one in chosen[:3])
            result.lq_reasons[number] = f"several clean images could be its partner: {names}"
        else:
            result.lq_reasons[number] = "no clean image has a matching name"
    used = {clean for _, clean in result.pairs}
    for number in set(range(len(gt))) - used:
        result.gt_reasons[number] = "no degraded image has a matching name"
    return result
