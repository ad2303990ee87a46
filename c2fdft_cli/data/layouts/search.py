"""A table of published layouts, and the search for them in a tree of images."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from c2fdft_cli.data.layouts.matching import composed, match_names, name_words
from c2fdft_cli.errors import DataError
from c2fdft_cli.files.paths import real_path
from c2fdft_cli.vocabulary import Task
from c2fdft_cli.words import many

_GAMMA = "blurgamma"
_CLEAN = ("gt", "groundtruth", "clean", "target")
# The first word that fits is used, so a longer word precedes the one that it begins with.
SPLITS = {
    "training": "train", "train": "train", "validation": "val", "valid": "val", "val": "val",
    "testing": "test", "test": "test",
}  # fmt: skip
"""The splits that names of folders state."""
MASKS = frozenset({"mask", "masks"})
"""Names of folders, as in Snow100K, whose images belong to neither side."""


@dataclass(frozen=True)
class Layout:
    """The names of the two sides, in lower case without punctuation (see `plain`).

    Args:
        published: the published data sets with this layout.
        lq, gt: names of the degraded and of the clean side.
        task: one of `TASKS` if the names show it.
        as_words: whether the names also count as words in file names, instead of folders.
    """

    published: str
    lq: tuple[str, ...]
    gt: tuple[str, ...]
    task: Task | None = None
    as_words: bool = True


LAYOUTS = (
    Layout(
        "Rain13K, Rain100, Test100, Test2800",
        ("input", "inputs", "inputcrops"),
        ("targets", "targetcrops", *_CLEAN),
    ),
    Layout("", ("lq", "lowquality"), ("hq", "highquality", *_CLEAN)),
    Layout("", ("degraded",), _CLEAN),
    Layout("SIDD", ("noisy",), _CLEAN, "denoise"),
    Layout("RESIDE", ("hazy", "haze"), ("clear", *_CLEAN)),
    Layout("Snow100K, HSTS", ("synthetic", "snow", "snowy"), ("original", *_CLEAN)),
    Layout(
        "GoPro, RealBlur, REDS", ("blur", "blurred", "blurry", _GAMMA), ("sharp", *_CLEAN), "deblur"
    ),
    Layout(
        "Rain1400, the first Rain100L, SPA-data",
        ("rainy", "rain", "rainyimage", "rainyimages"),
        ("norain", *_CLEAN),
        "derain",
    ),
    Layout("SPA-data", ("realworld",), ("realworldgt",), "derain", as_words=False),
    Layout("Outdoor-Rain", ("in",), ("gt",), as_words=False),
    Layout("RainDrop", ("data",), ("gt",)),
    Layout("PolyU", ("real",), ("mean",), "denoise"),
)
PIX2PIX = Layout("pix2pix", ("a",), ("b",), as_words=False)
KINDS = frozenset(name for one in LAYOUTS if one.as_words for name in (*one.lq, *one.gt))
"""Words in a file name that state the kind of an image (degraded or clean), not its identity."""
SUFFIXES = (
    Layout("", (), (*_CLEAN, "norain", "sharp")),
    Layout("", (), ("enhancednr",), "denoise"),
    Layout("", ("noisy",), (), "denoise"),
    Layout("", ("rainy", "rain"), (), "derain"),
    Layout("", ("blur", "blurred", "blurry"), (), "deblur"),
    Layout("", ("hazy", "degraded", "lq"), ()),
)
"""Endings of one file's name in a pair whose other file has the same name without the ending.

