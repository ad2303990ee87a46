"""Which shards there will be, which of them are there already, and whether they fit on the disk."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from c2fdft_cli.data.images.picture import image_size
from c2fdft_cli.data.shards.format import (
    Entry,
    ShardHeader,
    ShardIndex,
    deal,
    encode_name,
    shard_name,
)
from c2fdft_cli.data.shards.index import read_index
from c2fdft_cli.engine.prepare.source import Found, SourcePair
from c2fdft_cli.errors import DataError, ResourceError, UsageError
from c2fdft_cli.files import atomic_write_text, write_error
from c2fdft_cli.pipeline import in_order

MANIFEST = "shards.json"
MANIFEST_FORMAT = "c2fdft-shards"
_SHARD = re.compile(r"(train|val)-\d{5}\.h5")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp\.(h5|json)")


@dataclass(frozen=True)
class Measured:
    """Sizes of all pairs, and what is wrong with those that have none."""

    entries: dict[tuple[str, str], Entry]
    problems: list[DataError]


@dataclass(frozen=True)
class PlannedShard:
    """One shard to write: its file, its attributes, its pairs and their sizes."""

    path: Path
    header: ShardHeader
    pairs: tuple[SourcePair, ...]
    entries: tuple[Entry, ...]
    planes: int

    @property
    def nbytes(self) -> int:
        """About how large the file will be, from above."""
        text = max(len(entry.name.encode()) for entry in self.entries)
        index = len(self.entries) * (3 * 8 + 2 * 64 + text)
        return self.planes * sum(entry.nbytes for entry in self.entries) + index + (64 << 10)


@dataclass(frozen=True)
class Plan:
    """All shards of a set, those to validate on first, and a digest of what decides them."""

    shards: tuple[PlannedShard, ...]
    digest: str


def measure(found: Found, *, has_lq: bool, workers: int) -> Measured:
    """Read the sizes of all images from their headers; those of a pair must agree."""

    def size_of(item: tuple[str, SourcePair]) -> tuple[int, int] | DataError:
        try:
            return _size(item[1], has_lq=has_lq)
        except DataError as error:
            return error

    entries, problems = {}, []
    for (split, pair), size in zip(
        found.pairs, in_order(size_of, found.pairs, workers=workers), strict=True
    ):
        if isinstance(size, DataError):
            problems.append(size)
        else:
            entries[split, pair.name] = Entry(pair.name, *size)
    return Measured(entries, problems)


def _size(pair: SourcePair, *, has_lq: bool) -> tuple[int, int]:
    encode_name(pair.name)
    gt = image_size(pair.gt)
    if has_lq and pair.lq is not None and (lq := image_size(pair.lq)) != gt:
        raise DataError(
            f"sizes differ within pair {pair.name}: lq {lq[1]}x{lq[0]}, gt {gt[1]}x{gt[0]}",
            where=pair.lq,
            hint="crop them alike or remove the pair",
        )
    return gt


def make_plan(
    out: Path,
    found: Found,
    entries: Mapping[tuple[str, str], Entry],
    header: ShardHeader,
    *,
    has_lq: bool,
    max_shard_bytes: int,
) -> Plan:
    """Deal pairs out to shards from their sizes alone."""
    planes = 2 if has_lq else 1
    shards = []
    for split, pairs in found.splits.items():
        sized = [entries[split, pair.name] for pair in pairs]
        ranges = deal(sized, max_bytes=max_shard_bytes, planes=planes)
        shards += [
            PlannedShard(
                out / shard_name(split, number),
                replace(header, split=split, shard=number, shards=len(ranges)),
                tuple(pairs[i] for i in numbers),
                tuple(sized[i] for i in numbers),
                planes,
            )
            for number, numbers in enumerate(ranges)
        ]
    return Plan(tuple(shards), _digest(shards))


def _digest(shards: Sequence[PlannedShard]) -> str:
    """Over all that decides the shards' bytes, with files known by size and time of change."""
    rows = [
        [
            asdict(replace(shard.header, tool_version="")),
            [
                [entry.name, entry.height, entry.width, _signature(pair.lq), _signature(pair.gt)]
                for entry, pair in zip(shard.entries, shard.pairs, strict=True)
            ],
        ]
        for shard in shards
    ]
    return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()


