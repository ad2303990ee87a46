"""Work on many items at once with threads, results in order, memory bounded."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Out = TypeVar("Out")

IN_FLIGHT_BYTES = 1 << 30


def in_order(
    work: Callable[[Item], Out],
    items: Iterable[Item],
    *,
    workers: int = 0,
    cost: Callable[[Item], int] = lambda _: 0,
) -> Generator[Out, None, None]:
    """`map(work, items)` with threads, no more than about 1 GiB of results ahead.

    Args:
        work: called in a thread; its error comes out of the iteration.
        items: what to work on.
        workers: threads; 0 for one per core.
        cost: bytes that an item's result holds.
    """
    workers = workers or os.cpu_count() or 1
    waiting: deque[tuple[Future[Out], int]] = deque()
    held = 0
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            size = cost(item)
            while waiting and (len(waiting) >= 2 * workers or held + size > IN_FLIGHT_BYTES):
                future, freed = waiting.popleft()
                held -= freed
                yield future.result()
            waiting.append((pool.submit(work, item), size))
            held += size
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)


_POLL_SECONDS = 0.2


def ahead(items: Iterable[Item], room: int) -> Iterator[Item]:
    """Iterate in a thread of its own, at most `room` items and the one in work ahead.

    An error of the iteration comes out here. When this side stops early, it waits until the thread
    has the item that it is working on, so that nobody uses what the iteration owns any more.
    """
    line: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(room)
    stop = threading.Event()

    def put(entry: tuple[Item | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                return line.put(entry, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
        return None

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
            put((None, None))
        except BaseException as error:  # handed over to the side that waits
            put((None, error))

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = line.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join()
