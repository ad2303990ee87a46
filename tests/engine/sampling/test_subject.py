"""What the metadata of a checkpoint say of its timesteps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from c2fdft_cli.engine.sampling.subject import trained_grid
from c2fdft_cli.engine.weights.checkpoint import Checkpoint, Meta
from c2fdft_cli.errors import CheckpointError
from c2fdft_cli.recipe.schema import Network


def swept(trained: Any) -> Checkpoint:
    """Fine weights whose timesteps a sweep has replaced."""
    metrics = {"sweep": {"trained_grid": trained, "psnr": 30.0}}
    meta = Meta(Network(), stage="fine", grid=[500], grid_from="sweep", metrics=metrics)
    return Checkpoint(Path("fine.pt"), {}, {}, meta)


def test_the_timesteps_of_the_training_outlast_a_sweep():
    assert trained_grid(swept([999, 500])) == [999, 500]
    assert trained_grid(swept(None)) is None
    coarse = swept([999])
    coarse.meta.stage = "coarse"
    assert trained_grid(coarse) is None


@pytest.mark.parametrize(
    "trained",
    [["x"], "x", 3, True, [True], [1.5], [float("inf")], [float("nan")], [[999]], [None], {}, [],
     [10**400], [1000], [-1], [500, 999]],
)  # fmt: skip
def test_what_are_no_timesteps_is_refused(trained):
    with pytest.raises(CheckpointError, match=r"fine\.pt: .*metrics\.sweep"):
        trained_grid(swept(trained))