def _signature(path: Path | None) -> list[int] | None:
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError as error:
        raise DataError("cannot read", where=path, hint=error.strerror) from error
    return [status.st_size, status.st_mtime_ns]


@dataclass(frozen=True)
class Settled:
    """What of a plan is done.

    Args:
        kept: shards that are there, as planned in names, sizes and attributes.
        doubtful: they were written from files of other times: their pixels are to be compared
            before `begin`.
    """

    kept: dict[Path, ShardIndex]
    doubtful: bool = False


def settle(out: Path, plan: Plan, *, overwrite: bool) -> Settled:
    """What of the plan is in the output folder already.

    Raises:
        UsageError: another set is there, and `overwrite` is off.
    """
    present = _present(out)
    if not present or overwrite:
        return Settled({})
    kept = _kept(plan, present)
    if _manifest_digest(out) == plan.digest:
        return Settled(kept)
    if len(kept) < len(present):
        raise UsageError(
            "the output folder holds shards of another set, or damaged ones",
            where=out,
            hint="--overwrite replaces them; or choose another folder",
        )
    return Settled(kept, doubtful=True)


def begin(out: Path, plan: Plan, kept: Mapping[Path, ShardIndex]) -> None:
    """Make the output folder the plan's: what is not kept goes, once its successor fits.

    Raises:
        ResourceError: the disk is too small, or the folder cannot be written.
    """
    needed = sum(shard.nbytes for shard in plan.shards if shard.path not in kept)
    _clear(out, [path for path in _present(out) if path not in kept], needed)
    atomic_write_text(out / MANIFEST, _manifest(plan))


def _present(out: Path) -> list[Path]:
    return [path for path in out.glob("*.h5") if _SHARD.fullmatch(path.name)]


def _clear(out: Path, replaced: Sequence[Path], needed: int) -> None:
    """Remove what will be replaced, once it is sure that its successors fit on the disk."""
    leftovers = [path for path in out.glob(".*.tmp.*") if _TEMPORARY.fullmatch(path.name)]
    try:
        freed = sum(path.stat().st_size for path in (*replaced, *leftovers))
        check_space(out, needed - freed)
        for path in (*replaced, *leftovers):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(error, out) from error


def _kept(plan: Plan, present: Sequence[Path]) -> dict[Path, ShardIndex]:
    """Shards that are as planned; of another version only when nothing is left to write."""
    kept = {}
    for shard in plan.shards:
        if shard.path not in present:
            continue
        try:
            index = read_index(shard.path)
        except DataError:  # damaged: written again
            continue
        same = replace(index.header, tool_version=shard.header.tool_version) == shard.header
        if (
            same
            and index.entries == shard.entries
            and (index.lq_start is None) == (shard.planes == 1)
        ):
            kept[shard.path] = index
    versions = {index.header.tool_version for index in kept.values()}
    if len(kept) == len(plan.shards) and len(versions) == 1:
        return kept
    return {
        shard.path: kept[shard.path]
        for shard in plan.shards
        if shard.path in kept and kept[shard.path].header == shard.header
    }


def _manifest(plan: Plan) -> str:
    values = {
        "format": MANIFEST_FORMAT,
        "format_version": 1,
        "plan": plan.digest,
        "shards": {shard.path.name: len(shard.pairs) for shard in plan.shards},
    }
    return json.dumps(values, indent=1) + "\n"


def _manifest_digest(out: Path) -> str | None:
    """The digest of the plan that the folder was begun with; None where that is not known."""
    path = out / MANIFEST
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    digest = values.get("plan") if isinstance(values, dict) else None
    return digest if isinstance(digest, str) else None


def free_bytes(folder: Path) -> int:
    """Free space on the disk that a folder lies on, or will lie on."""
    place = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(place).free


def check_space(out: Path, needed: int) -> None:
    """ResourceError where `needed` bytes do not fit on the disk of `out`."""
    free = free_bytes(out)
    if needed > free:
        raise ResourceError(
            f"the shards need {_gib(needed)}, {_gib(free)} are free",
            where=out,
            hint="free some space or choose another disk",
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
