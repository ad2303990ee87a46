"""Each list of choices is stated once: the code that uses it supports exactly these."""

from __future__ import annotations

import sys
from typing import get_args

import pytest
import torch

from c2fdft_cli.core.diffusion import beta_schedule, time_grid
from c2fdft_cli.core.network import DFT
from c2fdft_cli.core.objectives import fine_loss
from c2fdft_cli.data.synthesis.degrade import MODELS
from c2fdft_cli.engine.weights.convert_options import HALVES
from c2fdft_cli.errors import UsageError
from c2fdft_cli.execution import device
from c2fdft_cli.metrics.protocols import PROTOCOLS
from c2fdft_cli.vocabulary import (
    DEGRADATIONS,
    PRECISIONS,
    SPACINGS,
    NormName,
    PackagedTask,
    ProtocolName,
    Schedule,
    Ssim,
    Task,
    binary_size,
    check_choice,
    did_you_mean,
    for_shell,
    many,
    number_in_environment,
    parse_numbers,
    split_words,
)


@pytest.mark.parametrize("name", get_args(Schedule))
def test_every_noise_schedule_is_supported(name: str) -> None:
    assert beta_schedule(name).shape == (1000,)


@pytest.mark.parametrize("name", SPACINGS)
def test_every_spacing_is_supported(name: str) -> None:
    assert len(time_grid(4, name)) == 4


@pytest.mark.parametrize("name", get_args(NormName))
def test_every_norm_is_supported(name: str) -> None:
    with torch.device("meta"):
        DFT(dim=8, blocks=(1, 1, 1, 1), norm=name)


@pytest.mark.parametrize("name", get_args(Ssim))
def test_every_ssim_is_supported(name: str) -> None:
    image = torch.full((1, 3, 16, 16), 0.5)
    loss = fine_loss(
        lambda x, _: x[:, 3:], torch.linspace(0.9, 0.1, 10), [9, 5], image, image, image, ssim=name
    )
    assert loss.isfinite()


def test_unknown_choices_are_refused_by_the_core() -> None:
    for refuse in (
        lambda: beta_schedule("cosine"),
        lambda: time_grid(4, "cosine"),
        lambda: DFT(dim=8, blocks=(1, 1, 1, 1), norm="batch"),
    ):
        with pytest.raises(ValueError, match=r"cosine|batch"):
            refuse()


def test_the_keys_of_tables_are_the_choices() -> None:
    assert ("auto", *device.PRECISIONS) == PRECISIONS
    assert set(HALVES) < set(PRECISIONS)
    assert set(PROTOCOLS) == set(get_args(ProtocolName))
    assert tuple(MODELS) == DEGRADATIONS
    assert set(get_args(PackagedTask)) <= set(get_args(Task)) - {"restore"}


def test_an_invalid_choice_is_refused_with_all_choices() -> None:
    choices = "start", "middle", "end"
    assert check_choice("--at", "end", choices) == "end"
    with pytest.raises(UsageError, match=r"^--at must be .*, got 3$"):
        check_choice("--at", 3, choices)  # type: ignore[type-var]
    with pytest.raises(UsageError, match="--at must be start, middle or end, got 'midle'") as e:
        check_choice("--at", "midle", choices)
    assert e.value.hint == "did you mean middle?"
    with pytest.raises(UsageError, match="--to must be onnx, got 'x'") as e:
        check_choice("--to", "x", ("onnx",))
    assert e.value.hint is None


def test_similar_words_are_suggested() -> None:
    assert did_you_mean("Derian", ["derain", "denoise"]) == "did you mean derain?"
    assert did_you_mean("xyz", ["derain", "denoise"]) is None
    assert split_words("a, b") == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "numbers"), [("7", [7]), ("999,500", [999, 500]), (" 3, 1 ,3", [3, 1, 3])]
)
def test_lists_of_numbers_are_parsed(text: str, numbers: list[int]) -> None:
    assert parse_numbers("--grid", text, "999,500") == numbers


@pytest.mark.parametrize(
    ("text", "numbers"), [("4", [4]), ("1-3", [1, 2, 3]), ("8,2-2", [8, 2]), ("0-1,1", [0, 1, 1])]
)
def test_ranges_are_parsed(text: str, numbers: list[int]) -> None:
    assert parse_numbers("--steps", text, "1-10", ranges=True) == numbers


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "-1", "1.5", "x", "1;2", "1-2", "3-1", "1-", "\u0663", "1234567"]
)
def test_invalid_numbers_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--grid must be whole numbers") as caught:
        parse_numbers("--grid", text, "999,500")
    assert caught.value.hint == "for example --grid 999,500"


@pytest.mark.parametrize("text", ["3-1", "1-", "-2", "1-2-3"])
def test_invalid_ranges_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--steps must be numbers or ranges"):
        parse_numbers("--steps", text, "1-10", ranges=True)


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "1.0", "1 ", "9" * 7])
def test_an_invalid_number_in_the_environment_is_refused(text, monkeypatch):
    monkeypatch.setenv("NUMBER", text)
    with pytest.raises(
        UsageError, match="environment variable NUMBER must be a whole number of at"
    ):
        number_in_environment("NUMBER", 1, low=1)


def test_a_number_is_read_from_the_environment(monkeypatch):
    monkeypatch.delenv("NUMBER", raising=False)
    assert number_in_environment("NUMBER", 3) == 3
    monkeypatch.setenv("NUMBER", "0")
    assert number_in_environment("NUMBER", 3) == 0


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0.0 KiB"), (30_000, "29.3 KiB"), (1 << 20, "1.0 MiB"), (3 << 29, "1.50 GiB")],
)
def test_bytes_are_written_in_the_unit_that_fits(count: int, words: str) -> None:
    assert binary_size(count) == words


def test_one_is_singular() -> None:
    assert [many(n, "pair") for n in (0, 1, 2)] == ["0 pairs", "1 pair", "2 pairs"]


@pytest.mark.parametrize(
    ("system", "shown"),
    [
        ("linux", r"c2fdft eval 'a b' 'C:\out' '$HOME'"),
        ("darwin", r"c2fdft eval 'a b' 'C:\out' '$HOME'"),
        ("win32", r'c2fdft eval "a b" C:\out $HOME'),
    ],
)
def test_words_are_quoted_for_the_shells_of_the_system(
    monkeypatch: pytest.MonkeyPatch, system: str, shown: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert for_shell("c2fdft", "eval", "a b", r"C:\out", "$HOME") == shown
