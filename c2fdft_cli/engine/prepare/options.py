"""The options of `prepare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from c2fdft_cli.errors import UsageError
from c2fdft_cli.settings import OVERWRITE, SEED, check_settings, setting

MIB = 1 << 20

PAIRS, SHARDS = "Pairs", "Shards"
"""Headings in the help for options that most users need not change."""


def parse_validation(text: str) -> int | Path:
    """Parse a number of pairs, or the path of their folder or list; UsageError for no text."""
    if not text:
        what = "--val is empty"
        raise UsageError(what, hint="give a number, a folder or a list of pairs")
    return Path(text) if (count := _count(text)) is None else count


def parse_mib(text: str) -> int:
    """Convert a whole number of MiB to bytes; any other text gives 0, which is refused later."""
    return (_count(text) or 0) * MIB


def _count(text: str) -> int | None:
    """Parse a whole number; None for any other text."""
    # Python refuses to convert thousands of digits, so the text is cut: a number of a hundred
    # digits is too large as well.
    return int(text[:100]) if text.isdecimal() else None


@dataclass(frozen=True)
class Synthesis:
    """How to degrade clean images.

    Args:
        kind: the degradation, a key of `data.synthesis.degrade.MODELS`.
        options: the model's options, see `data.synthesis.degrade.parse_model`.
        streaks: folder of rendered streak masks, for rain.
        store: whether to write the degraded images too; otherwise they are made during training.
    """

    kind: str
    options: Mapping[str, object] = field(default_factory=dict)
    streaks: Path | None = None
    store: bool = True


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare, and how.

    Args:
        source: a folder of pairs in any known layout; with `synthesize`, a folder of clean images,
            without its sub-folders.
        val: number of validation pairs, a folder of them, or a file that lists them, which are then
            not trained on; None for the set's own val split or, if it has none, 5 % (at least 1, at
            most 50).
        synthesize: how to degrade clean images; None for pairs.
        max_shard_bytes: limit on the pixels of a shard; a larger image gets a separate shard.
    """

    source: Path
    out: Path | None = setting(
        None, "Folder for the shards (default: shards/NAME of SOURCE).", metavar="DIR"
    )
    val: int | Path | None = setting(
        None,
        "Validation pairs: a number, a folder of other pairs, or a list as for --pairs (default: "
        "the set's own split, otherwise 5 %, 1 to 50).",
        metavar="N|DIR|FILE",
        parse=parse_validation,
    )
    pairs_file: Path | None = setting(
        None,
        "CSV file of pairs (lq,gt[,name]), or a meta-info file of BasicSR.",
        option="--pairs",
        metavar="FILE",
        panel=PAIRS,
    )
    side_by_side: str | None = setting(
        None,
        "Pictures that show a pair side by side (pix2pix): which half is degraded.",
        choices=("left", "right"),
        panel=PAIRS,
    )
    gamma: bool = setting(False, "GoPro: use the blur_gamma images.", panel=PAIRS)
    synthesize: Synthesis | None = None
    check_only: bool = setting(False, "Check all pairs, write nothing.", option="--check")
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
        """The folder of the shards."""
        return self.out or Path("shards") / self.source.resolve().name
