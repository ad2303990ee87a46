"""The published layouts as a table, and the search for them in a tree of images."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from c2fdft_cli.data.layouts.matching import match_names, name_words
from c2fdft_cli.errors import DataError

_GAMMA = "blurgamma"
_CLEAN = ("gt", "groundtruth", "clean", "target")


@dataclass(frozen=True)
class Layout:
    """What the two sides are called, in lower case without signs (`plain`).

    Args:
        published: the data sets that are laid out so.
        lq, gt: names of the degraded and of the clean side.
        task: "derain", "deblur" or "denoise" where the names tell.
    """

    published: str
    lq: tuple[str, ...]
    gt: tuple[str, ...]
    task: str | None = None


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
    Layout(
        "GoPro, RealBlur, REDS",
        ("blur", "blurred", "blurry", _GAMMA, "trainblur", "valblur", "testblur"),
        ("sharp", "trainsharp", "valsharp", "testsharp", *_CLEAN),
        "deblur",
    ),
    Layout(
        "Rain1400, the first Rain100L",
        ("rainy", "rain", "rainyimage", "rainyimages"),
        ("norain", *_CLEAN),
        "derain",
    ),
    Layout("RainDrop", ("data",), ("gt",)),
    Layout("PolyU", ("real",), ("mean",), "denoise"),
)
_KINDS = frozenset(name for layout in LAYOUTS for name in (*layout.lq, *layout.gt))


@dataclass(frozen=True)
class Candidate:
    """One way to pair the files at one place.

    Args:
        layout: the row of the table.
        parent: where it was found.
        lq_folder: the folder of the degraded files (`parent` when the files share it).
        folders: the folders whose images it accounts for.
        label: how it looks, for people.
        pairs: (degraded, clean).
        reasons: why the others in those folders are in no pair.
        ignored: folders that are skipped on purpose.
    """

    layout: Layout
    parent: Path
    lq_folder: Path
    folders: tuple[Path, ...]
    label: str
    pairs: tuple[tuple[Path, Path], ...]
    reasons: dict[Path, str]
    ignored: tuple[Path, ...] = ()

    @property
    def is_gamma(self) -> bool:
        """Whether its degraded side is GoPro's blur_gamma/."""
        return plain(self.lq_folder.name) == _GAMMA


class Tree:
    """The images below a folder, by folder.

    Args:
        root: the folder.
        images: every image below it, in natural order.
    """

    def __init__(self, root: Path, images: Sequence[Path]) -> None:
        self.root = root
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
        """The images in a folder and in all folders under it."""
        return self._below.get(folder, ())

    def mentions(self, names: Collection[str]) -> bool:
        """Whether a folder, or a word in a file's name, is one of `names`."""
        if any(plain(folder.name) in names for folder in self._below if folder != self.root):
            return True
        return any(set(name_words(path.stem)) & set(names) for path in self.images)


def plain(name: str) -> str:
    """A folder's name in lower case without signs: "Rainy_Image" and "rainy image" are one."""
    return re.sub(r"[\W_]", "", name.casefold())


def search(tree: Tree, *, gamma: bool) -> tuple[list[Candidate], list[str]]:
    """The one way to pair the images of a tree, place by place, and notices about it.

    Raises:
        DataError: more than one way, or `gamma` without a blur_gamma/ folder.
    """
    chosen: list[Candidate] = []
    notices: list[str] = []
    open_folders = [tree.root]
    while open_folders:
        folder = open_folders.pop()
        found = _choose(list(_candidates(tree, folder)), tree, gamma)
        chosen += found
        closed = {one for way in found for one in (*way.folders, *way.ignored)}
        open_folders += [one for one in reversed(tree.folders[folder]) if one not in closed]
    if len({candidate.layout for candidate in chosen}) > 1:
        raise _ambiguous(chosen, tree)
    if gamma and not all(candidate.is_gamma for candidate in chosen):
        plain_one = next(candidate for candidate in chosen if not candidate.is_gamma)
        raise DataError(
            "no blur_gamma/ folder", where=plain_one.parent, hint="leave --gamma out: it has blur/"
        )
    if any(candidate.ignored for candidate in chosen):
        taken, other = ("blur_gamma/", "blur/") if gamma else ("blur/", "blur_gamma/")
        notices.append(f"the set has blur/ and blur_gamma/: {taken} is used, {other} is skipped")
    elif not gamma and any(candidate.is_gamma for candidate in chosen):
        notices.append("the set has no blur/: blur_gamma/ is used")
    return chosen, notices


