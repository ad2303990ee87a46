"""Processes many items in threads: results come in order and memory is bounded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

from c2fdft_cli.settings import number_in_environment

Item = TypeVar("Item")
Out = TypeVar("Out")

IN_FLIGHT_BYTES = 1 << 30


def cores() -> int:
    """Return the number of cores for this process, its share if torchrun started several."""
    # A scheduler or a container may restrict the process to some cores; `cpu_count` counts all
    # cores of the machine.
    allowed = getattr(os, "sched_getaffinity", None)  # on Linux
    count = len(allowed(0)) if allowed else os.cpu_count() or 1
    return max(1, count // number_in_environment("LOCAL_WORLD_SIZE", 1, low=1))


class InOrder(Generic[Out]):
    """Runs functions in threads and yields their results in the order in which they were added.

    Args:
        pool: the threads.
        room: the maximum number of results that wait or are being computed. If their sizes are
            given, they also hold no more than about 1 GiB in all.
    """

    def __init__(self, pool: Executor, room: int) -> None:
        self._pool, self._room = pool, room
        self._waiting: deque[tuple[Future[Out], int]] = deque()
        self._held = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def make_room(self, size: int = 0) -> Iterator[Out]:
        """Wait for results and yield them until there is room for one that holds `size` bytes."""
        # A single result may be larger than the limit: it is accepted if nothing else waits.
        while self._waiting and (
            len(self._waiting) >= self._room or self._held + size > IN_FLIGHT_BYTES
        ):
            yield self._first()

    def submit(self, work: Callable[[], Out], size: int = 0) -> None:
        """Run a function in a thread, whose result holds `size` bytes; after `make_room`."""
        self._waiting.append((self._pool.submit(work), size))
        self._held += size

    def finished(self) -> Iterator[Out]:
        """Yield the next results that are already finished."""
        while self._waiting and self._waiting[0][0].done():
            yield self._first()

    def rest(self) -> Iterator[Out]:
        """Wait for all remaining results and yield them."""
        while self._waiting:
            yield self._first()

    def _first(self) -> Out:
        future, size = self._waiting.popleft()
        self._held -= size
        return future.result()


def in_order(
    work: Callable[[Item], Out],
    items: Iterable[Item],
    *,
    workers: int = 0,
    cost: Callable[[Item], int] = lambda _: 0,
) -> Generator[Out, None, None]:
    """Like `map(work, items)`, but in threads that work at most two results per thread ahead.

    Args:
        work: called in a thread; an error that it raises is raised by the iteration.
        items: the items to process.
        workers: the number of threads; 0 for one per core.
        cost: returns the number of bytes that an item's result holds. If given, the results that
            wait hold no more than about 1 GiB.
    """
    workers = workers or cores()
    pool = ThreadPoolExecutor(workers)
    line = InOrder[Out](pool, 2 * workers)
    try:
        for item in items:
            size = cost(item)
            yield from line.make_room(size)
            line.submit(partial(work, item), size)
        yield from line.rest()
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(items: Iterable[Item], room: int) -> Generator[Item, None, None]:
    """Iterate in a separate thread, which works ahead by at most `room` items and a current one.

    An error of the iteration is raised here. If the consumer stops early, this waits until the
    thread has finished its current item, so that nothing uses the iterator's resources any longer.
    """
    iterator, end = iter(items), object()
    pool = ThreadPoolExecutor(1)  # a single thread, so that items are requested one by one
    line = InOrder[Any](pool, room + 2)  # plus the current item and the one that was yielded
    try:
        while True:
            for item in line.make_room():
                if item is end:
                    return
                yield item
            line.submit(partial(next, iterator, end))
    finally:
        pool.shutdown(cancel_futures=True)