Lightroom writes such names.
"""


@dataclass(frozen=True)
class Candidate:
    """One way to pair the files at one place.

    Args:
        layout: the row of the table.
        parent: the folder in which it was found.
        lq_folder: the folder of the degraded files (`parent` if both sides share it).
        folders: the folders whose images it accounts for.
        label: its description for the user.
        pairs: (degraded, clean).
        reasons: for each other file in those folders, why it is in no pair.
        alone, clean_alone: the degraded and the clean files without a partner.
        doubtful: (degraded, clean) that only another naming convention would match.
        ignored: folders that are skipped on purpose.
        split: "train", "val", ... if the names of its folders begin with it.
    """

    layout: Layout
    parent: Path
    lq_folder: Path
    folders: tuple[Path, ...]
    label: str
    pairs: tuple[tuple[Path, Path], ...]
    reasons: dict[Path, str]
    alone: tuple[Path, ...] = ()
    clean_alone: tuple[Path, ...] = ()
    doubtful: tuple[tuple[Path, Path], ...] = ()
    ignored: tuple[Path, ...] = ()
    split: str = ""

    @property
    def is_gamma(self) -> bool:
        """Whether its degraded side is GoPro's blur_gamma/."""
        return split_and_side(self.lq_folder)[1] == _GAMMA


class Tree:
    """The images below a folder, by folder.

    Args:
        root: the folder.
        images: every image below it, in natural order.
        advice: a hint for when the pairs cannot be recognised; None to suggest the options of
            `prepare`.
    """

    def __init__(self, root: Path, images: Sequence[Path], advice: str | None = None) -> None:
        self.root = root
        self.advice = advice
        self.images = images
        self.files: dict[Path, list[Path]] = defaultdict(list)
        self.folders: dict[Path, list[Path]] = defaultdict(list)
        self._below: dict[Path, list[Path]] = defaultdict(list)
        for path in images:
            self.files[path.parent].append(path)
            for folder in path.parents:
                if folder not in self._below and folder != root:
                    self.folders[folder.parent].append(folder)
                self._below[folder].append(path)
                if folder == root:
                    break

    def below(self, folder: Path) -> Sequence[Path]:
        """Return the images in a folder and in all folders below it."""
        return self._below.get(folder, ())

    def mentions(self, names: Collection[str]) -> bool:
        """Whether a folder, or a word in a file's name, is one of `names`."""
        folders = (folder for folder in self._below if folder != self.root)
        if any(split_and_side(folder)[1] in names for folder in folders):
            return True
        return any(set(name_words(path.stem)) & set(names) for path in self.images)


def plain(name: str) -> str:
    """Reduce a name to lower-case letters and digits: "rainyimage" for "Rainy_Image"."""
    return re.sub(r"[\W_]", "", composed(name.casefold()))


def split_and_side(folder: Path) -> tuple[str, str]:
    """Split a folder's name: ("train", "blur") for "train_blur", ("", "gt") for "GT"."""
    name = plain(folder.name)
    split = next((one for one in SPLITS if name.startswith(one)), "")
    return split, name.removeprefix(split)


def search(tree: Tree, *, gamma: bool = False) -> tuple[list[Candidate], list[str]]:
    """Find the only way to pair the images of a tree, place by place, and notices about it.

    Sides named A and B, and pairs whose files differ by a word at the end of one name, count only
    if nothing else is found, because such names are used for other purposes too.

    Raises:
        DataError: more than one way, or `gamma` without a blur_gamma/ folder.
    """
    notices: list[str] = []
    chosen = _search(tree, gamma, _named_sides) or _search(tree, gamma, _unmarked_sides)
    if len({candidate.layout for candidate in chosen}) > 1:
        raise _ambiguous(chosen, tree)
    if gamma:
        _require_gamma(chosen)
    if any(candidate.ignored for candidate in chosen):
        taken, other = ("blur_gamma/", "blur/") if gamma else ("blur/", "blur_gamma/")
        notices.append(f"the set has blur/ and blur_gamma/: {taken} is used, {other} is skipped")
    if not gamma:
        notices += _gamma_alone(chosen, tree)
    if any(candidate.layout is PIX2PIX for candidate in chosen):
        notices.append("A is taken as the degraded side and B as the clean one")
    return chosen, notices


