"""Turn a folder of images into shards: one job, resumable, byte-identical for identical input."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from c2fdft_cli import __version__
from c2fdft_cli.data.layouts.pairs import Leftover
from c2fdft_cli.data.shards.format import Pixels, ShardHeader, ShardIndex, clean_text
from c2fdft_cli.data.shards.writer import ShardWriter
from c2fdft_cli.engine.prepare.inspect import CheckReport, look, summarise
from c2fdft_cli.engine.prepare.plan import (
    Plan,
    PlannedShard,
    begin,
    free_bytes,
    make_plan,
    measure,
    settle,
)
from c2fdft_cli.engine.prepare.source import Found, PairReader, Synthesis, find
from c2fdft_cli.engine.prepare.split import SplitGuard
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.files import ensure_folder
from c2fdft_cli.pipeline import in_order
from c2fdft_cli.progress import Job

DEFAULT_SHARD_BYTES = 1 << 30
Rows = Generator[tuple[str, str | None, str], None, None]


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare, and how.

    Args:
        source: a folder of pairs in any known layout; with `synthesize`, a flat one of clean
            images.
        out: folder for the shards.
        val: how many pairs validate, or a folder of others; None for the set's own split, or else
            5 % (at least 1, at most 50).
        pairs_file: CSV file that lists the pairs.
        gamma: take GoPro's blur_gamma.
        synthesize: degrade clean images.
        check_only: look at everything, write nothing.
        max_shard_bytes: most pixel bytes in a shard (a larger image gets one to itself).
        patch_cycle: stored in the shards, JSON text.
        seed: decides synthetic degradations.
        workers: threads; 0 for one per core.
        overwrite: replace another set in `out`.
    """

    source: Path
    out: Path
    val: int | Path | None = None
    pairs_file: Path | None = None
    gamma: bool = False
    synthesize: Synthesis | None = None
    check_only: bool = False
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    patch_cycle: str = ""
    seed: int = 0
    workers: int = 0
    overwrite: bool = False


@dataclass(frozen=True)
class PairWritten:
    """One pair is in its shard, or was looked at.

    Args:
        name: the pair's name.
        split: "train" or "val".
        shard: its file; None if only looked at.
        kept: the shard was there already.
        problem: what is wrong with it (only if looked at).
    """

    name: str
    split: str
    shard: Path | None = None
    kept: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class PrepareResult:
    """What was found and written.

    Args:
        layout: how the pairs lay, for people.
        pairs: number of pairs, train and val together.
        train, val: how many of each.
        leftovers: images that belong to no pair, with the reason.
        notices: what the user should know.
        failed: (name, problem) of pairs that cannot be used; only if `check_only`.
        shards: the shard files.
        bytes: size of all shards together.
        up_to_date: nothing had to be written.
        report: what `check_only` saw; None if no pair could be read.
    """

    layout: str
    pairs: int
    train: int
    val: int
    leftovers: tuple[Leftover, ...]
    notices: tuple[str, ...]
    failed: tuple[tuple[str, str], ...] = ()
    shards: tuple[Path, ...] = ()
    bytes: int = 0
    up_to_date: bool = False
    report: CheckReport | None = None


def prepare(options: PrepareOptions) -> Job[PairWritten, PrepareResult]:
    """Find the pairs at once; write their shards, or look at them, while the job is iterated.

    An interrupted run continues where it stopped: whole shards are kept, and the result has the
    same bytes as without the interruption.

    Raises:
        DataError: no pairs, an unreadable image, sizes that differ within a pair, the same image
            in train and val.
        UsageError: options that do not fit, another set in `out`.
        ResourceError: the disk is too small, or `out` cannot be written.
    """
    if options.max_shard_bytes < 1:
        raise UsageError(f"shards of {options.max_shard_bytes} bytes", hint="use 1 or more")
    if options.synthesize and options.pairs_file:
        raise UsageError("a list of pairs needs no synthesis", where=options.pairs_file)
    reader = PairReader(options.synthesize, options.seed)
    found = find(
        options.source,
        options.out,
        val=options.val,
        pairs_file=options.pairs_file,
        gamma=options.gamma,
        clean=options.synthesize is not None,
    )
    work = _look if options.check_only else _write
    return Job(work(options, reader, found), total=len(found.pairs), title="prepare", unit="pair")


def _look(
    options: PrepareOptions, reader: PairReader, found: Found
) -> Generator[PairWritten, None, PrepareResult]:
    """Read everything, write nothing."""
    guard, looked = SplitGuard(), []
    with closing(look(reader, found, workers=options.workers)) as rows:
        for one in rows:
            if one.problem is None:
                guard.add(one.split, one.name, one.sha256_lq, one.sha256_gt)
            looked.append(one)
            yield PairWritten(one.name, one.split, problem=one.problem)
    notices = list(found.notices)
    same = sum(1 for one in looked if one.psnr_y is not None and math.isinf(one.psnr_y))
    if same:
        notices.append(f"{same} degraded images equal their clean ones")
    report = None
    if any(one.size for one in looked):
        free = free_bytes(options.out)
        report = summarise(looked, has_lq=reader.stores_lq, bytes_free=free)
    return replace(
        _counted(found),
        notices=tuple(notices),
        failed=tuple((one.name, one.problem) for one in looked if one.problem is not None),
        report=report,
    )


