"""Finds the pairs of degraded and clean images in a folder.

`search.LAYOUTS` lists the names of the degraded and the clean side: they are the names of two
folders side by side, of a degraded folder beside loose clean files, or words in the names of files
that share a folder. Folders are searched from the top; everything may be nested.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from c2fdft_cli.data.images.picture import image_size, natural_key
from c2fdft_cli.data.layouts.listing import some_images
from c2fdft_cli.data.layouts.matching import composed, name_words
from c2fdft_cli.data.layouts.pairs_csv import read_meta_info, read_pairs_csv, said_side
from c2fdft_cli.data.layouts.search import (
    LAYOUTS,
    MASKS,
    PIX2PIX,
    SPLITS,
    SUFFIXES,
    Candidate,
    Layout,
    Tree,
    list_hint,
    plain,
    search,
    split_and_side,
)
from c2fdft_cli.errors import DataError
from c2fdft_cli.vocabulary import DEGRADATIONS, TASKS
from c2fdft_cli.words import many


@dataclass(frozen=True)
class FilePair:
    """The two files of a pair.

    Args:
        name: a unique relative name, such as GOPR0372/000047.
        lq: the degraded file, or a restored one that is to be scored; the clean file itself if
            the degradation is yet to be synthesised.
        gt: the clean file.
    """

    name: str
    lq: Path
    gt: Path


@dataclass(frozen=True)
class Unpaired:
    """An image that belongs to no pair.

    Args:
        path: the image.
        reason: why it is in no pair.
        side: "lq" or "gt" if its partner is missing; None for other images, such as a cover.
    """

    path: Path
    reason: str
    side: Literal["lq", "gt"] | None = None


@dataclass(frozen=True)
class PairSet:
    """The pairs that were found in a folder.

    Args:
        layout: where the two sides of the pairs are, as text for the user.
        task: one of `TASKS` if the layout or the folder's name shows it.
        root: the folder that was searched.
        pairs: all pairs, in natural order of their names.
        unpaired: the images that belong to no pair.
        notices: what the user should know about the choice.
        splits: the pairs of "train", and of "val" and "test" if the set has such folders.
    """

    layout: str
    task: str | None
    root: Path
    pairs: tuple[FilePair, ...]
    unpaired: tuple[Unpaired, ...]
    notices: tuple[str, ...]
    splits: dict[str, tuple[FilePair, ...]]


def find_pairs(
    root: Path, *, gamma: bool = False, pairs_file: Path | None = None, advice: str | None = None
) -> PairSet:
    """Recognise the layout of `root` and pair its files by name; no image is opened.

    Args:
        root: the folder to search.
        gamma: use blur_gamma/ if a set (GoPro) has it beside blur/.
        pairs_file: use the pairs of this CSV file (`lq,gt[,name]`) instead, or only those whose
            clean images this meta-info file of BasicSR names.
        advice: a hint for when the pairs cannot be recognised; None to suggest the options of
            `prepare`.

    Raises:
        DataError: no such folder, no images, no pairs, or more than one way to pair them.
    """
    if pairs_file is not None:
        clean = read_meta_info(pairs_file)
        if clean is not None:
            return _listed(find_pairs(root, gamma=gamma), clean, pairs_file)
        listed = [FilePair(*row) for row in read_pairs_csv(pairs_file, root)]
        return _pair_set(f"the list {pairs_file.name}", None, root, listed, (), ())
    images = some_images(root, recursive=True, hint="check the path")
    tree = Tree(root, images, advice)
    chosen, notices = search(tree, gamma=gamma)
    if not chosen:
        raise _no_pairs(tree)
    _check_complete(chosen, tree)
    pairs = [pair for candidate in chosen for pair in _named(candidate, root)]
    unpaired = _unpaired(tree, chosen)
    others = [one for one in unpaired if plain(one.path.parent.name) not in MASKS]
    if len(others) < len(unpaired):
        notices.append(f"skipped: {many(len(unpaired) - len(others), 'mask')}")
    task = chosen[0].layout.task
    return _pair_set(_describe(chosen), task, root, _unique(pairs, root), others, notices)


def find_halves(root: Path, degraded: str) -> PairSet:
    """Find pictures that each show both images of a pair side by side; `lq` and `gt` are one file.

    Args:
        root: the folder to search, with its sub-folders.
        degraded: which half is the degraded one, "left" or "right".

    Raises:
        DataError: no such folder, or no images.
    """
    images = some_images(root, recursive=True, hint="check the path")
    names = [path.relative_to(root).with_suffix("").as_posix() for path in images]
    pairs = [FilePair(name, path, path) for name, path in zip(names, images, strict=True)]
    layout = f"side by side, the {degraded} half degraded"
    return _pair_set(layout, None, root, _unique(pairs, root), (), ())


def _listed(found: PairSet, names: Sequence[str], path: Path) -> PairSet:
    """Select the pairs whose clean images a list names by the ends of their paths."""
    by_end: dict[str, list[FilePair]] = defaultdict(list)
    for pair in found.pairs:
        parts = pair.gt.relative_to(found.root).parts
        for start in range(len(parts)):
            by_end[composed("/".join(parts[start:]))].append(pair)
    chosen = [by_end.get(composed(name), []) for name in names]
    problems = [
        f"{name}: {'several clean images have this name' if some else 'not in any pair'}"
        for name, some in zip(names, chosen, strict=True)
        if len({pair.gt for pair in some}) != 1
    ]
    if problems:
        what = f"the list does not name the clean image of a pair in {many(len(problems), 'line')}"
        hint = "give their paths relative to the folder of clean images"
        raise DataError(what, where=path, hint=hint, details=problems)
    pairs = dict.fromkeys(pair for some in chosen for pair in some)
    layout = f"{found.layout}, those in {path.name}"
    return _pair_set(layout, found.task, found.root, pairs, (), found.notices)


def _check_complete(chosen: Sequence[Candidate], tree: Tree) -> None:
    """Raise a DataError for two naming conventions, or if most degraded images lack a partner."""
    pairs = [pair for one in chosen for pair in one.pairs]
    alone = [path for one in chosen for path in one.alone]
    doubtful = [pair for one in chosen for pair in one.doubtful]
    if not doubtful and len(alone) <= len(pairs):
        return
    what = f"only {len(pairs)} of {len(pairs) + len(alone)} degraded images have a clean partner"
    if doubtful:
        what += ": the names of the others follow another convention"
    reasons = [why for one in chosen for why in _relative(one.reasons, tree.root)]
    example = doubtful[0] if doubtful else (alone[0], pairs[0][1])
    by_list = f"give all pairs names of one kind, or {list_hint(tree.root, example)}"
    raise DataError(what, where=tree.root, hint=tree.advice or by_list, details=reasons)


def _relative(reasons: Mapping[Path, str], root: Path) -> list[str]:
    return [f"{path.relative_to(root).as_posix()}: {why}" for path, why in reasons.items()]


def check_sizes(
    pair: FilePair, size_of: Callable[[Path], tuple[int, int]] = image_size
) -> tuple[int, int]:
    """Return (height, width) of both images of a pair, which `size_of` returns for each of them.

    Raises:
        DataError: the sizes differ.
    """
    lq, gt = size_of(pair.lq), size_of(pair.gt)
    if lq != gt:
        what = f"the sizes differ within a pair: {_size(lq)}, but {pair.gt} is {_size(gt)}"
        raise DataError(what, where=pair.lq, hint="crop both to one size, or remove the pair")
    return lq


def half_width(path: Path, width: int) -> int:
    """Return half the width of a picture with a pair side by side; DataError if it is odd."""
    if width % 2:
        hint = "crop it, or cut the pictures apart and list the pairs: --pairs"
        raise DataError(f"a width of {width} px cannot be halved", where=path, hint=hint)
    return width // 2


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} px"


def _pair_set(
    layout: str,
    task: str | None,
    root: Path,
    pairs: Iterable[FilePair],
    unpaired: Iterable[Unpaired],
    notices: Sequence[str],
) -> PairSet:
    ordered = tuple(sorted(pairs, key=lambda pair: natural_key(pair.name)))
    splits, more = _splits(ordered)
    found = tuple(sorted(unpaired, key=lambda one: natural_key(one.path)))
    task = task or _task(root.resolve().name)
    all_notices = tuple(dict.fromkeys((*notices, *more)))
    return PairSet(layout, task, root, ordered, found, all_notices, splits)


def _task(name: str) -> str | None:
    """Return the task that a set's name indicates ("rain100l", "GoPro_train", "noisy photos")."""
    words = name_words(name)
    tasks = [
        task
        for task, traits in TASKS.items()
        if any(word.startswith(traits.words) for word in words)
    ]
    return tasks[0] if len(tasks) == 1 else None


