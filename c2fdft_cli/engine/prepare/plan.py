"""Which shards there will be, which of them are there already, and whether they fit on the disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from c2fdft_cli.data.images.picture import image_size
from c2fdft_cli.data.layouts.pairs import FilePair, half_width
from c2fdft_cli.data.shards.format import (
    MAX_SHARDS,
    Entry,
    ShardHeader,
    ShardIndex,
    deal,
    make_entry,
    shard_name,
)
from c2fdft_cli.data.shards.index import read_index
from c2fdft_cli.engine.prepare.source import Splits
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.files import atomic_write_text, check_space, write_error
from c2fdft_cli.pipeline import in_order
from c2fdft_cli.validation import InvalidValuesError, validate

MANIFEST = "shards.json"
MANIFEST_FORMAT = "c2fdft-shards"
_SHARD = re.compile(r"(train|val)-\d{5}\.h5")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp\.(h5|json)")


@dataclass(frozen=True)
class PlannedShard:
    """One shard to write: its file, its attributes, its pairs and their sizes."""

    path: Path
    header: ShardHeader
    pairs: tuple[FilePair, ...]
    entries: tuple[Entry, ...]
    planes: int

    @property
    def nbytes(self) -> int:
        """About how large the file will be, from above."""
        text = max(len(entry.name.encode()) for entry in self.entries)
        # The columns of the index: offset, height and width, two digests of 64 digits, and the
        # name, which HDF5 pads to the longest. 64 KiB are room for headers and attributes.
        index = len(self.entries) * (3 * 8 + 2 * 64 + text)
        return self.planes * sum(entry.nbytes for entry in self.entries) + index + (64 << 10)


@dataclass(frozen=True)
class Plan:
    """All shards of a set, those to validate on first, and a digest of what decides them."""

    shards: tuple[PlannedShard, ...]
    digest: str


def measure(
    pairs: Sequence[FilePair], *, workers: int, halves: bool = False
) -> dict[FilePair, Entry]:
    """Name and size of each pair, from its images' headers; `halves` of one for side by side.

    Raises:
        DataError: images that cannot be read or stored, or that differ in size within a pair; all
            are listed.
    """

    def measured(pair: FilePair) -> Entry | DataError:
        try:
            height, width = _size(pair)
            width = half_width(pair.gt, width) if halves else width
            return make_entry(pair.name, height, width, pair.gt)
        except DataError as error:
            return error

    entries, problems = {}, []
    for pair, entry in zip(pairs, in_order(measured, pairs, workers=workers), strict=True):
        if isinstance(entry, DataError):
            problems.append(entry)
        else:
            entries[pair] = entry
    if problems:
        first, *others = problems
        details = [*first.details, *map(str, others)]
        raise DataError(first.what, where=first.where, hint=first.hint, details=details)
    return entries


def _size(pair: FilePair) -> tuple[int, int]:
    gt = image_size(pair.gt)
    if pair.lq != pair.gt and (lq := image_size(pair.lq)) != gt:
        raise DataError(
            f"the sizes differ within pair {pair.name}: lq {lq[1]}x{lq[0]}, gt {gt[1]}x{gt[0]}",
            where=pair.lq,
            hint="crop them alike or remove the pair",
        )
    return gt


def make_plan(
    out: Path,
    splits: Splits,
    entries: Mapping[FilePair, Entry],
    header: ShardHeader,
    *,
    has_lq: bool,
    max_shard_bytes: int,
) -> Plan:
    """Distribute pairs over shards from their sizes alone; UsageError for too many shards."""
    planes = 2 if has_lq else 1
    shards = []
    for split, pairs in splits.items():
        sized = [entries[pair] for pair in pairs]
        ranges = deal(sized, max_bytes=max_shard_bytes, planes=planes)
        if len(ranges) > MAX_SHARDS:
            raise UsageError(
                f"{split} would have {len(ranges)} shards, more than {MAX_SHARDS}",
                hint="give a larger --shard-mib",
            )
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
                [entry.name, entry.height, entry.width, *_signatures(pair)]
                for entry, pair in zip(shard.entries, shard.pairs, strict=True)
            ],
        ]
        for shard in shards
    ]
    return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()


def _signatures(pair: FilePair) -> list[list[int] | None]:
    """Size and time of change of both files; None for an lq that is synthesised."""
    signatures: list[list[int] | None] = []
    for path in (pair.lq, pair.gt):
        try:
            status = path.stat()
        except OSError as error:
            raise DataError("cannot read the file", where=path, hint=error.strerror) from error
        signatures.append([status.st_size, status.st_mtime_ns])
    return [None, signatures[1]] if pair.lq == pair.gt else signatures


@dataclass(frozen=True)
class ValChoice:
    """Which pairs were chosen to validate on, remembered so that nothing is decoded to know it.

    Args:
        inputs: digest of what it was chosen from (`choice_inputs`).
        names: of the pairs.
        notices: what the user should know about it.
    """

    inputs: str
    names: tuple[str, ...]
    notices: tuple[str, ...]


def choice_inputs(
    candidates: Sequence[FilePair], size: int, degraded_half: str | None = None
) -> str:
    """Digest of all that decides a choice, with files known by size and time of change."""
    rows = [[pair.name, *_signatures(pair)] for pair in candidates]
    # without halves as before there were any, so that choices made then are still remembered
    values = [size, rows] if degraded_half is None else [size, rows, degraded_half]
    return hashlib.sha256(json.dumps(values).encode("ascii")).hexdigest()


def remembered_choice(out: Path, inputs: str) -> ValChoice | None:
    """The choice that the shards in `out` were begun with, if it was made from these inputs."""
    try:
        choice = validate(ValChoice, _read_manifest(out).get("val"))
    except InvalidValuesError:  # none, or one that somebody has edited
        return None
    return choice if choice.inputs == inputs else None


def find_existing(out: Path, plan: Plan, *, overwrite: bool) -> tuple[dict[Path, ShardIndex], bool]:
    """What of the plan is in the output folder already.

    Returns:
        The shards that exist, as planned in names, sizes and attributes; and whether they were
        written from files with other times of change: their pixels are to be compared before
        `begin`.

    Raises:
        UsageError: another set is there, and `overwrite` is off.
    """
    present = _present(out)
    if not present or overwrite:
        return {}, False
    kept = _kept(plan, present)
    if _read_manifest(out).get("plan") == plan.digest:
        return kept, False
    # Another set, or the same files with other times of change, as after a copy. Then shards are
    # kept all or none, and after their pixels were compared.
    if len(kept) < len(present):
        raise UsageError(
            "the output folder holds shards of another set, or damaged ones",
            where=out,
            hint="--overwrite replaces them; or choose another folder",
        )
    return kept, True


def begin(out: Path, plan: Plan, kept: Collection[Path], choice: ValChoice | None) -> None:
    """Make the output folder the plan's: what is not kept is removed, once its successor fits.

    Raises:
        ResourceError: the disk is too small, or the folder cannot be written.
    """
    needed = sum(shard.nbytes for shard in plan.shards if shard.path not in kept)
    # Cleared before the manifest is written: with its digest in place, the pixels of shards that
    # are there are no longer compared, so none of another set may be left.
    _clear(out, [path for path in _present(out) if path not in kept], needed)
    atomic_write_text(out / MANIFEST, _manifest(plan, choice))


def _present(out: Path) -> list[Path]:
    return [path for path in out.glob("*.h5") if _SHARD.fullmatch(path.name)]


def _clear(out: Path, replaced: Sequence[Path], needed: int) -> None:
    """Remove what will be replaced, once it is sure that its successors fit on the disk."""
    unfinished = [path for path in out.glob(".*.tmp.*") if _TEMPORARY.fullmatch(path.name)]
    try:
        freed = sum(path.stat().st_size for path in (*replaced, *unfinished))
        check_space(out, needed - freed)
        for path in (*replaced, *unfinished):
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
    # What is written now is of this version, and `ShardSet` refuses a set whose headers differ.
    versions = {index.header.tool_version for index in kept.values()}
    if len(kept) == len(plan.shards) and len(versions) == 1:
        return kept
    return {
        shard.path: kept[shard.path]
        for shard in plan.shards
        if shard.path in kept and kept[shard.path].header == shard.header
    }


def _manifest(plan: Plan, choice: ValChoice | None) -> str:
    values: dict[str, object] = {
        "format": MANIFEST_FORMAT,
        "format_version": 1,
        "plan": plan.digest,
        "shards": {shard.path.name: len(shard.pairs) for shard in plan.shards},
    }
    if choice is not None:
        values["val"] = asdict(choice)
    return json.dumps(values, indent=1) + "\n"


def _read_manifest(out: Path) -> dict[str, Any]:
    """The manifest that the folder was begun with; empty where there is none to be read."""
    path = out / MANIFEST
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
