"""Requests: what is refused before anything is loaded, and how words become numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from c2fdft_cli.engine.restore.options import (
    RestoreOptions,
    choose_grid,
    grid_warning,
    parse_grid,
    parse_size,
    settings_digest,
)
from c2fdft_cli.engine.weights.checkpoint import Meta
from c2fdft_cli.errors import UsageError
from c2fdft_cli.recipe.schema import Network

OPTIONS = RestoreOptions("in", "out")


def options(**changes: Any) -> RestoreOptions:
    return RestoreOptions("in", "out", **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": (999,), "steps": 4}, "not both"),
        ({"grid": (999,), "spacing": "leading"}, "not both"),
        ({"spacing": "leading"}, "needs --steps"),
        ({"steps": 2, "spacing": "odd"}, "linspace, leading or trailing"),
        ({"format": "gif"}, "no such format"),
        ({"bit_depth": 12}, "8 or 16"),
        ({"quality": 0}, "1 to 100"),
        ({"quality": 101}, "1 to 100"),
        ({"suffix": "../x"}, "path"),
        ({"eta": 1.5}, "eta is 0 to 1"),
        ({"eta": float("nan")}, "eta is 0 to 1"),
        ({"samples": 0}, "at least 1"),
        ({"samples": 1, "uncertainty": Path("u")}, "two draws"),
        ({"tile": 16}, "at least 32"),
        ({"tile": 100}, "multiple of 8"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        options(**changes).check()


def test_draws() -> None:
    assert options().draws == 1
    assert options(samples=3).draws == 3
    assert options(self_ensemble=True, samples=2).draws == 2
    assert options(uncertainty=Path("u")).draws == 8
    assert options(uncertainty=Path("u"), self_ensemble=True).draws == 1
    assert options(uncertainty=Path("u"), samples=3).draws == 3


def test_parse_grid() -> None:
    assert parse_grid("999, 500") == (999, 500)
    for text in ("", "a", "1,2", "5,5", "9.5", "-1"):
        with pytest.raises(UsageError, match="grid"):
            parse_grid(text)


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("900M", 900 << 20), ("1.5 GiB", 3 << 29), ("2kb", 2048)]
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "M", "-1G", "1X", "1e9", "nan"])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="cannot read this size"):
        parse_size(text)


def test_the_grid_is_the_checkpoints_own_unless_given() -> None:
    meta = Meta(Network())
    assert choose_grid(OPTIONS, meta, [999, 500]) == [999, 500]
    assert choose_grid(options(steps=4), meta, [999, 500]) == [999, 666, 333, 0]
    assert choose_grid(options(steps=2, spacing="leading"), meta, [9]) == [500, 0]
    assert choose_grid(options(steps=2), meta, [999, 500]) == [999, 500]
    assert choose_grid(options(steps=2, spacing="linspace"), meta, [999, 500]) == [999, 0]
    assert choose_grid(options(grid=(700, 5)), meta, [9]) == [700, 5]


def test_a_grid_out_of_range_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"0 to 999.*--grid"):
        choose_grid(options(grid=(1000, 5)), Meta(Network()), [9])
    with pytest.raises(UsageError, match=r"1 to 1000.*--steps"):
        choose_grid(options(steps=1001), Meta(Network()), [9])


def test_fine_weights_warn_on_another_grid() -> None:
    fine = Meta(Network(), stage="fine", grid=[999, 500])
    assert grid_warning(fine, [999, 500]) is None
    assert "trained on the grid 999,500; on 999,0" in str(grid_warning(fine, [999, 0]))
    assert grid_warning(Meta(Network(), stage="coarse", grid=[999, 500]), [9]) is None


def test_the_digest_knows_what_decides_pixels() -> None:
    base = settings_digest(OPTIONS, "w", [9], "fp32")
    assert settings_digest(options(batch=4, compare=Path("c")), "w", [9], "fp32") == base
    others = [
        settings_digest(OPTIONS, "v", [9], "fp32"),
        settings_digest(OPTIONS, "w", [8], "fp32"),
        settings_digest(OPTIONS, "w", [9], "bf16"),
        settings_digest(options(seed=1), "w", [9], "fp32"),
        settings_digest(options(eta=0.5), "w", [9], "fp32"),
        settings_digest(options(samples=2), "w", [9], "fp32"),
        settings_digest(options(tile=64), "w", [9], "fp32"),
        settings_digest(options(bit_depth=8), "w", [9], "fp32"),
    ]
    assert len({base, *others}) == 9
