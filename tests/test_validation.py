"""Validation of plain values into dataclasses: all problems at once, each in a sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import ConfigDict, Field

from c2fdft_cli.validation import STRICT, InvalidValuesError, NotBool, validate


@dataclass
class Inner:
    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    length: Annotated[int, Field(ge=1), NotBool]
    name: str = "x"


@dataclass
class Outer:
    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    factor: Annotated[float, NotBool] = 1.0
    kind: Literal["round", "square"] = "round"
    parts: list[Inner] = field(default_factory=list)
    first: Inner = field(default_factory=lambda: Inner(1))


def test_plain_values_become_the_dataclass() -> None:
    made = validate(Outer, {"factor": 2, "parts": [{"length": "3"}], "first": {"length": 4.0}})
    assert made == Outer(2.0, "round", [Inner(3)], Inner(4))
    assert type(made.factor) is float


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"factor": "a"}, "factor must be a valid number, got 'a'"),
        (
            {"kind": 1 << 20_000},
            "kind must be 'round' or 'square', got a number of more than 64 digits",
        ),
        ({"factor": True}, "factor must be a number, got True"),
        ({"factor": float("inf")}, "factor must be a finite number, got inf"),
        ({"kind": "oval"}, "kind must be 'round' or 'square', got 'oval'"),
        ({"first": None}, "first must be a dictionary, got None"),
        ({"first": {}}, "first.length is missing"),
        ({"a\x1b[2J": 1}, r"unknown key a\x1b[2J; known: factor, kind, parts, first"),
        ({"parts": [{"length": 0}]}, "parts[0].length must be greater than or equal to 1, got 0"),
        ({"parts": 3}, "parts must be a valid list, got 3"),
        (
            {"parts": [{"length": 1, "nam": 2}]},
            "unknown key parts[0].nam; did you mean parts[0].name?",
        ),
        ({"zzz": 1}, "unknown key zzz; known: factor, kind, parts, first"),
        ({"scale": 1}, "unknown key scale; did you mean factor?"),
        ([], "must be a dictionary, got []"),
    ],
)
def test_a_problem_is_a_sentence(values: Any, sentence: str) -> None:
    with pytest.raises(InvalidValuesError) as caught:
        validate(Outer, values, {"scale": "factor"})
    assert caught.value.problems == (sentence,)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(InvalidValuesError) as caught:
        validate(Outer, {"factor": "a", "first": {"length": -1, "size": 2}})
    assert len(caught.value.problems) == 3
    assert str(caught.value) == "; ".join(caught.value.problems)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(InvalidValuesError) as caught:
        validate(Outer, {"kind": "x" * 5000})
    assert len(str(caught.value)) < 200