def _splits(pairs: Sequence[FilePair]) -> tuple[dict[str, tuple[FilePair, ...]], tuple[str, ...]]:
    """Return the pairs of each split by the set's own folders, and notices.

    val/ counts only if there is a train/, and test/ only if there are other pairs; otherwise the
    pairs are training pairs.
    """
    sides = [_side(pair.name) for pair in pairs]
    counts = Counter(sides)
    if counts["test"] == len(pairs):
        return {"train": tuple(pairs)}, ()
    notices = []
    if counts["test"]:
        tests = many(counts["test"], "pair")
        notices.append(f"the test split ({tests}) is skipped; score it with eval")
    if counts["train"] and counts[""]:
        notices.append(f"trained on too: {many(counts[''], 'pair')} outside the split folders")
    own: dict[str, list[FilePair]] = {"train": [], "val": [], "test": []}
    for pair, side in zip(pairs, sides, strict=True):
        counts_as_own = side == "test" or (side == "val" and counts["train"])
        own[side if counts_as_own else "train"].append(pair)
    return {split: tuple(some) for split, some in own.items() if some}, tuple(notices)


def _side(name: str) -> str:
    """Return "train", "val" or "test" by the first folder in the name that is one, else ""."""
    return next((SPLITS[part] for part in name.casefold().split("/")[:-1] if part in SPLITS), "")


