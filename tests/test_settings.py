"""Options stated once: help, limits, and the dataclass that the command line makes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from c2fdft_cli.cli.options import takes_settings
from c2fdft_cli.errors import UsageError
from c2fdft_cli.settings import (
    Setting,
    check_settings,
    number_in_environment,
    option_name,
    parse_numbers,
    setting,
    setting_of,
    shown,
    split_words,
)


def parse_pair(text: str) -> tuple[int, int]:
    left, _, right = text.partition(":")
    return int(left), int(right)


@dataclass(frozen=True)
class Wishes:
    source: Path
    quality: int = setting(90, "Quality of files.", metavar="N", low=1, high=100)
    shape: str | None = setting(None, "Shape.", choices=("round", "square"))
    pair: tuple[int, int] = setting("1:2", "A pair.", parse=parse_pair)
    pairs: tuple[tuple[int, int], ...] = setting(
        (), "More.", option="--more", parse=parse_pair, several=True
    )
    keep: bool = setting(True, "Keep nothing.", option="--no-keep")
    loud: bool = setting(False, "Be loud.")
    rate: float = setting(0.5, "Rate.", low=0)
    to: Path | int | None = setting(None, "Folder or number.", parse=Path)
    hidden: int = 7

    def __post_init__(self) -> None:
        check_settings(self)


def made(*line: str) -> tuple[Wishes, bool]:
    """The arguments that a command receives for a command line."""
    seen = []

    @takes_settings
    def command(
        source: Annotated[Path, typer.Argument()],
        wishes: Wishes,
        json: Annotated[bool, typer.Option("--json")] = False,
    ) -> None:
        seen.append((wishes, json))

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(line), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen[0]


def test_defaults_are_those_of_the_dataclass() -> None:
    assert made("here") == (Wishes(Path("here")), False)


def test_each_option_reaches_its_field() -> None:
    line = "here --quality 3 --shape round --pair 5:6 --more 1:1 --more 2:2 --no-keep --loud --json"
    wishes, json = made(*line.split())
    assert json
    assert wishes == Wishes(
        Path("here"), 3, "round", (5, 6), ((1, 1), (2, 2)), keep=False, loud=True
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"quality": 0}, "--quality must be 1 to 100, got 0"),
        ({"quality": 101}, "--quality must be 1 to 100, got 101"),
        ({"rate": float("nan")}, "--rate must be at least 0, got nan"),
        ({"quality": None}, "--quality must be a whole number, got None"),
        ({"shape": "rund"}, "--shape must be round or square, got 'rund'"),
    ],
)
def test_values_outside_the_limits_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Wishes(Path("x"), **changes)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        (Setting("Files.", low=1, high=9), "Files, 1 to 9."),
        (Setting("Files.", low=2), "Files, at least 2."),
        (Setting("Files.", high=2), "Files, at most 2."),
        (Setting("Files, 0 for all.", low=0), "Files, 0 for all."),
        (Setting("Name", choices=("a", "b")), "Name."),
        (Setting("Name", metavar="NAME", choices=("a", "b")), "Name: a, b."),
    ],
)
def test_the_help_has_range_and_choices(known: Setting, sentence: str) -> None:
    assert known.sentence == sentence


def test_options_are_named_after_their_fields() -> None:
    by_name = {one.name: one for one in fields(Wishes)}
    assert option_name(by_name["quality"]) == "--quality"
    assert option_name(by_name["pairs"]) == "--more"
    assert setting_of(by_name["hidden"]) is None


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"quality": "90"}, "--quality must be a whole number, got '90'"),
        ({"quality": 90.0}, "--quality must be a whole number, got 90.0"),
        ({"quality": True}, "--quality must be a whole number, got True"),
        ({"rate": "fast"}, "--rate must be a number, got 'fast'"),
        ({"shape": 4}, "--shape must be a text, got 4"),
        ({"loud": 1}, "--loud must be a bool, got 1"),
        ({"to": "there"}, "--to must be a Path or a whole number, got 'there'"),
        ({"pair": [1, 2]}, "--pair must be a tuple of whole numbers, got [1, 2]"),
        ({"pair": (1, 2, 3)}, "--pair must be a tuple of whole numbers, got (1, 2, 3)"),
        ({"pair": (1, 2.5)}, "--pair must be a tuple of whole numbers, got (1, 2.5)"),
        ({"pairs": ((1, 2), 3)}, "--more must be a tuple of tuples, got ((1, 2), 3)"),
    ],
)
def test_values_of_other_types_are_refused(values, what):
    with pytest.raises(UsageError) as error:
        Wishes(Path("here"), **values)
    assert str(error.value).startswith(what)


def test_numbers_may_be_numpys():
    wishes = Wishes(
        Path("here"), quality=np.int64(7), rate=np.float32(0.5), pair=(np.int32(1), np.uint8(2))
    )
    assert wishes.quality == 7
    numbers = (wishes.quality, wishes.rate, *wishes.pair)  # converted to Python's
    assert [type(one) for one in numbers] == [int, float, int, int]
    assert Wishes(Path("here"), rate=1).rate == 1


@pytest.mark.parametrize(("value", "text"), [
    ("a" * 98, repr("a" * 98)), ("a" * 99, f"'{'a' * 99}..."), (None, "None"),
    (np.eye(2, dtype=int), "array([[1, 0], [0, 1]])"),
])  # fmt: skip
def test_a_message_quotes_any_value_in_one_line(value, text):
    """A program may pass a whole network in place of its file."""
    assert shown(value) == text


def test_a_list_is_split_at_its_commas() -> None:
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


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "1.0", "1 ", "\u0663", "9" * 7])
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
