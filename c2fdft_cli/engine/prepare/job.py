"""The job that turns a folder of images into shards; resumable, and deterministic to the byte."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from c2fdft_cli.data.layouts.listing import SeenFiles
from c2fdft_cli.data.layouts.pairs import FilePair, Unpaired
from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.data.shards.format import Entry, ShardHeader, ShardIndex, clean_text
from c2fdft_cli.data.shards.writer import create_shard
from c2fdft_cli.engine.prepare.inspect import (
    CheckReport,
    check_pairs,
    choose_checked,
    summarise,
)
from c2fdft_cli.engine.prepare.options import PrepareOptions
from c2fdft_cli.engine.prepare.plan import (
    Measured,
    PlannedShard,
    ValChoice,
    begin,
    choice_inputs,
    find_existing,
    make_plan,
    measure,
    remembered_choice,
)
from c2fdft_cli.engine.prepare.source import DecodedImages, FoundPairs, PairReader, find
from c2fdft_cli.engine.prepare.split import SplitGuard, choose_val, content_keys
from c2fdft_cli.errors import DataError, PartialFailure, UsageError
from c2fdft_cli.files.failures import write_error
from c2fdft_cli.files.folders import free_disk_bytes
from c2fdft_cli.files.locks import hold_folder
from c2fdft_cli.pipeline import in_order
from c2fdft_cli.progress import Job, Looked, Meter
from c2fdft_cli.version import __version__
from c2fdft_cli.words import many

Images: TypeAlias = Generator[tuple[Pixels | None, Pixels], None, None]
Row: TypeAlias = tuple[str, str | None, str]


@dataclass(frozen=True)
class PairWritten:
    """An event: a pair was written to its shard, or was read by a check.

    Args:
        name: the pair's name.
        kept: whether its shard existed already.
        problem: what is wrong with the pair (only in a check).
    """

    name: str
    kept: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class PrepareResult:
    """What was found and written.

    Args:
        layout: where the two sides of the pairs are, as text for the user.
        task: what the pairs are for, such as "derain", if the layout or the degradation shows it.
        pairs: number of pairs, train and val together.
        train, val: number of pairs of each.
        unpaired: images that belong to no pair, with the reason.
        notices: what the user should know.
        failed: (name, problem) of pairs that cannot be used; only with `check_only`.
        shards: the shard files.
        bytes: size of all shards together.
        up_to_date: whether nothing had to be written.
        report: the summary of a check (`check_only`); None if no pair could be read.
    """

    layout: str
    task: str | None
    pairs: int
    train: int
    val: int
    unpaired: tuple[Unpaired, ...]
    notices: tuple[str, ...]
    failed: tuple[tuple[str, str], ...] = ()
    shards: tuple[Path, ...] = ()
    bytes: int = 0
    up_to_date: bool = False
    report: CheckReport | None = None

    @property
    def failure(self) -> PartialFailure | None:
        """The error with which a check ends if it found pairs that writing would refuse."""
        if not self.failed:
            return None
        what = f"{len(self.failed)} of {many(self.pairs, 'pair')} cannot be used"
        hint = "repair or remove them: prepare refuses a set that contains such pairs"
        return PartialFailure(what, hint=hint)


class _Progress:
    """Reports to a meter that an image which was decoded ahead of its pair is half of this pair."""

    def __init__(self, meter: Meter, pairs: int) -> None:
        self._meter, self._pairs, self._decoded = meter, pairs, 0

    def decoded(self) -> None:
        """Report one more image that was decoded ahead."""
        self._decoded += 1
        self._report()

    def written(self, name: str, *, kept: bool = False) -> PairWritten:
        """Report that a pair is finished, and return its event."""
        self._pairs -= 1
        self._report(1)
        return PairWritten(name, kept)

    def _report(self, finished: int = 0) -> None:
        # The pairs that are left are an upper limit: some images belong to finished pairs.
        self._meter.report(finished + min(self._decoded, self._pairs) / 2)


def prepare(
    options: PrepareOptions, looked: Looked = lambda *_: None
) -> Job[PairWritten, PrepareResult]:
    """Find the pairs immediately; write their shards, or check them, while the job is iterated.

    The headers of images to be written are read immediately too. Each image is decoded once. An
    interrupted run resumes where it stopped: complete shards are kept, and the result has the same
    bytes as without the interruption.

    Args:
        options: what to prepare, and how.
        looked: as for `measure`.

    Raises:
        DataError: no pairs, an unreadable image, sizes that differ within a pair, or the same image
            in train and val.
        UsageError: options that cannot be combined, or shards of another set in `out`.
        ResourceError: the disk is too small, or `out` cannot be written.
    """
    if options.synthesize and options.pairs_file:
        raise UsageError("--pairs cannot be combined with --synthesize")
    if options.side_by_side and (options.synthesize or options.pairs_file or options.gamma):
        other = "--synthesize, --pairs or --gamma"
        raise UsageError(f"--side-by-side cannot be combined with {other}")
    made = options.synthesize or options.side_by_side
    if made and isinstance(options.val, Path) and options.val.is_file():
        option = "--synthesize" if options.synthesize else "--side-by-side"
        what = f"--val cannot be a list of pairs together with {option}"
        raise UsageError(what, hint="give --val a number or a folder")
    reader = PairReader(options.synthesize, options.seed, options.side_by_side)
    found = find(options)
    meter = Meter()
    if options.check_only:
        work = _check(options, reader, found)
    else:
        measured = measure(
            [pair for _, pair in found.pairs],
            workers=options.workers,
            halves=options.side_by_side is not None,
            looked=looked,
        )
        progress = _Progress(meter, len(found.pairs))
        work = _write(options, reader, found, measured, progress)
    return Job(
        work,
        total=len(found.pairs),
        title="prepare",
        unit="pair",
        meter=meter,
        resume="run the same command again: finished shards are kept",
    )


def _check(
    options: PrepareOptions, reader: PairReader, found: FoundPairs
) -> Generator[PairWritten, None, PrepareResult]:
    """Read all pairs and report their problems, without writing anything."""
    checked, seen = [], SeenFiles()
    with closing(
        check_pairs(reader, [pair for _, pair in found.pairs], seen, workers=options.workers)
    ) as rows:
        for one in rows:
            checked.append(one)
            yield PairWritten(one.pair.name, problem=one.problem)
    found = choose_checked(found, checked)
    guard, by_pair = SplitGuard(), {one.pair: one for one in checked}
    for split, pair in found.pairs:
        if (one := by_pair[pair]).problem is None:
            guard.add(split, pair.name, one.sha256_lq, one.sha256_gt)
    return replace(
        _counted(found, seen, guard.notices),
        failed=tuple((one.pair.name, one.problem) for one in checked if one.problem is not None),
        report=summarise(
            checked, has_lq=reader.stores_lq, bytes_free=free_disk_bytes(options.folder)
        ),
    )


def _write(
    options: PrepareOptions,
    reader: PairReader,
    found: FoundPairs,
    measured: Measured,
    progress: _Progress,
) -> Generator[PairWritten, None, PrepareResult]:
    """Write the shards that do not exist yet."""
    workers = options.workers
    with (
        hold_folder(options.folder, "another process is preparing this folder"),
        closing(DecodedImages(options.folder, progress.decoded)) as decoded,
    ):
        choice = _choose(options, reader, found, measured.entries, decoded)
        if choice is not None:
            found = found.with_val(choice.names, choice.notices)
        plan = make_plan(
            options.folder,
            found.splits,
            measured.entries,
            _header(options, reader, found.layout),
            has_lq=reader.stores_lq,
            max_shard_bytes=options.max_shard_bytes,
        )
        kept, changed = find_existing(options.folder, plan, overwrite=options.overwrite)
        guard = SplitGuard()
        new = [shard for shard in plan.shards if shard.path not in kept]
        decoded.add(_shared(plan.shards if changed else new), workers=workers)
        read = partial(_images, reader=reader, decoded=decoded, workers=workers)
        for shard in plan.shards:
            if shard.path in kept:
                pixels = read(shard) if changed else None
                with closing(_compared(shard, kept[shard.path], pixels)) as rows:
                    for name, sha256_lq, sha256_gt in rows:
                        guard.add(shard.header.split, name, sha256_lq, sha256_gt)
                        yield progress.written(name, kept=True)
        # This removes shards that are not kept, so every check that may refuse that comes before.
        begin(options.folder, plan, kept, choice)
        for shard in new:
            with (
                closing(read(shard)) as images,
                create_shard(
                    shard.path, shard.header, shard.entries, has_lq=reader.stores_lq
                ) as to,
            ):
                for entry, (lq, gt) in zip(shard.entries, images, strict=True):
                    digests = to.add(lq, gt)
                    try:
                        guard.add(shard.header.split, entry.name, *digests)
                    except DataError:
                        # The corrected set is another one: also kept shards would be in its way.
                        _remove(plan.shards)
                        raise
                    yield progress.written(entry.name)
    paths = tuple(shard.path for shard in plan.shards)
    return replace(
        _counted(found, measured.seen, guard.notices),
        shards=paths,
        bytes=sum(map(_size_of, paths)),
        up_to_date=not new,
    )


def _size_of(shard: Path) -> int:
    """Return the bytes of a shard; ResourceError if it was taken away after it had been written."""
    try:
        return shard.stat().st_size
    except OSError as error:
        raise write_error(error, shard) from error


def _remove(shards: Iterable[PlannedShard]) -> None:
    for shard in shards:
        shard.path.unlink(missing_ok=True)


def _choose(
    options: PrepareOptions,
    reader: PairReader,
    found: FoundPairs,
    entries: Mapping[FilePair, Entry],
    decoded: DecodedImages,
) -> ValChoice | None:
    """Choose the validation pairs by pixels, or return the choice stored in the output folder.

    None if there is nothing to choose.
    """
    candidates = found.candidates
    if not candidates:
        return None
    degraded_half = options.side_by_side
    inputs = choice_inputs(candidates, found.val_size, degraded_half)
    if (choice := remembered_choice(options.folder, inputs)) is not None:
        return choice
    images = 2 if degraded_half else 1  # images per file
    sizes = {pair.gt: images * entries[pair].nbytes for pair in candidates}
    decoded.add(sizes, workers=options.workers)

    def clean_half(path: Path) -> Hashable:
        _, gt = reader.read(FilePair("", path, path), decoded.read)
        return gt.shape, hashlib.sha256(gt).hexdigest()

    contents = content_keys(candidates, clean_half if degraded_half else decoded.key)
    names, notices = choose_val(candidates, found.val_size, contents)
    return ValChoice(inputs, tuple(sorted(names)), tuple(notices))


def _header(options: PrepareOptions, reader: PairReader, layout: str) -> ShardHeader:
    return ShardHeader(
        split="",
        patch_cycle="",
        layout=clean_text(layout),
        source=clean_text(options.source.resolve().name),
        tool_version=__version__,
        degradation=reader.degradation,
    )


def _shared(shards: Sequence[PlannedShard]) -> dict[Path, int]:
    """Return the files that more than one pair needs, with the number of bytes of their pixels."""
    sizes: dict[Path, int] = {}
    uses: Counter[Path] = Counter()
    for shard in shards:
        for pair, entry in zip(shard.pairs, shard.entries, strict=True):
            for path in {pair.lq, pair.gt}:
                uses[path] += 1
                sizes[path] = entry.nbytes
    return {path: sizes[path] for path, count in uses.items() if count > 1}


def _images(
    shard: PlannedShard, reader: PairReader, decoded: DecodedImages, workers: int
) -> Images:
    """Yield (lq, gt) of each pair of a shard, in order, read ahead by several threads."""
    cost = {pair: entry.nbytes for pair, entry in zip(shard.pairs, shard.entries, strict=True)}
    return in_order(
        lambda pair: reader.read(pair, decoded.read),
        shard.pairs,
        workers=workers,
        cost=lambda pair: shard.planes * cost[pair],
    )


def _compared(
    shard: PlannedShard, index: ShardIndex, images: Images | None
) -> Generator[Row, None, None]:
    """Yield (name, sha256_lq, sha256_gt) of each pair of a shard that is kept.

    Args:
        shard: the shard as planned.
        index: what it contains.
        images: the images of its pairs' files, to be compared; None if they need not be.

    Raises:
        UsageError: an image differs from the one in the shard.
    """
    names = [entry.name for entry in index.entries]
    rows = zip(names, index.sha256_lq or [None] * len(names), index.sha256_gt, strict=True)
    if images is None:
        yield from rows
        return
    with closing(images):
        for row, pair, (lq, gt) in zip(rows, shard.pairs, images, strict=True):
            for image, digest, path in ((lq, row[1], pair.lq), (gt, row[2], pair.gt)):
                if image is not None and hashlib.sha256(image).hexdigest() != digest:
                    raise UsageError(
                        "the image differs from the one in the shards of the output folder",
                        where=path,
                        hint="use --overwrite to replace them, or choose another folder",
                    )
            yield row


def _counted(found: FoundPairs, seen: SeenFiles, notices: Sequence[str]) -> PrepareResult:
    """Make the part of the result that checking and writing have in common."""
    remarks = seen.remarks([(pair.lq, pair.gt) for _, pair in found.pairs])
    return PrepareResult(
        layout=found.layout,
        task=found.task,
        pairs=len(found.pairs),
        train=len(found.splits["train"]),
        val=len(found.splits["val"]),
        unpaired=found.unpaired,
        notices=(*found.notices, *notices, *remarks),
    )