def _named(candidate: Candidate, root: Path) -> Iterable[FilePair]:
    """Name each pair by its degraded path, without suffix and the folder of the degraded side."""
    for lq, gt in candidate.pairs:
        place = candidate.parent / candidate.split
        folder = place / lq.relative_to(candidate.lq_folder).parent
        yield FilePair((folder.relative_to(root) / lq.stem).as_posix(), lq, gt)


def _unique(pairs: Sequence[FilePair], root: Path) -> list[FilePair]:
    """Make names unique: with the suffix (1.png, 1.jpg) or, if that is not enough, the path."""
    names = [pair.name for pair in pairs]
    names = told_apart(names, [pair.name + pair.lq.suffix for pair in pairs])
    names = told_apart(names, [pair.lq.relative_to(root).as_posix() for pair in pairs])
    if len(set(names)) < len(names):
        raise DataError("two pairs have the same name", where=root, hint="rename one of them")
    return [replace(pair, name=name) for pair, name in zip(pairs, names, strict=True)]


def told_apart(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the names, each one that occurs more than once replaced by its other name."""
    counts = Counter(names)
    return [other if counts[name] > 1 else name for name, other in zip(names, others, strict=True)]


def _unpaired(tree: Tree, chosen: Sequence[Candidate]) -> list[Unpaired]:
    used = {path for candidate in chosen for pair in candidate.pairs for path in pair}
    reasons = {path: why for one in chosen for path, why in one.reasons.items()}
    clean = {path for one in chosen for path in one.clean_alone}
    ignored = {path for one in chosen for folder in one.ignored for path in tree.below(folder)}
    layout = chosen[0].layout
    found = []
    for path in tree.images:
        if path in used or path in ignored:
            continue
        if path in reasons:
            found.append(Unpaired(path, reasons[path], "gt" if path in clean else "lq"))
        else:
            side = _side_of_folder(path.relative_to(tree.root), layout)
            found.append(Unpaired(path, "outside the folders of the pairs", side))
    return found


def _side_of_folder(path: Path, layout: Layout) -> Literal["lq", "gt"] | None:
    """Return the side that a folder in a path names, as if the folder of the other is missing."""
    names = {split_and_side(folder)[1] for folder in path.parents}
    if names.intersection(layout.lq):
        return "lq"
    return "gt" if names.intersection(layout.gt) else None


def _describe(chosen: Sequence[Candidate]) -> str:
    labels = ", ".join(dict.fromkeys(candidate.label for candidate in chosen))
    places = f" in {len(chosen)} folders" if len(chosen) > 1 else ""
    published = chosen[0].layout.published
    return f"{labels}{places}" + (f" (laid out as {published})" if published else "")


def _no_pairs(tree: Tree) -> DataError:
    """Make the error for images without pairs: what was searched for and found, what to try."""
    known = (*LAYOUTS, PIX2PIX)
    looked = [f"looked for: {' or '.join(one.lq)} with {' or '.join(one.gt)}" for one in known]
    endings = [word for one in SUFFIXES for word in (*one.lq, *one.gt)]
    looked.append(f"looked for: 1 with 1_{' or 1_'.join(endings)}, in one folder")
    counts = Counter(path.parent for path in tree.images)
    there = [
        f"found: {many(count, 'image')} in {folder.relative_to(tree.root).as_posix()}/, e.g. "
        f"{tree.files[folder][0].name}"
        for folder, count in counts.most_common(8)
    ]
    what = "no pairs of degraded and clean images were found"
    return DataError(what, where=tree.root, hint=_hint(tree), details=[*there, *looked])


def _hint(tree: Tree) -> str:
    root = tree.root.resolve()
    if _has_partner(root):
        return f"this is one side of the pairs; give the folder above it, {root.parent}"
    if tree.advice is not None:
        return tree.advice
    folders = list(dict.fromkeys(path.parent for path in tree.images))
    first = [tree.files[folder][0] for folder in folders[:2]]
    # in one folder a file that is named otherwise, as the two sides of a set are, if there is one
    others = (path for path in tree.images if _pattern(path) != _pattern(tree.images[0]))
    example = [*first, *islice(chain(others, tree.images[1:2]), 1)][:2]
    # the degraded image first, if the names show which one it is
    example.sort(
        key=lambda path: ("lq", None, "gt").index(said_side(str(path.relative_to(tree.root))))
    )
    by_list = list_hint(tree.root, example)
    if any(tree.mentions(one.lq) and tree.mentions(one.gt) for one in LAYOUTS):
        return f"their names do not match; {by_list}"
    kinds = "|".join(DEGRADATIONS)
    clean = f"if these are clean images, make the degraded ones: --synthesize {kinds}"
    ways = [clean, "if each shows a pair side by side: --side-by-side left"]
    if len(tree.images) > 1:
        ways.append(f"if they are pairs, {by_list}")
    return "; ".join(ways)


def _pattern(path: Path) -> list[str]:
    """Return what a file's name has in common with those of the same series: all but the number."""
    return [word for word in name_words(path.stem) if not word.isdigit()]


def _has_partner(root: Path) -> bool:
    """Whether this folder has a sibling that is the other side of a layout."""
    beside: set[tuple[str, str]] = set()
    with suppress(OSError):
        beside = {split_and_side(path) for path in root.parent.iterdir() if path.is_dir()}
    split, own = split_and_side(root)
    return any(
        own in side and any((split, name) in beside for name in other)
        for one in LAYOUTS
        for side, other in ((one.lq, one.gt), (one.gt, one.lq))
    )
