"""What there is to prepare: pairs of files, or clean images with a degradation to draw."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from c2fdft_cli.data.images.picture import list_images, read_rgb8
from c2fdft_cli.data.layouts.pairs import Leftover, Pair, find_pairs
from c2fdft_cli.data.shards.format import Pixels
from c2fdft_cli.data.synthesis.degrade import Model, degrade, parse_model
from c2fdft_cli.data.synthesis.streaks import StreakBank
from c2fdft_cli.engine.prepare.split import choose_val
from c2fdft_cli.errors import DataError


@dataclass(frozen=True)
class Synthesis:
    """How to degrade clean images.

    Args:
        kind: "rain", "noise" or "blur".
        options: the model's options, see `data.synthesis.parse_model`.
        streaks: folder of rendered streak fields, for rain.
        store: write the degraded images too; False leaves them to be drawn while training.
    """

    kind: str
    options: Mapping[str, object] = field(default_factory=dict)
    streaks: Path | None = None
    store: bool = True


@dataclass(frozen=True)
class SourcePair:
    """One pair to prepare; `lq` is None where it is synthesised."""

    name: str
    lq: Path | None
    gt: Path


Splits: TypeAlias = dict[str, tuple[SourcePair, ...]]


@dataclass(frozen=True)
class Found:
    """All pairs of a source, dealt out to train and val, with what was left over."""

    layout: str
    splits: Splits
    leftovers: tuple[Leftover, ...]
    notices: tuple[str, ...]

    @property
    def pairs(self) -> list[tuple[str, SourcePair]]:
        """(split, pair) of all, those to validate on first."""
        return [(split, pair) for split, pairs in self.splits.items() for pair in pairs]


def find(
    source: Path,
    out: Path,
    *,
    val: int | Path | None,
    pairs_file: Path | None,
    gamma: bool,
    clean: bool,
) -> Found:
    """Find the pairs (or, if `clean`, the clean images) of a source and deal them out.

    Raises:
        DataError: nothing to prepare.
        UsageError: `val` leaves nothing to train on.
    """

    def look(root: Path, listed: Path | None) -> Found:
        found = _clean(root) if clean else _pairs(root, listed, gamma)
        return _outside(found, root, out)

    found = look(source, pairs_file)
    if not found.pairs:
        raise DataError("no images outside of the output folder", where=source)
    if isinstance(val, Path):
        other = look(val, None)
        everything = found.splits["train"] + found.splits.get("val", ())
        splits = {"val": tuple(pair for _, pair in other.pairs), "train": everything}
        more = list(other.notices)
    elif found.splits.get("val"):
        splits, more = _own_split(found, val)
    else:
        splits, more = _new_split(found.splits["train"], val)
    if not splits["train"]:
        raise DataError("no pairs to train on", where=source)
    return Found(found.layout, splits, found.leftovers, (*found.notices, *more))


def _own_split(found: Found, count: int | None) -> tuple[Splits, list[str]]:
    """The set's own split; a count takes so many of its val, and never trains on the rest."""
    train, val = found.splits["train"], found.splits["val"]
    if count is None or count >= len(val):
        return {"val": val, "train": train}, []
    names, notices = choose_val(val, count)
    notices.append(f"{len(val) - len(names)} pairs of the set's own val are left out")
    return {"val": tuple(pair for pair in val if pair.name in names), "train": train}, notices


def _new_split(pairs: tuple[SourcePair, ...], count: int | None) -> tuple[Splits, list[str]]:
    """A share of the pairs, by a hash of their names."""
    names, notices = choose_val(pairs, count)
    if not names and count is None:
        notices.append("no pair is left to validate on; --val names a folder of others")
    val = tuple(pair for pair in pairs if pair.name in names)
    return {"val": val, "train": tuple(pair for pair in pairs if pair.name not in names)}, notices