def _write(
    options: PrepareOptions, reader: PairReader, found: Found
) -> Generator[PairWritten, None, PrepareResult]:
    """Write the shards that are not there yet."""
    plan = _plan(options, reader, found)
    ensure_folder(options.out)
    settled = settle(options.out, plan, overwrite=options.overwrite)
    kept, guard = settled.kept, SplitGuard()

    def guarded(shard: PlannedShard, rows: Rows) -> Generator[PairWritten, None, None]:
        split = shard.header.split
        with closing(rows):
            for name, sha256_lq, sha256_gt in rows:
                guard.add(split, name, sha256_lq, sha256_gt)
                yield PairWritten(name, split, shard.path, kept=shard.path in kept)

    for shard in plan.shards:
        if (index := kept.get(shard.path)) is not None:
            rows = _old_rows(index)
            if settled.doubtful:
                rows = _compared_rows(shard, rows, reader, options.workers)
            yield from guarded(shard, rows)
    begin(options.out, plan, kept)
    for shard in plan.shards:
        if shard.path not in kept:
            yield from guarded(shard, _new_rows(shard, reader, options.workers))
    paths = tuple(shard.path for shard in plan.shards)
    return replace(
        _counted(found),
        shards=paths,
        bytes=sum(path.stat().st_size for path in paths),
        up_to_date=len(kept) == len(paths),
    )


def _plan(options: PrepareOptions, reader: PairReader, found: Found) -> Plan:
    measured = measure(found, has_lq=reader.stores_lq, workers=options.workers)
    if measured.problems:
        first, *others = measured.problems
        raise DataError(
            first.what,
            where=first.where,
            hint=first.hint,
            details=[*first.details, *map(str, others)],
        )
    header = ShardHeader(
        split="",
        patch_cycle=options.patch_cycle,
        layout=clean_text(found.layout),
        source=clean_text(options.source.resolve().name),
        tool_version=__version__,
        degradation=reader.degradation,
    )
    return make_plan(
        options.out,
        found,
        measured.entries,
        header,
        has_lq=reader.stores_lq,
        max_shard_bytes=options.max_shard_bytes,
    )


def _old_rows(index: ShardIndex) -> Rows:
    """(name, sha256_lq, sha256_gt) of each pair of a shard that is there."""
    for i, entry in enumerate(index.entries):
        yield entry.name, index.sha256_lq[i] if index.sha256_lq else None, index.sha256_gt[i]


def _compared_rows(shard: PlannedShard, rows: Rows, reader: PairReader, workers: int) -> Rows:
    """The rows of a shard that is there, each once its pair's files hold the same pixels."""
    with closing(rows), closing(_images(shard, reader, workers)) as images:
        for row, pair, (lq, gt) in zip(rows, shard.pairs, images, strict=True):
            for image, digest, path in ((lq, row[1], pair.lq), (gt, row[2], pair.gt)):
                if image is not None and hashlib.sha256(image).hexdigest() != digest:
                    raise UsageError(
                        "the image is not the one in the shards of the output folder",
                        where=path or pair.gt,
                        hint="--overwrite replaces them; or choose another folder",
                    )
            yield row


def _new_rows(shard: PlannedShard, reader: PairReader, workers: int) -> Rows:
    """The rows of a shard as each pair is written."""
    writer = ShardWriter(shard.path, shard.header, shard.entries, has_lq=reader.stores_lq)
    with writer, closing(_images(shard, reader, workers)) as images:
        for entry, (lq, gt) in zip(shard.entries, images, strict=True):
            yield entry.name, *writer.add(lq, gt)


def _images(
    shard: PlannedShard, reader: PairReader, workers: int
) -> Generator[tuple[Pixels | None, Pixels], None, None]:
    """(lq, gt) of each pair."""
    cost = {pair.name: entry.nbytes for pair, entry in zip(shard.pairs, shard.entries, strict=True)}
    return in_order(
        reader.read,
        shard.pairs,
        workers=workers,
        cost=lambda pair: shard.planes * cost[pair.name],
    )


def _counted(found: Found) -> PrepareResult:
    """The result so far."""
    return PrepareResult(
        layout=found.layout,
        pairs=len(found.pairs),
        train=len(found.splits["train"]),
        val=len(found.splits["val"]),
        leftovers=found.leftovers,
        notices=found.notices,
    )
