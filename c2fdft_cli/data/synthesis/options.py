"""Degradation models from plain mappings: names, types and limits, with usable errors."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from c2fdft_cli.errors import UsageError

Model = TypeVar("Model")
Limits = Mapping[str, tuple[float, float]]

FLOATS, INTS = tuple[float, float], tuple[int, int]


def closest(name: str, known: list[str]) -> str:
    """Return a hint: the known name that is nearest to a misspelt one, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(known)}"


def build(cls: type[Model], title: str, options: Mapping[str, object]) -> Model:
    """Make the dataclass `cls` from options; a lone number stands for a range of one value.

    Raises:
        UsageError: an unknown option, a value of the wrong type or outside its limits.
    """
    types: dict[str, Any] = get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for name, value in options.items():
        if name not in known:
            raise UsageError(f"{title} has no option {str(name)!r}", hint=closest(str(name), known))
        values[name] = _convert(value, types[name], f"{title}.{name}")
    return cls(**values)


def check_limits(model: object, title: str, limits: Limits) -> None:
    """Raise UsageError for a value or range outside its limits, or a range that runs backwards."""
    for name, (low, high) in limits.items():
        value = getattr(model, name)
        ends = value if isinstance(value, tuple) else (value, value)
        if not all(math.isfinite(end) and low <= end <= high for end in ends):
            raise UsageError(
                f"{title}.{name} is {_show(value)}", hint=f"use values from {low:g} to {high:g}"
            )
        if ends[0] > ends[1]:
            raise UsageError(
                f"{title}.{name} is {_show(value)}", hint="give the lower end of the range first"
            )


def _convert(value: object, kind: Any, where: str) -> object:
    """Return the value as the field's own type, or say what was expected."""
    if kind in (FLOATS, INTS):
        ends = list(value) if isinstance(value, list | tuple) else [value, value]
        if len(ends) != 2:
            raise UsageError(f"{where} is {value!r}", hint="give one number, or [low, high]")
        whole = kind == INTS
        return tuple(_number(end, where, whole=whole) for end in ends)
    if kind is float:
        return _number(value, where, whole=False)
    if not isinstance(value, kind):
        raise UsageError(f"{where} is {value!r}", hint=f"give a {kind.__name__}")
    return value


def _number(value: object, where: str, *, whole: bool) -> float | int:
    """Return a number (an int where only whole numbers make sense); True is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{where} is {value!r}", hint="give a number")
    if whole and value != int(value if math.isfinite(value) else 0):
        raise UsageError(f"{where} is {value!r}", hint="give a whole number")
    return int(value) if whole else float(value)


def _show(value: object) -> str:
    """Format a number or range the way that a recipe writes it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{end:g}" for end in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
