"""Matches degraded files to clean ones by their names alone."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from pathlib import PurePath
from typing import NamedTuple, TypeAlias

Words: TypeAlias = tuple[str, ...]


class Matching(NamedTuple):
    """The pairs that were matched, as indices into the two lists, and why others were not.

    Args:
        pairs: (degraded, clean) indices.
        lq_reasons, gt_reasons: for the index of each unmatched file, why it was not matched.
        doubtful: (degraded, clean) indices of unmatched files that only a looser rule would
            match: their names follow another convention than those of the pairs.
    """

    pairs: list[tuple[int, int]]
    lq_reasons: dict[int, str]
    gt_reasons: dict[int, str]
    doubtful: list[tuple[int, int]]


class _Rule(NamedTuple):
    """Names match if their keys are equal or, with `by_prefix`, if the clean key is a prefix.

    Only files with equal `folder` are compared.
    """

    folder: Callable[[PurePath], str]
    key: Callable[[PurePath], Words]
    by_prefix: bool = False


class _Candidates:
    """The clean files of one key, shared by all degraded files that match this key.

    Args:
        gt: all clean files.

    Attributes:
        numbers: those of the key, as indices; at least one.
    """

    def __init__(self, gt: Sequence[PurePath]) -> None:
        self.numbers: list[int] = []
        self._gt = gt

    def closest(self, path: PurePath) -> list[int]:
        """Return the only candidate with the same name, or with the same suffix, else all."""
        if len(self.numbers) > 1:
            for same in (self._by_name.get(path.name), self._by_suffix.get(path.suffix)):
                if same is not None and len(same) == 1:
                    return same
        return self.numbers

    # Grouped once: thousands of degraded files may ask (frames of the same numbers in each clip).
    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        return self._grouped(lambda path: path.name)

    @cached_property
    def _by_suffix(self) -> dict[str, list[int]]:
        return self._grouped(lambda path: path.suffix)

    def _grouped(self, key: Callable[[PurePath], str]) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = defaultdict(list)
        for number in self.numbers:
            groups[key(self._gt[number])].append(number)
        return groups


_Found: TypeAlias = dict[int, _Candidates]
"""The candidates of each degraded file that has some, by the file's index."""


def composed(text: str) -> str:
    """Return the text with accents in composed form (NFC); macOS stores names decomposed."""
    return unicodedata.normalize("NFC", text)


def name_words(name: str) -> Words:
    """Split a file's stem at punctuation and between letters and digits, in lower case.

    >>> name_words("0001_NOISY_SRGB_010")
    ('0001', 'noisy', 'srgb', '010')
    """
    return tuple(re.findall(r"[^\W\d_]+|\d+", composed(name.casefold())))


def match_names(lq: Sequence[PurePath], gt: Sequence[PurePath], kinds: Collection[str]) -> Matching:
    """Match degraded files to clean ones; several degraded may share a clean one.

    Two names match if they have the same stem, or the same words apart from those that name a kind
    (`kinds`: "rain", "clean", ...). If no file has such a partner, a clean name may be the
    beginning of the degraded one (901_1 -> 901). Files are first matched within the same
    sub-folder; if that matches nothing, across sub-folders.

    Args:
        lq, gt: paths relative to the folders that hold them.
        kinds: words, in lower case, that distinguish degraded from clean.
    """

    def words(path: PurePath) -> Words:
        return tuple(word for word in name_words(path.stem) if word not in kinds)

    def stem(path: PurePath) -> Words:
        return (composed(path.stem),)

    def parent(path: PurePath) -> str:
        return composed(path.parent.as_posix())

    found: _Found = {}
    looser: list[_Rule] = []
    for folder in (parent, lambda _: ""):
        exact, prefix = [_Rule(folder, stem), _Rule(folder, words)], _Rule(folder, words, True)
        if found:
            looser += [*exact, prefix]
            continue
        for rule in exact:
            found |= _look_up(lq, gt, rule, found)
        looser = [prefix] if found else []
        found = found or _look_up(lq, gt, prefix, {})
    result = _decide(lq, gt, found)
    for rule in looser:
        more = _look_up(lq, gt, rule, found)
        result.doubtful.extend((i, candidates.numbers[0]) for i, candidates in more.items())
        found |= more
    return result


def _look_up(
    lq: Sequence[PurePath], gt: Sequence[PurePath], rule: _Rule, matched: _Found
) -> _Found:
    """Find candidates for each unmatched degraded file among the unmatched clean ones.

    Args:
        lq, gt: all files.
        rule: the rule that decides which names match.
        matched: the candidates that earlier rules found; their files are skipped.
    """
    used = _numbers(matched.values())
    index: dict[tuple[str, Words], _Candidates] = defaultdict(lambda: _Candidates(gt))
    for number, path in enumerate(gt):
        if number not in used:
            index[rule.folder(path), rule.key(path)].numbers.append(number)
    found: _Found = {}
    for number, path in enumerate(lq):
        if number in matched:
            continue
        whole = rule.key(path)
        # The longest prefix first: 901_1_2 belongs to 901_1 rather than to 901.
        lengths = range(len(whole) - 1, 0, -1) if rule.by_prefix else (len(whole),)
        found_by_length = (index.get((rule.folder(path), whole[:length])) for length in lengths)
        candidates = next((some for some in found_by_length if some), None)
        if candidates:
            found[number] = candidates
    return found


def _numbers(found: Iterable[_Candidates]) -> set[int]:
    """Return all clean files among candidates, which many degraded files may share."""
    return {number for candidates in set(found) for number in candidates.numbers}


def _decide(lq: Sequence[PurePath], gt: Sequence[PurePath], found: _Found) -> Matching:
    """Choose one clean file for each degraded one, or give the reason why there is none."""
    result = Matching([], {}, {}, [])
    for number, path in enumerate(lq):
        chosen = found[number].closest(path) if number in found else []
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