def _choose(ways: list[Candidate], tree: Tree, gamma: bool) -> list[Candidate]:
    """The only way at one place; of GoPro's two the one asked for."""
    if {way.is_gamma for way in ways} == {True, False}:
        others = tuple(way.lq_folder for way in ways if way.is_gamma != gamma)
        ways = [
            Candidate(**{**vars(way), "ignored": others}) for way in ways if way.is_gamma == gamma
        ]
    distinct = {frozenset((lq.resolve(), gt.resolve()) for lq, gt in way.pairs) for way in ways}
    if len(distinct) > 1:
        raise _ambiguous(ways, tree)
    return ways[:1]


def _ambiguous(ways: Sequence[Candidate], tree: Tree) -> DataError:
    listed = [
        f"{way.label} in {way.parent.relative_to(tree.root).as_posix()}/: {len(way.pairs)} pairs"
        for way in ways
    ]
    labels = list(dict.fromkeys(way.label for way in ways))
    what = f"more than one way to pair the images: {'; '.join(labels[:4])}"
    hint = "give a folder with one of them, or list the pairs in a CSV file: --pairs FILE"
    return DataError(what, where=tree.root, hint=hint, details=listed[:20])


def _candidates(tree: Tree, parent: Path) -> Iterator[Candidate]:
    """Every way to pair the images at one place that pairs at least one."""
    for layout in LAYOUTS:
        clean = [folder for folder in tree.folders[parent] if plain(folder.name) in layout.gt]
        marked = [path for path in tree.files[parent] if _marked(path, layout.gt, layout.lq)]
        ways = []
        for lq in tree.folders[parent]:
            if plain(lq.name) in layout.lq:
                ways += [_beside(tree, layout, parent, lq, gt) for gt in clean]
                ways += [_around(tree, layout, parent, lq, marked)] if marked else []
        degraded = [path for path in tree.files[parent] if _marked(path, layout.lq, layout.gt)]
        ways += [_mixed(layout, parent, degraded, marked)]
        yield from (way for way in ways if way.pairs)


def _marked(path: Path, own: Sequence[str], other: Sequence[str]) -> bool:
    """Whether a file's name has a word of one side and none of the other."""
    words = set(name_words(path.stem))
    return bool(words & set(own)) and not words & set(other)


def _beside(tree: Tree, layout: Layout, parent: Path, lq: Path, gt: Path) -> Candidate:
    """Two folders side by side."""
    label = f"{lq.name}/ + {gt.name}/"
    return _candidate(layout, parent, (lq, gt), label, tree.below(lq), tree.below(gt))


def _around(
    tree: Tree, layout: Layout, parent: Path, lq: Path, marked: Sequence[Path]
) -> Candidate:
    """A degraded folder beside loose clean files that are marked as such."""
    label = f"{lq.name}/ + clean files beside it"
    return _candidate(layout, parent, (lq, parent), label, tree.below(lq), marked)


def _mixed(
    layout: Layout, parent: Path, degraded: Sequence[Path], marked: Sequence[Path]
) -> Candidate:
    """Files of both sides in one folder, told apart by a word in their names."""
    label = ""
    if degraded and marked:
        label = f"{degraded[0].name} + {marked[0].name} in one folder"
    return _candidate(layout, parent, (parent, parent), label, degraded, marked)


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
        _KINDS,
    )
    reasons = {lq[number]: why for number, why in found.lq_reasons.items()}
    reasons |= {gt[number]: why for number, why in found.gt_reasons.items()}
    pairs = tuple((lq[one], gt[other]) for one, other in found.pairs)
    return Candidate(layout, parent, lq_folder, folders, label, pairs, reasons)
