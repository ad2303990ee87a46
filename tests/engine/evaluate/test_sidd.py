"""eval on SIDD's blocks: files, restored results, and weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c2fdft_cli.data.layouts.sidd import NOISY, RESULTS, TARGET
from c2fdft_cli.engine.evaluate.job import EvalOptions
from c2fdft_cli.engine.evaluate.metrics import find_metrics
from c2fdft_cli.engine.evaluate.options import WeightsOptions
from c2fdft_cli.engine.evaluate.sidd import evaluate_blocks, open_blocks
from c2fdft_cli.engine.evaluate.weights import evaluate_weights
from c2fdft_cli.errors import DataError
from c2fdft_cli.metrics.protocols import PROTOCOLS, score
from tests.kit.weights import write_random

io = pytest.importorskip("scipy.io")

SHAPE = (2, 3, 24, 32, 3)


def clean(shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    s, b, y, x, c = np.indices(shape)
    waves = np.sin(0.3 * x + s) * np.cos(0.25 * y + c + b)
    return (128 + 90 * waves).round().astype(np.uint8)


def noisy() -> np.ndarray[Any, Any]:
    i = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    return (clean() + 20 * np.sin(12.9898 * i)).clip(0, 255).round().astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, pixels in ((NOISY, noisy()), (TARGET, clean())):
        io.savemat(tmp_path / f"{name}.mat", {name: pixels})
    return tmp_path


def test_noisy_blocks_are_scored_against_clean_ones(folder: Path) -> None:
    pairs = open_blocks(folder)
    result = evaluate_blocks(pairs, EvalOptions(metrics=find_metrics("gmsd"))).run()
    assert result.protocol.name == "denoise"
    assert result.scored_on == f"{NOISY} of {NOISY}.mat, 8 bit"
    assert [row.name for row in result.rows] == pairs.names
    assert result.rows[4].name == "scene-02_block-02"
    a, b = (torch.from_numpy(x[1, 1]).permute(2, 0, 1)[None] for x in (noisy(), clean()))
    want = score(a, b, PROTOCOLS["rgb"])[0]
    got = result.rows[4]
    assert (got.psnr, got.ssim) == pytest.approx((want.psnr, want.ssim))
    assert 0 < got.more["gmsd"] < 0.35


def test_of_a_file_that_also_has_the_clean_blocks_the_results_are_scored(folder: Path) -> None:
    """MATLAB's save without names writes all variables, and clean blocks would score perfectly."""
    out = folder / "out.mat"
    io.savemat(out, {TARGET: clean(), NOISY: clean(), RESULTS: noisy()})
    ours = open_blocks(out).ours
    assert ours.variable == RESULTS
    np.testing.assert_array_equal(ours.pixels, noisy())


def test_results_are_scored_against_clean_blocks(folder: Path) -> None:
    out = folder / "mine" / "out.mat"
    out.parent.mkdir()
    io.savemat(out, {RESULTS: clean()})
    for target in (folder, folder / f"{TARGET}.mat"):
        rows = evaluate_blocks(open_blocks(out, target), EvalOptions("rgb")).run().rows
        assert all(row.psnr == math.inf for row in rows)


@pytest.mark.parametrize(
    ("remove", "target", "message"),
    [
        (TARGET, None, f"no {TARGET}.mat in the folder"),
        (NOISY, None, f"no {NOISY}.mat in the folder"),
        (None, f"{NOISY}.mat", f"no variable {TARGET}"),
        (None, "nowhere.mat", "no such file"),
        (None, "shape.mat", r"differ in shape: \[2, 3, 24, 32, 3\], \[2, 2, 24, 32, 3\]"),
    ],
)
def test_invalid_partners_of_blocks_are_refused(
    folder: Path, remove: str | None, target: str | None, message: str
) -> None:
    if remove is not None:
        (folder / f"{remove}.mat").unlink()
    io.savemat(folder / "shape.mat", {TARGET: clean((2, 2, 24, 32, 3))})
    with pytest.raises(DataError, match=message):
        open_blocks(folder, None if target is None else folder / target)


def test_weights_restore_and_score_each_block(folder: Path) -> None:
    weights = write_random(folder / "fine.pt", protocol="derain", stage="fine", grid=[999])
    pairs = open_blocks(folder)
    runs = WeightsOptions(device="cpu", precision="fp32")
    result = evaluate_weights(weights, runs, EvalOptions(), pairs=pairs).run()
    assert result.protocol.name == "denoise"
    assert result.chosen_by == "the one for SIDD's blocks"
    assert result.scored_on == "network output, unrounded"
    assert [row.name for row in result.rows] == pairs.names
    before = evaluate_blocks(pairs, EvalOptions()).run().rows
    for row, noise in zip(result.rows, before, strict=True):
        assert row.degraded is not None
        assert row.degraded.psnr == pytest.approx(noise.psnr)
        assert row.psnr != noise.psnr
    few = evaluate_weights(weights, replace(runs, images=2), EvalOptions("rgb"), pairs=pairs)
    names = [row.name for row in few.run().rows]
    assert names == ["scene-01_block-01", "scene-02_block-01"]
