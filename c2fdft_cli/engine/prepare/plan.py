"""Plans which shards to write, which existing ones to keep, and whether they fit on the disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from c2fdft_cli.data.images.picture import FramesAndProfile, size_frames_and_profile
from c2fdft_cli.data.layouts.listing import SeenFiles
from c2fdft_cli.data.layouts.pairs import FilePair, check_sizes, half_width
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
from c2fdft_cli.data.synthesis.degrade import parse_model
from c2fdft_cli.engine.prepare.source import Splits
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.files.failures import read_error, write_error
from c2fdft_cli.files.folders import check_space
from c2fdft_cli.files.writing import atomic_write_text, unfinished
from c2fdft_cli.pipeline import in_order
from c2fdft_cli.progress import Looked, counted
from c2fdft_cli.validation import InvalidValuesError, validate

Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

MANIFEST = "shards.json"
MANIFEST_FORMAT = "c2fdft-shards"
_SHARD = re.compile(r"(train|val)-\d{5}\.h5")


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
        """An upper estimate of the size of the file in bytes."""
        text = max(len(entry.name.encode()) for entry in self.entries)
        # The columns of the index: offset, height and width, two digests of 64 digits, and the
        # name, which HDF5 pads to the longest. 64 KiB are for headers and attributes.
        index = len(self.entries) * (3 * 8 + 2 * 64 + text)
        return self.planes * sum(entry.nbytes for entry in self.entries) + index + (64 << 10)


@dataclass(frozen=True)
class Plan:
    """All shards of a set, the val split first, and a digest of everything that determines them."""

    shards: tuple[PlannedShard, ...]
    digest: str


class Measured(NamedTuple):
    """Name and size of each pair, and what else the headers of its images say."""

    entries: Mapping[FilePair, Entry]
    seen: SeenFiles


def measure(
    pairs: Sequence[FilePair],
    *,
    workers: int,
    halves: bool = False,
    looked: Looked = lambda *_: None,
) -> Measured:
    """Read name and size of each pair from the headers of its images; each file is opened once.

    Args:
        pairs: the pairs.
        workers: threads, 0 for one per core.
        halves: whether each image shows a pair side by side.
        looked: is told how many of how many files were read.

    Raises:
        DataError: images that cannot be read or stored, or that differ in size within a pair; all
            of them are listed.
    """
    sizes, seen = _look(pairs, workers, looked)

    def size_of(path: Path) -> Size:
        found = sizes[path]
        if isinstance(found, DataError):
            raise found
        return found

    entries, problems = {}, []
    for pair in pairs:
        try:
            height, width = check_sizes(pair, size_of)
            width = half_width(pair.gt, width) if halves else width
            entries[pair] = make_entry(pair.name, height, width, pair.gt)
        except DataError as error:
            problems.append(error)
    if problems:
        first, *others = problems
        details = [*first.details, *map(str, others)]
        raise DataError(first.what, where=first.where, hint=first.hint, details=details)
    return Measured(entries, seen)


def _look(
    pairs: Sequence[FilePair], workers: int, looked: Looked
) -> tuple[dict[Path, Size | DataError], SeenFiles]:
    """Read the headers of all files: (height, width) or the error, and what else they say."""

    def look(path: Path) -> tuple[Size | DataError, FramesAndProfile | None]:
        try:
            return size_frames_and_profile(path)
        except DataError as error:
            return error, None

    sizes: dict[Path, Size | DataError] = {}
    seen = SeenFiles()
    files = list(dict.fromkeys(path for pair in pairs for path in (pair.lq, pair.gt)))
    shown = counted(files, looked, "reading headers")
    for path, (size, found) in zip(shown, in_order(look, files, workers=workers), strict=True):
        sizes[path] = size
        seen.add(path, found)
    return sizes, seen


def make_plan(
    out: Path,
    splits: Splits,
    entries: Mapping[FilePair, Entry],
    header: ShardHeader,
    *,
    has_lq: bool,
    max_shard_bytes: int,
) -> Plan:
    """Distribute pairs over shards by their sizes alone; UsageError for too many shards."""
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
    """Digest everything that determines the shards' bytes, files by size and modification time."""
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
    """Return size and modification time of both files; None for an lq without its own file."""
    signatures: list[list[int] | None] = []
    for path in (pair.lq, pair.gt):
        try:
            status = path.stat()
        except OSError as error:
            raise read_error(error, path) from error
        signatures.append([status.st_size, status.st_mtime_ns])
    return [None, signatures[1]] if pair.lq == pair.gt else signatures


@dataclass(frozen=True)
class ValChoice:
    """The chosen validation pairs, stored so that a later run need not decode images to choose.

    Args:
        inputs: digest of everything that determined the choice (`choice_inputs`).
        names: names of the chosen pairs.
        notices: what the user should know about the choice.
    """

    inputs: str
    names: tuple[str, ...]
    notices: tuple[str, ...]


