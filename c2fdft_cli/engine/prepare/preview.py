"""A contact sheet of prepared pairs, to look at before a long training."""

from __future__ import annotations

from pathlib import Path

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.data.synthesis.degrade import contact_sheet
from c2fdft_cli.engine.prepare.job import PrepareOptions
from c2fdft_cli.engine.sampling.scoring import spread_indices
from c2fdft_cli.errors import UsageError

PAIRS = 12
COLUMNS = 3
TILE = 240


def write_preview(options: PrepareOptions, path: Path) -> None:
    """Write a sheet of pairs (degraded beside clean) spread over the training split.

    Raises:
        UsageError: shards that hold clean images only, or a check that wrote no shards.
    """
    if options.check_only:
        raise UsageError("--check writes nothing to preview", where="--preview")
    shards = ShardSet.open(options.out, "train")
    if not shards.has_lq:
        raise UsageError("clean-only shards have no pairs to show", where="--preview")
    pairs = [shards.pair(i) for i in spread_indices(len(shards), PAIRS)]
    save_rgb8(path, contact_sheet(pairs, COLUMNS, TILE))
