"""Requests: what is refused before anything is loaded, and how option values are parsed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from c2fdft_cli.engine.restore.options import (
    Machine,
    SamplingOptions,
    Writing,
    choose_timesteps,
    parse_size,
    parse_timesteps,
    sample_count,
    timesteps_warning,
)
from c2fdft_cli.errors import UsageError


@pytest.mark.parametrize(
    ("group", "changes", "words"),
    [
        (SamplingOptions, {"grid": (999,), "steps": 4}, "--grid cannot be combined"),
        (SamplingOptions, {"grid": (999,), "spacing": "leading"}, "--grid cannot be combined"),
        (SamplingOptions, {"spacing": "leading"}, "together with --steps"),
        (SamplingOptions, {"steps": 2, "spacing": "odd"}, "--spacing must be .*, got .odd."),
        (SamplingOptions, {"eta": 1.5}, "--eta must be 0 to 1, got 1.5"),
        (SamplingOptions, {"eta": float("nan")}, "--eta must be 0 to 1, got nan"),
        (SamplingOptions, {"samples": 0}, "--samples must be 1 to 1000"),
        (SamplingOptions, {"samples": 10**20}, "--samples must be 1 to 1000"),
        (SamplingOptions, {"temporal_noise": "none"}, "--temporal-noise must be fixed or"),
        (Machine, {"tile": 16}, "at least 32, got 16"),
        (Machine, {"tile": 100}, "multiple of 8"),
        (Machine, {"compile": "yes"}, "--compile must be auto, on or off"),
        (Writing, {"format": "gif"}, "--format must be png, .*, got .gif."),
        (Writing, {"bit_depth": 12}, "--bit-depth must be 8 or 16, got 12"),
        (Writing, {"quality": 0}, "--quality must be 1 to 100, got 0"),
        (Writing, {"quality": 101}, "--quality must be 1 to 100, got 101"),
        (Writing, {"suffix": "../x"}, "--suffix must not contain a path"),
        (Writing, {"crf": 52}, "--crf must be 0 to 51, got 52"),
    ],
)
def test_options_that_cannot_be_combined_are_refused(
    group: Callable[..., object], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        group(**changes)


@pytest.mark.parametrize(
    ("samples", "self_ensemble", "uncertainty", "count"),
    [
        (None, False, False, 1),
        (3, False, False, 3),
        (2, True, False, 2),
        (None, False, True, 8),
        (None, True, True, 1),
        (1, True, True, 1),
        (3, False, True, 3),
    ],
)
def test_the_number_of_samples_depends_on_the_options(
    samples: int | None, self_ensemble: bool, uncertainty: bool, count: int
) -> None:
    assert sample_count(samples, self_ensemble, uncertainty) == count


def test_one_sample_has_no_deviation() -> None:
    with pytest.raises(UsageError, match="at least 2 samples"):
        sample_count(1, False, True)


@pytest.mark.parametrize("samples", [-3, 0, 1001])
def test_an_impossible_number_of_samples_is_refused(samples: int) -> None:
    with pytest.raises(UsageError, match=f"--samples must be 1 to 1000, got {samples}"):
        sample_count(samples, True, True)


def test_parse_timesteps() -> None:
    assert parse_timesteps("999, 500") == (999, 500)
    for text in ("", "a", "9.5", "-1"):
        with pytest.raises(UsageError, match="--grid must be"):
            parse_timesteps(text)


@pytest.mark.parametrize("grid", [(), (1, 2), (5, 5)])
def test_timesteps_must_descend(grid: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="--grid must be descending timesteps such as 999,500"):
        SamplingOptions(grid=grid)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1048576", 1 << 20), ("900M", 900 << 20), ("1.5 GiB", 3 << 29), ("2048kb", 2 << 20)],
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "M", "-1G", "1X", "1e9", "nan"])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="--max-memory must be a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "size"), [("4", "4 bytes"), ("1k", "1024 bytes"), ("1", "1 byte")]
)
def test_a_size_without_its_unit_is_refused(text: str, size: str) -> None:
    with pytest.raises(UsageError, match=rf"6G, got {text} \({size}\)"):
        parse_size(text)


def test_the_timesteps_are_those_of_the_checkpoint_unless_given() -> None:
    def chosen(own: list[int], **changes: Any) -> list[int]:
        return choose_timesteps(SamplingOptions(**changes), own, 1000)

    assert chosen([999, 500]) == [999, 500]
    assert chosen([999, 500], steps=4) == [999, 666, 333, 0]
    assert chosen([9], steps=2, spacing="leading") == [500, 0]
    assert chosen([999, 500], steps=2) == [999, 500]
    assert chosen([999, 500], steps=2, spacing="linspace") == [999, 0]
    assert chosen([9], grid=(700, 5)) == [700, 5]


def test_timesteps_out_of_range_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"--grid must be timesteps from 0 to 999, got 1000,5"):
        choose_timesteps(SamplingOptions(grid=(1000, 5)), [9], 1000)
    with pytest.raises(UsageError, match=r"--steps must be 1 to 1000, got 1001"):
        choose_timesteps(SamplingOptions(steps=1001), [9], 1000)


def test_fine_weights_warn_on_other_timesteps() -> None:
    own = [999, 500]
    assert timesteps_warning(own, [999, 500], own) is None
    assert "trained on the timesteps 999,500" in str(timesteps_warning(own, [999, 0], own))
    assert timesteps_warning(None, [9], own) is None
    assert timesteps_warning([500], own, own) is None  # chosen by a sweep
    assert "trained on the timesteps 500" in str(timesteps_warning([500], [999], own))