def _require_gamma(chosen: Sequence[Candidate]) -> None:
    """Raise a DataError if the pairs of any place are not those of a blur_gamma/ folder."""
    plain_one = next((candidate for candidate in chosen if not candidate.is_gamma), None)
    if plain_one is not None:
        hint = f"omit --gamma: the pairs there are {plain_one.label}"
        raise DataError("no blur_gamma/ folder", where=plain_one.parent, hint=hint)


def _gamma_alone(chosen: Sequence[Candidate], tree: Tree) -> list[str]:
    """Return a notice if there are places that have blur_gamma/ but no blur/."""
    places = [one.parent.relative_to(tree.root).as_posix() for one in chosen if one.is_gamma]
    if not places:
        return []
    if len(places) == len(chosen):
        return ["the set has no blur/: blur_gamma/ is used"]
    return [f"{many(len(places), 'folder')} without blur/, where blur_gamma/ is used: {places[0]}"]


def _search(
    tree: Tree, gamma: bool, ways_at: Callable[[Tree, Path], Iterator[Candidate]]
) -> list[Candidate]:
    """Search from the top down; the folders of a candidate are not searched again."""
    chosen: list[Candidate] = []
    open_folders = [tree.root]
    while open_folders:
        folder = open_folders.pop()
        ways = [way for way in ways_at(tree, folder) if way.pairs]
        found = _choose(_without_other_blur(ways, gamma), tree)
        chosen += found
        closed = {one for way in found for one in (*way.folders, *way.ignored)}
        open_folders += [one for one in reversed(tree.folders[folder]) if one not in closed]
    return chosen


def _without_other_blur(ways: list[Candidate], gamma: bool) -> list[Candidate]:
    """Where GoPro's blur/ and blur_gamma/ are beside each other, keep the requested one."""
    kept = []
    for way in ways:
        beside = [one for one in ways if one.split == way.split and one.is_gamma != way.is_gamma]
        if not beside:
            kept.append(way)
        elif way.is_gamma == gamma:
            kept.append(replace(way, ignored=tuple(one.lq_folder for one in beside)))
    return kept


def _choose(ways: list[Candidate], tree: Tree) -> list[Candidate]:
    """Return the only way to pair the images at one place, or one way for each of its splits."""
    by_split: dict[str, list[Candidate]] = defaultdict(list)
    for way in ways:
        by_split[way.split].append(way)
    for some in by_split.values():
        distinct = {frozenset((real_path(a), real_path(b)) for a, b in way.pairs) for way in some}
        if len(distinct) > 1:
            raise _ambiguous(some, tree)
    chosen = [some[0] for some in by_split.values()]
    return chosen if len(chosen) > 1 else [replace(way, split="") for way in chosen]


def _ambiguous(ways: Sequence[Candidate], tree: Tree) -> DataError:
    listed = [
        f"{way.label} in {way.parent.relative_to(tree.root).as_posix()}/: "
        f"{many(len(way.pairs), 'pair')}"
        for way in ways
    ]
    labels = list(dict.fromkeys(way.label for way in ways))
    what = f"more than one way to pair the images: {'; '.join(labels[:4])}"
    by_list = f"give a folder with only one of them, or {list_hint(tree.root, ways[0].pairs[0])}"
    return DataError(what, where=tree.root, hint=tree.advice or by_list, details=listed)


def list_hint(root: Path, example: Sequence[Path]) -> str:
    """Return a hint on how to list the pairs in a CSV file, with a line for two example files."""
    line = io.StringIO()
    cells = [path.relative_to(root).as_posix() for path in example]
    csv.writer(line, lineterminator="").writerow(cells)
    return f"list the pairs as degraded,clean in a CSV file (--pairs FILE.csv): {line.getvalue()}"


