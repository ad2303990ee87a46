"""Finds and reads what to prepare: pairs of files, or clean images that are to be degraded."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from c2fdft_cli.data.images.picture import read_rgb8
from c2fdft_cli.data.layouts.listing import top_images
from c2fdft_cli.data.layouts.pairs import (
    FilePair,
    PairSet,
    Unpaired,
    find_halves,
    find_pairs,
    half_width,
)
from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.data.synthesis.degrade import (
    Degradation,
    parse_model,
    without_effect,
)
from c2fdft_cli.engine.prepare.options import PrepareOptions, Synthesis
from c2fdft_cli.engine.prepare.split import val_size
from c2fdft_cli.errors import DataError
from c2fdft_cli.files.failures import read_error, write_error
from c2fdft_cli.files.folders import check_space
from c2fdft_cli.files.paths import real_path
from c2fdft_cli.files.reading import read_at, require_existing
from c2fdft_cli.pipeline import in_order
from c2fdft_cli.words import many

Splits: TypeAlias = dict[str, tuple[FilePair, ...]]


@dataclass(frozen=True)
class FoundPairs:
    """All pairs of a source, and how they are split into training and validation.

    Args:
        layout: where the two sides of the pairs are, as text for the user.
        task: the task that the pairs are for if it is known.
        splits: the pairs of "val" and "train".
        unpaired: images that belong to no pair.
        notices: what the user should know.
        choose_from: the split from which the validation pairs are yet to be chosen; None if there
            is nothing to choose.
        val_size: number of validation pairs to choose.
    """

    layout: str
    task: str | None
    splits: Splits
    unpaired: tuple[Unpaired, ...]
    notices: tuple[str, ...]
    choose_from: str | None = None
    val_size: int = 0

    @property
    def pairs(self) -> list[tuple[str, FilePair]]:
        """(split, pair) of all pairs, in the order of `splits`."""
        return [(split, pair) for split, pairs in self.splits.items() for pair in pairs]

    @property
    def candidates(self) -> tuple[FilePair, ...]:
        """The pairs from which the validation pairs are yet to be chosen."""
        return () if self.choose_from is None else self.splits[self.choose_from]

    def with_val(self, names: Collection[str], notices: Iterable[str] = ()) -> FoundPairs:
        """Return a copy with the candidates of these names as validation pairs.

        The other candidates are trained on, or skipped if they belong to the set's own val split.
        """
        val = tuple(pair for pair in self.candidates if pair.name in names)
        train, more = self.splits["train"], list(notices)
        if self.choose_from == "train":
            train = tuple(pair for pair in train if pair.name not in names)
        else:
            skipped = len(self.candidates) - len(val)
            more.append(f"the set's own val split: {many(skipped, 'pair')} skipped")
        return replace(
            self,
            splits={"val": val, "train": train},
            notices=(*self.notices, *more),
            choose_from=None,
        )


def find(options: PrepareOptions) -> FoundPairs:
    """Find the pairs (or the clean images to degrade) of the source and split them.

    Raises:
        DataError: there is nothing to prepare.
        UsageError: `val` leaves nothing to train on.
    """
    source, val = options.source, options.val

    def look(root: Path, pairs_file: Path | None) -> FoundPairs:
        if options.synthesize:
            found = _clean(root, options.synthesize)
        elif options.side_by_side:
            found = _split_apart(find_halves(root, options.side_by_side))
        else:
            found = _split_apart(find_pairs(root, gamma=options.gamma, pairs_file=pairs_file))
        return _outside(found, root, options.folder)

    found = look(source, options.pairs_file)
    if not found.pairs:
        raise DataError("no images outside the output folder", where=source)
    own, train = found.splits.get("val", ()), found.splits.get("train", ())
    notices, choose_from, size = list(found.notices), None, 0
    if isinstance(val, Path):
        require_existing(val)
        listed = val.is_file()
        other = look(source, val) if listed else look(val, None)
        notices += other.notices
        chosen = tuple(pair for _, pair in other.pairs)
        own, train = (_without(some, chosen) if listed else some for some in (own, train))
        if own:
            notices.append(f"the set's own val split: {many(len(own), 'pair')} trained on")
        train, own = train + own, chosen
    elif not own:
        size = val_size(len(train), val)
        choose_from = "train" if size else None
    elif val is not None and val < len(own):
        choose_from, size = "val", val_size(len(own), val)
    elif val is not None and val > len(own):
        pairs = many(len(own), "pair")
        notices.append(f"--val {val}: the set's own val split has only {pairs}, all are used")
    found = replace(
        found,
        # val comes first, because `SplitGuard` compares training images with the validation images
        # that it has seen before
        splits={"val": own, "train": train},
        notices=tuple(dict.fromkeys(notices)),  # a list may belong to the same folder
        choose_from=choose_from,
        val_size=size,
    )
    if choose_from and not size:  # choosing no pairs needs no decoded images
        found = found.with_val(())
    if not found.splits["train"]:
        raise DataError("no pairs to train on", where=source)
    return found


def _without(pairs: Iterable[FilePair], left_out: Iterable[FilePair]) -> tuple[FilePair, ...]:
    """Return the pairs that do not consist of the same two files as one of those left out."""
    files = {(real_path(pair.lq), real_path(pair.gt)) for pair in left_out}
    return tuple(pair for pair in pairs if (real_path(pair.lq), real_path(pair.gt)) not in files)


def _split_apart(found: PairSet) -> FoundPairs:
    """Convert the pairs of a folder, without its test split."""
    splits = {split: pairs for split, pairs in found.splits.items() if split != "test"}
    return FoundPairs(found.layout, found.task, splits, found.unpaired, found.notices)


def _clean(source: Path, synthesis: Synthesis) -> FoundPairs:
    """Find the clean images of a folder, without its sub-folders."""
    images, notices = top_images(source, kind="clean images")
    stems = Counter(path.stem for path in images)
    # Images that share a stem are named by their whole file name, and so are images whose stem is
    # such a file name (a.png.jpg beside a.png and a.jpg).
    whole = {path.name for path in images if stems[path.stem] > 1}
    pairs = tuple(
        FilePair(path.name if {path.name, path.stem} & whole else path.stem, path, path)
        for path in images
    )
    model = parse_model(synthesis.kind, synthesis.options, synthesis.streaks)
    idle = without_effect(model, synthesis.options, bank=synthesis.streaks is not None)
    return FoundPairs("clean images", model.task, {"train": pairs}, (), (*notices, *idle))


def _outside(found: FoundPairs, root: Path, out: Path) -> FoundPairs:
    """Return a copy without images in the output folder, if that is inside `root`."""
    inner = real_path(out)
    if root.resolve() not in inner.parents:
        return found

    def is_out(path: Path) -> bool:
        return inner in real_path(path).parents

    splits = {
        split: tuple(pair for pair in pairs if not (is_out(pair.lq) or is_out(pair.gt)))
        for split, pairs in found.splits.items()
    }
    unpaired = tuple(one for one in found.unpaired if not is_out(one.path))
    return replace(found, splits=splits, unpaired=unpaired)


class DecodedImages:
    """Images that are needed more than once: decoded once, then read from an unnamed file.

    The file is on the disk of `folder`, holds plain pixels, and disappears when this object is
    closed or the program dies. `read` may be called from many threads.

    Args:
        folder: any folder on the disk to use.
        added: called after each image that was stored.
    """

    def __init__(self, folder: Path, added: Callable[[], object] = lambda: None) -> None:
        self._folder, self._added = folder, added
        try:
            # unbuffered, because `read_at` reads by the descriptor and would miss buffered bytes
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise write_error(error, folder) from error
        self._end = 0
        self._places: dict[Path, tuple[int, tuple[int, ...]]] = {}
        self._digests: dict[Path, str] = {}

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def add(self, sizes: Mapping[Path, int], *, workers: int) -> None:
        """Decode and store those files that are not stored yet.

        Args:
            sizes: the files, with the number of bytes of their pixels.
            workers: threads, 0 for one per core.

        Raises:
            DataError: an image cannot be read.
            ResourceError: the disk is too small or full.
        """
        new = {path: size for path, size in sizes.items() if path not in self._places}
        check_space(self._folder, sum(new.values()))
        with closing(in_order(read_rgb8, new, workers=workers, cost=new.__getitem__)) as images:
            for path, pixels in zip(new, images, strict=True):
                self._append(np.ascontiguousarray(pixels).reshape(-1))
                self._places[path] = self._end, pixels.shape
                self._digests[path] = hashlib.sha256(pixels).hexdigest()
                self._end += pixels.nbytes
                self._added()

    def _append(self, flat: Pixels) -> None:
        view = memoryview(flat)
        try:
            self._file.seek(self._end)  # on Windows, reading moves the position
            # an unbuffered file may write only a part at a time
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise write_error(error, self._folder) from error

    def key(self, path: Path) -> tuple[tuple[int, ...], str]:
        """Return shape and SHA-256 of an image that was added: equal for equal pixels."""
        return self._places[path][1], self._digests[path]

    def read(self, path: Path) -> Pixels:
        """Return an image, uint8 RGB [h, w, 3]; one that was not added is decoded now.

        Raises:
            DataError: the image cannot be read.
        """
        if path not in self._places:
            return read_rgb8(path)
        start, shape = self._places[path]
        try:
            data = read_at(self._file, start, math.prod(shape))
        except OSError as error:
            raise read_error(error, self._folder) from error
        return np.frombuffer(data, np.uint8).reshape(shape)


class PairReader:
    """Reads pairs, or reads clean images and degrades them; safe to call from many threads.

    Args:
        synthesis: how to degrade clean images, or None for pairs.
        seed: determines, with a pair's name, its degradation.
        degraded_half: "left" or "right" if each picture shows both images of its pair.

    Raises:
        UsageError: an unknown degradation or option, or streaks for a degradation other than rain.
        DataError: no usable streak masks.
    """

    def __init__(
        self, synthesis: Synthesis | None, seed: int, degraded_half: str | None = None
    ) -> None:
        self._synthesis = synthesis
        self._degraded_half = degraded_half
        self._seed = seed
        self._degrade: Degradation | None = None
        if synthesis is not None:
            self._degrade = Degradation.open(synthesis.kind, synthesis.options, synthesis.streaks)

    @property
    def stores_lq(self) -> bool:
        """Whether shards store degraded images."""
        return self._synthesis is None or self._synthesis.store

    @property
    def degradation(self) -> str:
        """The `degradation` attribute of shards: JSON text, or "" for pairs."""
        if self._synthesis is None or self._degrade is None:
            return ""
        model, streaks = self._degrade.model, self._degrade.streaks
        values: dict[str, object] = {
            "kind": self._synthesis.kind,
            "options": model.stored_options(),
            "streaks": None if streaks is None else streaks.digest(),
        }
        if self._synthesis.store:
            values["seed"] = self._seed
        return json.dumps(values, sort_keys=True)

    def read(
        self, pair: FilePair, decode: Callable[[Path], Pixels] = read_rgb8
    ) -> tuple[Pixels | None, Pixels]:
        """Return (lq, gt) of a pair, uint8 RGB [h, w, 3]; lq is None if shards store none.

        Raises:
            DataError: an image cannot be read.
        """
        gt = decode(pair.gt)
        if self._degraded_half:
            left, right = _halves(gt, pair.gt)
            return (left, right) if self._degraded_half == "left" else (right, left)
        if not self.stores_lq:
            return None, gt
        if self._degrade is None:
            return decode(pair.lq), gt
        # Each pair has its own generator, because threads read in any order and a resumed run reads
        # only some pairs.
        text = f"synthesis {self._seed} {pair.name}".encode("utf-8", "surrogateescape")
        key = np.frombuffer(hashlib.sha256(text).digest()[:16], "<u8")
        rng = np.random.Generator(np.random.Philox(key=key))
        return self._degrade(gt, rng), gt


def _halves(image: Pixels, path: Path) -> tuple[Pixels, Pixels]:
    """Split a picture [h, 2 w, 3] into its left and its right half, [h, w, 3] each."""
    width = half_width(path, image.shape[1])
    left, right = image[:, :width], image[:, width:]
    return np.ascontiguousarray(left), np.ascontiguousarray(right)
