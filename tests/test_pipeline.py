"""Work ahead of its consumer: order, bounds, errors, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from c2fdft_cli import pipeline
from c2fdft_cli.pipeline import ahead, in_order


def test_ahead_is_bounded_and_in_order() -> None:
    made: list[int] = []

    def count() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    items = ahead(count(), 2)
    assert next(items) == 0
    assert len(made) <= 5
    assert list(items) == list(range(1, 100))


def test_ahead_hands_over_an_error_behind_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    items = ahead(broken(), 3)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    items = ahead(iter(range(10_000)), 1)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_results_come_in_order_whoever_is_first() -> None:
    started = threading.Barrier(3, timeout=10)

    def work(number: int) -> int:
        started.wait()  # three run at once
        return number * number

    assert list(in_order(work, range(9), workers=3)) == [n * n for n in range(9)]


def test_results_in_flight_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "IN_FLIGHT_BYTES", 10)
    asked: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            asked.append(number)
            yield number

    results = in_order(lambda number: number, items(), workers=8, cost=lambda _: 5)
    assert next(results) == 0
    assert len(asked) == 3  # two in flight, and the one that waits for room
    results.close()


def test_an_error_comes_out_at_its_place() -> None:
    results = in_order(lambda number: 1 // number, [2, 1, 0, 3], workers=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
