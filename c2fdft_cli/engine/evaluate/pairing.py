"""Pair restored files with their targets: by name, never by position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from c2fdft_cli.data.images.picture import image_size, is_image_path, list_images, natural_key
from c2fdft_cli.data.layouts import search
from c2fdft_cli.data.layouts.listing import refuse_videos, some_images
from c2fdft_cli.data.layouts.matching import Matching, match_names
from c2fdft_cli.data.layouts.pairs import FilePair, check_sizes, told_apart
from c2fdft_cli.data.layouts.pairs_csv import read_pairs_csv
from c2fdft_cli.engine.sampling.scoring import refuse_small
from c2fdft_cli.errors import DataError
from c2fdft_cli.files.paths import real_path
from c2fdft_cli.files.reading import require_existing
from c2fdft_cli.progress import Looked, counted
from c2fdft_cli.vocabulary import TASKS
from c2fdft_cli.words import many

KINDS = search.KINDS | {one.results for one in TASKS.values()} | {"restored", "output", "result"}
"""Words in a file name that state the kind of an image, also of one that was restored."""


@dataclass(frozen=True)
class Matched:
    """The pairs, how they were found, and what is unpaired on either side.

    Args:
        pairs: restored files (`lq`) and their targets (`gt`), in natural order of their names.
        degraded: the inputs of the restored files, as far as known.
        without_target: restored files without a target.
        without_restored: targets without a restored file.
        found_by: how the targets were found, for the user.
    """

    pairs: list[FilePair]
    degraded: dict[Path, Path] = field(default_factory=dict)
    without_target: list[Path] = field(default_factory=list)
    without_restored: list[Path] = field(default_factory=list)
    found_by: str = "names"


def pair_files(restored: Path, target: Path) -> Matched:
    """Pair two folders (or two files) by name.

    In a target folder with a published layout, only the clean images are targets: `rain-001.png`
    is paired with `norain-001.png` even if the folder also contains `rainy/rain-001.png`. In any
    other folder names are matched as `prepare` matches them.

    Raises:
        DataError: a missing path, an empty set, or no pairs.
    """
    require_existing(restored, target)
    refuse_videos(restored, target)
    if restored.is_file() and target.is_file():
        return Matched([FilePair(restored.stem, restored, target)], found_by="the two files given")
    ours = _images(restored, target)
    root = restored if restored.is_dir() else restored.parent
    names = [PurePath(path.relative_to(root)) for path in ours]
    found = None if target.is_file() else _by_layout(names, ours, target)
    if found is not None:
        return found
    theirs = _images(target, restored)
    root = target if target.is_dir() else target.parent
    matching = match_names(names, [PurePath(path.relative_to(root)) for path in theirs], KINDS)
    if not matching.pairs:
        raise DataError(
            "no restored image has a target of a matching name",
            where=restored,
            hint="give the files the same names, or list the pairs: --pairs LIST.csv",
            details=[*(f"restored: {p}" for p in ours[:3]), *(f"target: {p}" for p in theirs[:3])],
        )
    return _matched(matching, names, ours, theirs, {}, "names")


def listed_pairs(pairs_file: Path, folder: Path | None = None) -> Matched:
    """Read the pairs of a list, in its order.

    Args:
        pairs_file: the list, see `read_pairs_csv`.
        folder: where to look for relative paths that do not exist relative to the list's folder.

    Raises:
        DataError: the folder does not exist, or the list is malformed or names a missing file.
    """
    if folder is not None:
        require_existing(folder)
    pairs = [FilePair(*row) for row in read_pairs_csv(pairs_file, folder)]
    return Matched(pairs, found_by=f"the list {pairs_file.name}")


def _images(path: Path, other: Path) -> list[Path]:
    """Return the images below a path, except those below `other`; DataError if there are none."""
    if path.is_file():
        return [path]
    inside = real_path(other)
    nested = real_path(path) in inside.parents
    found = [
        image
        for image in some_images(path, recursive=True)
        if not (nested and inside in (real_path(image), *real_path(image).parents))
    ]
    if not found:
        raise DataError("no images in the folder except those of the other one", where=path)
    return found


def _by_layout(names: Sequence[PurePath], ours: Sequence[Path], target: Path) -> Matched | None:
    """Pair by the names of the degraded images, if the target folder contains a whole set."""
    try:
        chosen, _ = search.search(search.Tree(target, list_images(target, recursive=True)))
    except DataError:  # several layouts fit: match the names of the files instead
        return None
    lqs = [lq for one in chosen for lq, _ in one.pairs]
    gts = [gt for one in chosen for _, gt in one.pairs]
    in_target = [PurePath(lq.relative_to(target)) for lq in lqs]
    in_lq_folder = [
        PurePath(one.parent.relative_to(target) / lq.relative_to(one.lq_folder))
        for one in chosen
        for lq, _ in one.pairs
    ]
    matchings = [match_names(names, keys, KINDS) for keys in (in_lq_folder, in_target)]
    best = max(matchings, key=lambda found: len(found.pairs))
    if not best.pairs:
        return None
    degraded = {ours[i]: lqs[k] for i, k in best.pairs}
    label = f"the target folder's layout: {chosen[0].label}"
    return _matched(best, names, ours, gts, degraded, label)


def _matched(
    found: Matching,
    names: Sequence[PurePath],
    ours: Sequence[Path],
    theirs: Sequence[Path],
    degraded: dict[Path, Path],
    found_by: str,
) -> Matched:
    """Turn matched indices into files, in natural order; `theirs` may name a file twice."""
    pairs = [FilePair(without_suffix(names[i]), ours[i], theirs[k]) for i, k in found.pairs]
    used = {pair.gt for pair in pairs}
    return Matched(
        sorted(pairs, key=lambda pair: natural_key(pair.name)),
        degraded,
        sorted((ours[i] for i in found.lq_reasons), key=natural_key),
        sorted((gt for gt in dict.fromkeys(theirs) if gt not in used), key=natural_key),
        found_by,
    )


def check_all_sizes(
    sizes: Sequence[tuple[str, Callable[[], tuple[int, int]]]],
    border: int,
    looked: Looked,
    unit: str = "pair",
) -> None:
    """Check every pair before the first one is scored, which may take hours.

    Args:
        sizes: each pair's name, and a function that reads (height, width) from the headers, and
            raises DataError if that fails or if its two images differ in size.
        border: pixels that the scores skip on each side.
        looked: called before each pair.
        unit: what a pair is called.

    Raises:
        DataError: lists all pairs that cannot be scored, also those that are too small.
    """
    problems = []
    for name, size in counted(sizes, looked, "reading headers"):
        try:
            refuse_small(name, *size(), border)
        except DataError as error:
            problems.append(str(error))  # which names the file
    fail(problems, len(sizes), unit)


def size_of_both(pair: FilePair, degraded: Path | None) -> tuple[int, int]:
    """Return (height, width) of a restored file and its target; DataError if they differ.

    The size of the degraded file may be another, but its header must be readable too.
    """
    size = check_sizes(pair)
    if degraded is not None:
        image_size(degraded)
    return size


def fail(problems: Sequence[str], total: int, unit: str = "pair") -> None:
    """Raise DataError if there are problems, with a list of what cannot be scored."""
    if not problems:
        return
    if len(problems) == 1:
        raise DataError(
            problems[0], hint="repair or remove it: means are reported only for complete sets"
        )
    what = f"{len(problems)} of {many(total, unit)} cannot be scored"
    hint = "repair or remove them: means are reported only for complete sets"
    raise DataError(what, hint=hint, details=problems)


def without_suffix(path: PurePath) -> str:
    """Return a path without its suffix, for a row's name; unlike `with_suffix` also for "..png"."""
    return path.as_posix().removesuffix(path.suffix)


def own_names(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Make names unique by adding suffixes: if a.jpg and a.png are both named a, to both."""
    whole = [f"{name}{path.suffix}" for name, path in zip(names, paths, strict=True)]
    # Repeated, because a name with a suffix may clash too: a.jpg is also the name of a.jpg.png
    # until that gets its suffix.
    found = list(names)
    while (again := told_apart(found, whole)) != found:
        found = again
    return found


def degraded_beside(pairs: Matched, folder: Path) -> Matched:
    """Add the degraded inputs from a folder to the pairs, by name; DataError if none matches."""
    require_existing(folder)
    images = list_images(folder, recursive=True) if folder.is_dir() else []
    if not images and is_image_path(folder) and folder.is_file():
        images, folder = [folder], folder.parent
    keys = [PurePath(f"{pair.name}{pair.lq.suffix}") for pair in pairs.pairs]
    found = match_names(keys, [PurePath(path.relative_to(folder)) for path in images], KINDS)
    if not found.pairs:
        raise DataError("no degraded image has a matching name", where=folder)
    named = {pairs.pairs[i].lq: images[k] for i, k in found.pairs}
    return replace(pairs, degraded=pairs.degraded | named)
