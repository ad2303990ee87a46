"""JSON documents as damaged by hand or by another program: one value replaced or removed."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 0.5, 2.0, 10**30, 10**400, math.inf, -math.inf, math.nan,
    "", "x", "3", "\ud800", [], {}, [[]], ["x"], [None], [True], [1.5], [math.inf], [math.nan],
    [10**400], {"a": 1},
)  # fmt: skip
"""Values of every JSON type, as Python reads them; `1e999` is read as infinity."""


def odd_documents(document: Any) -> Iterator[Any]:
    """Yield the document with each value, and itself, replaced by each of `ODD`, or removed."""
    for place in _places(document):
        for odd in ODD:
            yield _changed(document, place, odd)
        if place:
            yield _changed(document, place, ...)


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    if not isinstance(value, dict | list):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _places(item, (*above, key))


def _changed(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    changed = copy.deepcopy(document)
    node = changed
    for key in place[:-1]:
        node = node[key]
    if value is ...:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return changed