def _pairs(source: Path, pairs_file: Path | None, gamma: bool) -> Found:
    found = find_pairs(source, gamma=gamma, pairs_file=pairs_file)

    def plain(pairs: tuple[Pair, ...]) -> tuple[SourcePair, ...]:
        return tuple(SourcePair(pair.name, pair.lq, pair.gt) for pair in pairs)

    splits = {split: plain(pairs) for split, pairs in found.splits.items()}
    return Found(found.layout, splits, found.leftovers, found.notices)


def _clean(source: Path) -> Found:
    """A flat folder of clean images."""
    images = list_images(source)
    if not images:
        raise DataError(
            "no clean images in the folder", where=source, hint="images of sub-folders do not count"
        )
    stems = Counter(path.stem for path in images)
    pairs = tuple(
        SourcePair(path.stem if stems[path.stem] == 1 else path.name, None, path) for path in images
    )
    return Found("clean images", {"train": pairs}, (), ())


def _outside(found: Found, root: Path, out: Path) -> Found:
    """Without anything that lies in an output folder inside of `root`."""
    inner = out.resolve()
    if root.resolve() not in inner.parents:
        return found

    def is_out(path: Path | None) -> bool:
        return path is not None and inner in path.resolve().parents

    splits = {
        split: tuple(pair for pair in pairs if not (is_out(pair.lq) or is_out(pair.gt)))
        for split, pairs in found.splits.items()
    }
    leftovers = tuple(leftover for leftover in found.leftovers if not is_out(leftover.path))
    return replace(found, splits=splits, leftovers=leftovers)


class PairReader:
    """Reads pairs, or reads clean images and degrades them; safe to call from many threads.

    Args:
        synthesis: how to degrade clean images, or None for pairs.
        seed: with a pair's name, decides its degradation.

    Raises:
        UsageError: a degradation or an option of it that does not exist.
        DataError: no usable streak fields.
    """

    def __init__(self, synthesis: Synthesis | None, seed: int) -> None:
        self._synthesis = synthesis
        self._seed = seed
        self._model: Model | None = None
        self._streaks: StreakBank | None = None
        if synthesis is not None:
            self._model = parse_model(synthesis.kind, synthesis.options)
            self._streaks = StreakBank(synthesis.streaks) if synthesis.streaks else None

    @property
    def stores_lq(self) -> bool:
        """Whether shards get an lq."""
        return self._synthesis is None or self._synthesis.store

    @property
    def degradation(self) -> str:
        """The `degradation` attribute of shards: JSON text, or "" for pairs."""
        if self._synthesis is None or self._model is None:
            return ""
        values: dict[str, object] = {
            "kind": self._synthesis.kind,
            "options": asdict(self._model),
            "streaks": None if self._streaks is None else _fields_digest(self._streaks),
        }
        if self._synthesis.store:
            values["seed"] = self._seed
        return json.dumps(values, sort_keys=True)

    def read(self, pair: SourcePair) -> tuple[Pixels | None, Pixels]:
        """(lq, gt) of a pair, uint8 RGB [h, w, 3]; DataError where an image cannot be read."""
        gt = read_rgb8(pair.gt)
        if not self.stores_lq:
            return None, gt
        if self._model is None:
            if pair.lq is None:
                raise ValueError(f"{pair.name} has no lq")
            return read_rgb8(pair.lq), gt
        text = f"synthesis {self._seed} {pair.name}".encode("utf-8", "surrogateescape")
        key = np.frombuffer(hashlib.sha256(text).digest()[:16], "<u8")
        rng = np.random.Generator(np.random.Philox(key=key))
        return degrade(gt, self._model, rng, streaks=self._streaks), gt


def _fields_digest(streaks: StreakBank) -> str:
    """Names a bank of streak fields by its content."""
    digest = hashlib.sha256()
    for streak_field in streaks.fields:
        digest.update(repr(streak_field.shape).encode())
        digest.update(streak_field)
    return digest.hexdigest()