def _named_sides(tree: Tree, parent: Path) -> Iterator[Candidate]:
    """Yield every way to pair the images at one place by folder names or words in file names.

    Some of these ways may have no pairs.
    """
    files = [(path, set(name_words(path.stem))) for path in tree.files[parent]]
    for layout in LAYOUTS:
        yield from _beside(tree, layout, parent)
        if not layout.as_words:
            continue
        marked = [path for path, words in files if _marked(words, layout.gt, layout.lq)]
        degraded = [path for path, words in files if _marked(words, layout.lq, layout.gt)]
        if not marked:
            continue
        for folder in tree.folders[parent]:
            if split_and_side(folder)[1] in layout.lq:
                label = f"{folder.name}/ + clean files beside it"
                below = tree.below(folder)
                yield _candidate(layout, parent, (folder, parent), label, below, marked)
        if degraded:
            label = f"{degraded[0].name} + {marked[0].name} in one folder"
            yield _candidate(layout, parent, (parent, parent), label, degraded, marked)


def _unmarked_sides(tree: Tree, parent: Path) -> Iterator[Candidate]:
    """Yield the ways to pair images whose names do not clearly show their side."""
    yield from _beside(tree, PIX2PIX, parent)
    yield from _suffixed(tree, parent)


def _marked(words: set[str], own: Sequence[str], other: Sequence[str]) -> bool:
    """Whether a file's name has a word of one side and none of the other."""
    return bool(words & set(own)) and not words & set(other)


def _suffixed(tree: Tree, parent: Path) -> Iterator[Candidate]:
    """Yield ways to pair files of one folder whose names differ by a word at the end of one.

    More than half of the files must be in such pairs, and no file may be in two of them.
    """
    files = {plain(path.stem): path for path in tree.files[parent]}
    if len(files) < len(tree.files[parent]):
        return
    for layout in SUFFIXES:
        pairs = []
        for name, path in files.items():
            ends = (name[: -len(one)] for one in (*layout.lq, *layout.gt) if name.endswith(one))
            other = next((files[end] for end in ends if end in files), None)
            if other is not None:
                pairs.append((path, other) if layout.lq else (other, path))
        used = [path for pair in pairs for path in pair]
        if pairs and len(set(used)) == len(used) and 2 * len(used) > len(files):
            lq, gt = pairs[0]
            label = f"{lq.name} + {gt.name} in one folder"
            why = dict.fromkeys(set(tree.files[parent]) - set(used), "no image of a matching name")
            yield Candidate(layout, parent, parent, (parent,), label, tuple(pairs), why)


def _beside(tree: Tree, layout: Layout, parent: Path) -> Iterator[Candidate]:
    """Yield ways to pair two folders side by side whose names have the same split, or none."""
    sides = [(folder, *split_and_side(folder)) for folder in tree.folders[parent]]
    # Filtered first, because a set may have thousands of folders (one per scene), too many to
    # compare each with each.
    clean = [(gt, split) for gt, split, side in sides if side in layout.gt]
    for lq, split, side in sides:
        for gt in [one for one, its in clean if side in layout.lq and split == its]:
            label = f"{lq.name}/ + {gt.name}/"
            way = _candidate(layout, parent, (lq, gt), label, tree.below(lq), tree.below(gt))
            yield replace(way, split=split)


def _candidate(
    layout: Layout,
    parent: Path,
    folders: tuple[Path, Path],
    label: str,
    lq: Sequence[Path],
    gt: Sequence[Path],
) -> Candidate:
    lq_folder, gt_folder = folders
    found = match_names(
        [path.relative_to(lq_folder) for path in lq],
        [path.relative_to(gt_folder) for path in gt],
        KINDS.union(layout.lq, layout.gt),
    )
    reasons = {lq[number]: why for number, why in found.lq_reasons.items()}
    reasons |= {gt[number]: why for number, why in found.gt_reasons.items()}
    pairs = tuple((lq[one], gt[other]) for one, other in found.pairs)
    return Candidate(
        layout,
        parent,
        lq_folder,
        folders,
        label,
        pairs,
        reasons,
        alone=tuple(lq[number] for number in found.lq_reasons),
        clean_alone=tuple(gt[number] for number in found.gt_reasons),
        doubtful=tuple((lq[one], gt[other]) for one, other in found.doubtful),
    )