def choice_inputs(
    candidates: Sequence[FilePair], size: int, degraded_half: str | None = None
) -> str:
    """Digest everything that determines a choice, files by size and modification time."""
    rows = [[pair.name, *_signatures(pair)] for pair in candidates]
    # Without halves the digest is the same as before halves existed, so stored choices stay valid.
    values = [size, rows] if degraded_half is None else [size, rows, degraded_half]
    return hashlib.sha256(json.dumps(values).encode("ascii")).hexdigest()


def remembered_choice(out: Path, inputs: str) -> ValChoice | None:
    """Return the choice stored in `out` if it was made from these inputs, else None."""
    try:
        choice = validate(ValChoice, _read_manifest(out).get("val"))
    except InvalidValuesError:  # there is none, or it was edited
        return None
    return choice if choice.inputs == inputs else None


def find_existing(out: Path, plan: Plan, *, overwrite: bool) -> tuple[dict[Path, ShardIndex], bool]:
    """Find the shards of the plan that are in the output folder already.

    Returns:
        The existing shards whose names, sizes and attributes are as planned, by path; and whether
        their source files had other modification times, in which case their pixels must be compared
        before `begin`.

    Raises:
        UsageError: the folder contains another set, and `overwrite` is off.
    """
    present = _present(out)
    if not present or overwrite:
        return {}, False
    kept = _kept(plan, present)
    if _read_manifest(out).get("plan") == plan.digest:
        return kept, False
    # These are shards of another set, or of the same files with other modification times, as after
    # a copy. In the latter case all of them fit the plan, and the caller compares their pixels.
    if len(kept) < len(present):
        raise UsageError(
            "the output folder holds shards of another set, or damaged ones",
            where=out,
            hint="use --overwrite to replace them, or choose another folder",
        )
    return kept, True


def begin(out: Path, plan: Plan, kept: Collection[Path], choice: ValChoice | None) -> None:
    """Remove unfinished files and shards that are not kept, then write the manifest.

    They are removed only if the new shards then fit on the disk.

    Raises:
        ResourceError: the disk is too small, or the folder cannot be written.
    """
    needed = sum(shard.nbytes for shard in plan.shards if shard.path not in kept)
    removed = [path for path in _present(out) if path not in kept]
    removed += [path for path in unfinished(out) if path.suffix in (".h5", ".json")]
    # Remove first, then write the manifest: once it has the digest of this plan, the pixels of
    # existing shards are no longer compared, so no shard of another set may remain.
    try:
        check_space(out, needed - sum(path.stat().st_size for path in removed))
        for path in removed:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(error, out) from error
    atomic_write_text(out / MANIFEST, _manifest(plan, choice))


def _present(out: Path) -> list[Path]:
    return [path for path in out.glob("*.h5") if _SHARD.fullmatch(path.name)]


def _kept(plan: Plan, present: Sequence[Path]) -> dict[Path, ShardIndex]:
    """Return the existing shards that are as planned.

    Shards that another version of the program wrote count only if no shard is left to write.
    """
    kept = {}
    for shard in plan.shards:
        if shard.path not in present:
            continue
        try:
            index = read_index(shard.path)
        except DataError:  # it is damaged and will be written again
            continue
        if (
            _comparable(index.header) == _comparable(shard.header)
            and index.entries == shard.entries
            and (index.lq_start is None) == (shard.planes == 1)
        ):
            kept[shard.path] = index
    # New shards state the version of this program, and `ShardSet` refuses a set whose headers
    # differ.
    versions = {index.header.tool_version for index in kept.values()}
    if len(kept) == len(plan.shards) and len(versions) == 1:
        return kept
    return {
        shard.path: kept[shard.path]
        for shard in plan.shards
        if shard.path in kept and kept[shard.path].header == shard.header
    }


def _comparable(header: ShardHeader) -> tuple[ShardHeader, object]:
    """Return what decides whether two shards of a set mean the same.

    Options of a degradation that the version which wrote a shard did not have get their defaults.
    """
    plain = replace(header, tool_version="", degradation="")
    try:
        values = json.loads(header.degradation)
        options = parse_model(values["kind"], values["options"]).stored_options()
    except (ValueError, KeyError, TypeError, RecursionError, UsageError):
        return plain, header.degradation
    return plain, {**values, "options": options}


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
    """Read the manifest of the folder; empty if there is none or it is damaged.

    Raises:
        DataError: the system does not read it.
    """
    path = out / MANIFEST
    try:
        values = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    except OSError as error:  # it may hold the validation pairs, which must not be chosen anew
        raise read_error(error, path) from error
    return values if isinstance(values, dict) else {}
