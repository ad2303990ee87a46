"""The restore-and-score loop: order, names for the noise, rounding, and missing scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from c2fdft_cli.engine.sampling.executor import Restored
from c2fdft_cli.engine.sampling.pairs import DecodedPair
from c2fdft_cli.engine.sampling.scoring import (
    Scorer,
    notes_of,
    refuse_small,
    restore_and_score,
    spread_indices,
)
from c2fdft_cli.errors import DataError
from c2fdft_cli.metrics.protocols import PROTOCOLS
from tests.kit.formula import photo


class Source:
    """Grey targets with inputs that are 10 levels brighter."""

    found_by, note, unit = "hand", None, "image"

    def __init__(self, side: int = 16) -> None:
        self.side = side
        self.names = ["a", "b"]

    def __len__(self) -> int:
        return len(self.names)

    def pair(self, i: int) -> DecodedPair:
        gt = np.full((self.side, self.side, 3), 100, np.uint8)
        return DecodedPair(self.names[i], gt + 10, gt, f"{self.names[i]}.png")


class Brighter:
    """A restorer that brightens its input by a number of levels, and records the names."""

    def __init__(self, levels: float) -> None:
        self.levels = levels
        self.seen: list[str] = []

    def __call__(self, lq: torch.Tensor, names: Sequence[str]) -> Restored:
        self.seen += names
        return Restored(lq + self.levels / 255, None, "whole", [f"{names[0]} by {self.levels}"])


def run(restorers: Sequence[Any], scorer: Scorer, side: int = 16) -> list[Any]:
    return list(restore_and_score(Source(side), [0, 1], restorers, scorer))


def db(levels: float) -> float:
    return 20 * math.log10(255 / levels)


def test_each_pair_is_restored_by_each_restorer_in_order() -> None:
    restorers = [Brighter(-9), Brighter(10)]
    found = run(restorers, Scorer(PROTOCOLS["rgb"], inputs=True))
    assert [one.name for one in found] == ["a", "a", "b", "b"]
    assert [one.psnr for one in found] == pytest.approx([db(1), db(20)] * 2)
    assert [one.degraded.psnr for one in found] == pytest.approx([db(10)] * 4)
    assert [one.seen for one in restorers] == [["a.png", "b.png"]] * 2
    assert all(0 < one.seconds < 60 and one.pictures is None for one in found)


@pytest.mark.parametrize(("protocol", "levels"), [("rgb", 10.0), ("denoise", 10.25)])
def test_output_is_rounded_unless_the_protocol_says_otherwise(protocol: str, levels: float) -> None:
    assert run([Brighter(0.25)], Scorer(PROTOCOLS[protocol]))[0].psnr == pytest.approx(
        db(levels), abs=1e-4
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_restoration_that_is_not_finite_has_no_score(value: float) -> None:
    found = run([Brighter(value), Brighter(-9)], Scorer(PROTOCOLS["rgb"], pictures=True))
    assert math.isnan(found[0].psnr)
    assert math.isnan(found[0].ssim)
    assert found[0].pictures is None
    assert found[1].psnr == pytest.approx(db(1))
    assert notes_of(found[:3] * 2) == [f"a.png by {value}", "a.png by -9", f"b.png by {value}"]


def test_pictures_are_those_that_were_scored() -> None:
    views = run([Brighter(0.25)], Scorer(PROTOCOLS["denoise"], pictures=True))[0].pictures
    assert [int(view.max()) for view in (views.degraded, views.restored, views.target)] == [
        110,
        110,
        100,
    ]
    assert views.restored.shape == (16, 16, 3)
    assert views.restored.dtype == np.uint8


@pytest.mark.parametrize(("side", "border"), [(10, 0), (16, 3)])
def test_images_smaller_than_the_window_of_ssim(side: int, border: int) -> None:
    with pytest.raises(DataError, match=rf"a: {side} x {side} px, but SSIM needs 11 x 11"):
        run([Brighter(0)], Scorer(PROTOCOLS["rgb"], border), side)
    least = 11 + 2 * border
    refuse_small("a", least, least, border)
    for size in ((least - 1, 99), (99, least - 1)):
        with pytest.raises(DataError, match=f"a: {size[1]} x {size[0]} px, but SSIM needs"):
            refuse_small("a", *size, border)


def test_a_border_is_skipped_by_the_other_metrics_too() -> None:
    seen: list[tuple[int, ...]] = []

    def metric(*images: Tensor) -> float:
        seen.extend(tuple(one.shape) for one in images)
        return float(images[0].mean())

    image, target = torch.full((1, 3, 20, 24), 200.0), torch.zeros(1, 3, 20, 24)
    image[..., 3:-3, 3:-3] = 50
    more = [
        Scorer(PROTOCOLS["rgb"], border, {"mean": metric})("a", image, target).more["mean"]  # type: ignore[dict-item]
        for border in (0, 3)
    ]
    assert more[0] > more[1] == 50
    assert seen == [(1, 3, 20, 24)] * 2 + [(1, 3, 14, 18)] * 2


def test_other_metrics_score_the_shifted_image_without_the_protocol_s_border() -> None:
    wide = torch.from_numpy(photo(0, 70, 80)).permute(2, 0, 1)[None]
    target, shifted = wide[..., 4:66, 4:76], wide[..., 2:64, 5:77]
    seen: list[tuple[int, ...]] = []

    def error(a: Tensor, b: Tensor) -> float:
        seen.append(tuple(a.shape))
        return float((a - b).abs().max())

    levin = PROTOCOLS["levin"]
    found = Scorer(levin, border=1, metrics={"error": error})("a", shifted, target)
    assert (found.psnr, found.more["error"]) == (math.inf, 0)
    assert seen == [(1, 3, 62 - 2 * (levin.border + 1), 72 - 2 * (levin.border + 1))]


def test_a_requested_border_adds_to_that_of_the_protocol() -> None:
    own = PROTOCOLS["levin"].border
    assert own > 0
    with pytest.raises(DataError, match=f"inside a border of {own + 2} px"):
        run([Brighter(0)], Scorer(PROTOCOLS["levin"], 2), 2 * own + 14)


def test_metrics_are_computed_on_the_scored_image() -> None:
    mean: Callable[..., float] = lambda a, b: float(a.float().mean() - b.float().mean())  # noqa: E731
    assert run([Brighter(2)], Scorer(PROTOCOLS["rgb"], metrics={"m": mean}))[0].more == {"m": 12.0}


@pytest.mark.parametrize(
    ("count", "wanted", "indices"),
    [(10, 4, [0, 2, 5, 7]), (10, 1, [0]), (3, 0, [0, 1, 2]), (3, 3, [0, 1, 2]), (3, 9, [0, 1, 2]),
     (0, 4, [])],
)  # fmt: skip
def test_some_of_the_pairs_are_spread_over_all(count: int, wanted: int, indices: list[int]) -> None:
    assert spread_indices(count, wanted) == indices


@pytest.mark.parametrize(("protocol", "level"), [("rgb", 101), ("denoise", 100.75)])
def test_the_result_of_a_grey_input_is_scored_as_grey(protocol: str, level: float) -> None:
    """As in the file that restore makes of it: the mean of the colours, rounded once."""

    class Grey(Source):
        def pair(self, i: int) -> DecodedPair:
            return replace(super().pair(i), grey=True)

    class Coloured:
        def __call__(self, lq: Tensor, names: Sequence[str]) -> Restored:
            colour = torch.tensor([100.25, 100.75, 101.25])[:, None, None] / 255
            return Restored(colour.expand_as(lq), None, "whole", [])

    (first, _) = restore_and_score(Grey(), [0, 1], [Coloured()], Scorer(PROTOCOLS[protocol]))
    assert first.psnr == pytest.approx(db(level - 100), abs=1e-3)


@pytest.mark.parametrize(("protocol", "level"), [("rgb", 100), ("denoise", 25_800 / 257)])
def test_16_bits_are_rounded_to_8_unless_the_protocol_says_otherwise(
    protocol: str, level: float
) -> None:
    class Deep(Source):
        def pair(self, i: int) -> DecodedPair:
            deep = np.full((self.side, self.side, 3), 25_800, np.uint16)
            return DecodedPair(self.names[i], deep, deep, "a")

    class Brightest:
        def __call__(self, lq: Tensor, names: Sequence[str]) -> Restored:
            return Restored(torch.full_like(lq, 101 / 255), None, "whole", [])

    scorer = Scorer(PROTOCOLS[protocol], inputs=True)
    (first, _) = restore_and_score(Deep(), [0, 1], [Brightest()], scorer)
    assert first.psnr == pytest.approx(db(101 - level), abs=1e-3)
    assert first.degraded is not None
    assert first.degraded.psnr == math.inf
