"""Validates values from files and command lines against a dataclass, and reports every problem.

A dataclass states its limits in the types of its fields (`Annotated`, with constraints of
pydantic). Code that makes an instance directly is trusted, so nothing is checked then.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import reprlib
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from c2fdft_cli.words import did_you_mean

Checked = TypeVar("Checked")

# Defaults are checked because they may not fit the given values (the default heads with another
# `dim`). Numbers are converted to text because YAML reads a path such as 2024 as a number.
STRICT = ConfigDict(
    extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True, validate_default=True
)
"""A value for a dataclass's `__pydantic_config__`: no unknown keys, no NaN, no infinity."""

TOO_LONG = 10**64
LONG = "of more than 64 digits"


class _Shown(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to convert integers of thousands of digits to text; a hexadecimal number in
        # a file can be that long.
        return f"a number {LONG}" if abs(x) >= TOO_LONG else super().repr_int(x, level)


_SHOWN = _Shown()
_SHOWN.maxstring = _SHOWN.maxother = 80
_SHOWN.maxlist = _SHOWN.maxdict = 12


class InvalidValuesError(ValueError):
    """A dataclass cannot be made from the values; `problems` has one sentence per problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


def _refuse_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


NotBool = BeforeValidator(_refuse_truth)
"""Refuses true and false, which Python counts as numbers; must be the last in `Annotated`."""


def validate(
    kind: type[Checked], values: object, other_names: Mapping[str, str] | None = None
) -> Checked:
    """Make a dataclass from plain values, as in JSON or YAML.

    Args:
        kind: the dataclass.
        values: nested mappings and lists; missing keys get their defaults.
        other_names: common wrong names of keys, each with the key to suggest for it.

    Raises:
        InvalidValuesError: lists all unknown and missing keys, wrong types and values out of range.
    """
    try:
        checked: Checked = adapter(kind).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as error:
        found = [_sentence(one, kind, other_names or {}) for one in error.errors()]
        raise InvalidValuesError(found) from None
    return checked


@functools.cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return pydantic's validator of a dataclass, built once."""
    return TypeAdapter(kind)


def _sentence(error: ErrorDetails, kind: type, other_names: Mapping[str, str]) -> str:
    """Describe one problem in a sentence: the key, what it must be, and its value."""
    key = _dotted(error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        *parents, last = error["loc"]
        return f"unknown key {key}; {_known_at(kind, parents, str(last), other_names)}"
    if error["type"] == "missing":
        return f"{key} is missing"
    what = error["msg"].removeprefix("Value error, ")
    if "ctx" not in error:  # "..., unable to parse string as a number"
        what = what.partition(",")[0]
    what = re.sub(r"^\w+ should", "must", what)
    what = re.sub(r"(a dictionary) or an instance of .*| after validation.*", r"\1", what)
    return f"{key} {what}, got {_SHOWN.repr(error['input'])}".lstrip()


def _dotted(location: Sequence[int | str]) -> str:
    """Return the key of a location, such as "coarse.periods[0].length"."""
    shown = (ascii(part)[1:-1] if not str(part).isprintable() else part for part in location)
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in shown)
    return "".join(parts).removeprefix(".")


def _known_at(
    kind: Any, parents: Sequence[int | str], key: str, other_names: Mapping[str, str]
) -> str:
    """Suggest the key of the section `parents` that is nearest to `key`, or list all its keys."""
    for part in parents:
        kind = (
            typing.get_args(kind)[0] if isinstance(part, int) else typing.get_type_hints(kind)[part]
        )
    known = [field.name for field in dataclasses.fields(kind)]
    name, colon, value = key.partition(":")
    if colon and name in known:  # as in {length:30}
        return f"YAML needs a space after a colon: {name}: {ascii(value)[1:-1]}"
    alias = other_names.get(key)
    near = f"did you mean {alias}?" if alias in known else did_you_mean(key, known)
    if near is None:
        return f"known: {', '.join(known)}"
    section = _dotted([*parents, ""])  # with its dot
    return near.replace("did you mean ", f"did you mean {section}")
