"""Types for a degradation's options: numbers and ranges, with limits."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BeforeValidator

from c2fdft_cli.validation import NotBool


def _as_ends(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value, value]


Number: TypeAlias = Annotated[float, NotBool]
Range: TypeAlias = Annotated[tuple[Number, Number], BeforeValidator(_as_ends)]
IntegerRange: TypeAlias = Annotated[
    tuple[Annotated[int, NotBool], Annotated[int, NotBool]], BeforeValidator(_as_ends)
]
"""A range [low, high]; a single number stands for both ends."""


def within(low: float, high: float) -> AfterValidator:
    """Return a validator, last in `Annotated`: from `low` to `high`, a range's lower end first."""

    def check(value: float | tuple[float, float]) -> float | tuple[float, float]:
        ends = value if isinstance(value, tuple) else (value, value)
        if not all(low <= end <= high for end in ends):  # false for NaN and infinity
            raise ValueError(f"must be from {low:g} to {high:g}")
        if ends[0] > ends[1]:
            raise ValueError("must have its lower end first")
        return value

    return AfterValidator(check)
