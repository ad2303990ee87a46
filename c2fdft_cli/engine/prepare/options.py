"""What the user asks `prepare` for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from c2fdft_cli.errors import UsageError
from c2fdft_cli.settings import OVERWRITE, SEED, check_settings, setting

MIB = 1 << 20

PAIRS, SHARDS = "Pairs", "Shards"
"""Headings of the options that most people leave alone."""


def parse_validation(text: str) -> int | Path:
    """A number of pairs, or the folder that holds them; UsageError for nothing."""
    if not text:
        what = "--val is empty"
        raise UsageError(what, hint="give a number of pairs, or the folder that holds them")
    return Path(text) if (count := _count(text)) is None else count


def parse_mib(text: str) -> int:
    """Bytes out of a whole number of MiB; anything else is below every limit."""
    return (_count(text) or 0) * MIB


def _count(text: str) -> int | None:
    """A whole number; None for other text."""
    # Python refuses to convert numbers of thousands of digits, and a hundred are as far too many
    return int(text[:100]) if text.isdecimal() else None


@dataclass(frozen=True)
class Synthesis:
    """How to degrade clean images.

    Args:
        kind: "rain", "noise" or "blur".
        options: the model's options, see `data.synthesis.degrade.parse_model`.
        streaks: folder of rendered streak masks, for rain.
        store: write the degraded images too; False leaves them to be made while training.
    """

    kind: str
    options: Mapping[str, object] = field(default_factory=dict)
    streaks: Path | None = None
    store: bool = True


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare, and how.

    Args:
        source: a folder of pairs in any known layout; with `synthesize`, a flat one of clean
            images.
        val: None for the set's own val split, or else 5 % (at least 1, at most 50).
        synthesize: degrade clean images.
        max_shard_bytes: of pixels; a larger image gets a shard to itself.
    """

    source: Path
    out: Path | None = setting(
        None, "Folder for the shards (default: shards/NAME of SOURCE).", metavar="DIR"
    )
    val: int | Path | None = setting(
        None,
        "Validation: a number of pairs, or a folder of others (default: the set's own split, "
        "else 5 %, 1 to 50).",
        metavar="N|DIR",
        parse=parse_validation,
    )
    pairs_file: Path | None = setting(
        None,
        "CSV of pairs: lq,gt[,name]; or BasicSR's meta-info.",
        option="--pairs",
        metavar="FILE",
        panel=PAIRS,
    )
    side_by_side: str | None = setting(
        None,
        "Each picture shows a pair side by side (pix2pix): the half that is degraded.",
        choices=("left", "right"),
        panel=PAIRS,
    )
    gamma: bool = setting(False, "GoPro: use the blur_gamma images.", panel=PAIRS)
    synthesize: Synthesis | None = None
    check_only: bool = setting(False, "Look at everything, write nothing.", option="--check")
    max_shard_bytes: int = setting(
        "1024",
        "Largest shard, in MiB",
        option="--shard-mib",
        metavar="N",
        parse=parse_mib,
        panel=SHARDS,
    )
    seed: int = setting(0, replace(SEED, panel=SHARDS))
    workers: int = setting(
        0, "Decoding threads, 0 for one per core.", metavar="N", low=0, panel=SHARDS
    )
    overwrite: bool = setting(False, OVERWRITE)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.max_shard_bytes < 1:
            raise UsageError("--shard-mib must be a whole number of MiB, at least 1")

    @property
    def folder(self) -> Path:
        """Of the shards."""
        return self.out or Path("shards") / self.source.resolve().name
