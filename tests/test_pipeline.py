"""Working ahead of a consumer: order, bounds, errors, and no remaining threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from c2fdft_cli.pipeline import (
    IN_FLIGHT_BYTES,
    InOrder,
    ahead,
    cores,
    in_order,
)


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


def test_ahead_asks_for_one_item_at_a_time() -> None:
    def slow() -> Iterator[int]:
        for number in range(5):
            time.sleep(0.01)
            yield number  # a generator that is already running refuses a second thread

    assert list(ahead(slow(), 3)) == list(range(5))


def test_ahead_raises_an_error_after_the_items_before_it() -> None:
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


def test_leaving_early_waits_for_the_work_that_has_begun() -> None:
    begun, done = threading.Event(), list[int]()

    def work(number: int) -> None:
        if number:
            begun.set()
            time.sleep(0.05)
        done.append(number)

    results = in_order(work, range(9), workers=1)
    next(results)
    assert begun.wait(10)
    results.close()
    assert done == [0, 1]


def test_results_are_in_order_whichever_is_ready_first() -> None:
    started = threading.Barrier(3, timeout=10)

    def work(number: int) -> int:
        started.wait()  # three tasks run at once
        return number * number

    assert list(in_order(work, range(9), workers=3)) == [n * n for n in range(9)]


def test_results_in_flight_are_bounded_by_their_bytes() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            asked.append(number)
            yield number

    results = in_order(
        lambda number: number, items(), workers=8, cost=lambda _: IN_FLIGHT_BYTES // 2
    )
    assert next(results) == 0
    assert len(asked) == 3  # two in flight, and one that waits for space
    results.close()


def test_an_error_is_raised_in_order() -> None:
    results = in_order(lambda number: 1 // number, [2, 1, 0, 3], workers=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_waiting_results_are_bounded_by_number_and_bytes() -> None:
    tenth = IN_FLIGHT_BYTES // 10
    with ThreadPoolExecutor(2) as pool:
        line = InOrder[int](pool, room=3)

        def add(number: int, size: int = 0) -> list[int]:
            made = list(line.make_room(size))
            line.submit(partial(int, number), size)
            return made

        assert [add(number) for number in range(5)] == [[], [], [], [0], [1]]
        assert add(5, size=9 * tenth) == [2]
        assert add(6, size=2 * tenth) == [3, 4, 5]
        assert add(7, size=99 * tenth) == [6]  # a single one of any size
        assert list(line.rest()) == [7]
        assert (len(line), list(line.finished())) == (0, [])


def test_cores_are_shared_among_the_processes_of_a_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    shares = []
    for processes in ("1", "4", "64"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        shares.append(cores())
    assert shares == [12, 3, 1]
