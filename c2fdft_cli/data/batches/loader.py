"""Makes batches of consecutive iterations ahead of the training step, in a thread or workers."""

from __future__ import annotations

import copy
import errno
import mmap
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing import active_children
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

import torch
from torch.utils.data import DataLoader, Dataset

from c2fdft_cli.data.batches.batch import Batch, BatchMaker
from c2fdft_cli.errors import C2fdftError, ResourceError, too_many_files
from c2fdft_cli.pipeline import ahead
from c2fdft_cli.signals import child_handler_kept, ignore

SliceOf = Callable[[int], tuple[int, int]]

# Forked workers start at once, share this process' memory, and no server process stands between
# them and this one that a signal to the process group would end. Python 3.14's default on Linux
# is such a server. Other systems keep their default, since their libraries may not survive a fork.
_START_METHOD = "fork" if sys.platform == "linux" else None


def whole(batch: int) -> tuple[int, int]:
    """Return the range of all rows of a global batch."""
    return 0, batch


class PatchLoader:
    """Iterable over the batches of iterations start .. stop-1 (counted from 1, as in `range`).

    Args:
        maker: makes the batches.
        start: first iteration.
        stop: one past the last iteration.
        slice_of: maps the size of a global batch to the rows [lo, hi) to make.
        workers: processes that make batches; 0 for a thread of this process.
        prefetch: batches made ahead (by each worker); 0 with workers=0 makes them on demand.
        pin: put tensors into page-locked memory, for a GPU.

    Attributes:
        waited: seconds that the consumer has waited for batches so far.

    Raises:
        DataError: a shard is damaged (raised while iterating).
        ResourceError: a worker died (raised while iterating).
    """

    def __init__(
        self,
        maker: BatchMaker,
        *,
        start: int,
        stop: int,
        slice_of: SliceOf = whole,
        workers: int = 0,
        prefetch: int = 2,
        pin: bool = False,
    ) -> None:
        if start < 1:
            raise ValueError("iterations are counted from 1")
        self._iterations = range(start, stop)
        self._source = _Iterations(maker, slice_of)
        self._workers = workers
        self._prefetch = prefetch
        self._pin = pin
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self._iterations)

    def __iter__(self) -> Iterator[Batch]:
        if self._workers:
            items = self._from_workers()
        elif self._prefetch:
            items = ahead(self._made(), self._prefetch)
        else:
            items = self._made()
        return self._timed(items)

    def _timed(self, items: Iterator[Batch]) -> Iterator[Batch]:
        # If training stops early, this ends the thread or the workers at once, rather than when the
        # generator is garbage-collected.
        with closing(items):  # type: ignore[type-var]  # all three sources are generators
            while True:
                begin = time.perf_counter()
                batch = next(items, None)
                self.waited += time.perf_counter() - begin
                if batch is None:
                    return
                yield batch

    def _made(self) -> Iterator[Batch]:
        for k in self._iterations:
            batch = self._source.make(k)
            yield batch.pin_memory() if self._pin else batch

    def _from_workers(self) -> Iterator[Batch]:
        loader: DataLoader[Batch | C2fdftError] = DataLoader(
            self._source,
            batch_size=None,  # each item is already a whole batch
            sampler=self._iterations,
            num_workers=self._workers,
            multiprocessing_context=_context(),
            prefetch_factor=max(1, self._prefetch),
            worker_init_fn=_leave_signals_to_parent,
            generator=torch.Generator(),  # otherwise torch's global generator would advance
            pin_memory=self._pin,
        )
        try:
            with _working(loader) as items:
                for item in items:
                    if isinstance(item, C2fdftError):
                        raise item
                    yield item
        except Exception as error:
            explained = _explained(error)
            if explained is None:
                raise
            raise explained from error


def _context() -> BaseContext:
    """Return what starts the workers; forked ones get a `_Flag` in place of an event."""
    context = copy.copy(multiprocessing.get_context(_START_METHOD))
    if _START_METHOD == "fork":
        context.Event = _Flag  # type: ignore[assignment,method-assign]
    return context


class _Flag:
    """A `multiprocessing.Event` for forked workers, without its lock.

    With it, a worker that is killed while it asks whether it shall end would make this process wait
    for ever: it dies with the lock. torch relies on its handler of SIGCHLD there, which
    `child_handler_kept` keeps out.
    """

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)

    def set(self) -> None:
        """Tell the workers to end."""
        self._shared[0] = 1

    def is_set(self) -> bool:
        """Whether the workers shall end."""
        return self._shared[0] == 1


@contextmanager
def _working(
    loader: DataLoader[Batch | C2fdftError],
) -> Iterator[Iterator[Batch | C2fdftError]]:
    """Start the workers, and kill them if the block raises an exception.

    torch ends its workers when its iterator is destroyed, but the exception refers to it; and they
    ignore SIGTERM, by which Python ends such processes at its own exit.
    """
    others = set(active_children())
    workers: set[BaseProcess] | None = None
    try:
        items = _started(loader)
        workers = set(active_children()) - others
        yield items
    except GeneratorExit:  # nobody wants further batches: the iterator is destroyed now
        raise
    except BaseException:
        # Without `workers`, some could not be started.
        for worker in set(active_children()) - others if workers is None else workers:
            worker.kill()
        raise


def _started(loader: DataLoader[Batch | C2fdftError]) -> Iterator[Batch | C2fdftError]:
    """Start the workers; ResourceError if the system has too few processes, files or memory.

    That a worker has died is noticed while waiting for its batch, never in the midst of a step or
    of a save.
    """
    try:
        with child_handler_kept():
            return iter(loader)
    except OSError as error:
        raise ResourceError(
            f"the data workers cannot be started: {os.strerror(error.errno or errno.EAGAIN)}",
            hint="set data.workers=0, or raise the limits that `ulimit -a` shows",
        ) from error


def _explained(error: Exception) -> ResourceError | None:
    """Return what an exception of torch's loader means to the user; None if it is not torch's own.

    An exception of the code that a worker ran arrives with its own type and a text "Caught ...".
    """
    said = str(error).splitlines() or [""]
    if isinstance(error, C2fdftError) or said[0].startswith("Caught "):
        return None
    lost = said[0].startswith(("Too many open files", "received 0 items of ancdata"))
    if lost or too_many_files(error):
        return _too_many_files()
    # A batch of a worker that has just died: its socket is gone, or ends too early.
    broken = isinstance(error, OSError | EOFError)
    if not broken and not said[0].startswith(("DataLoader worker", "Pin memory thread")):
        return None
    hint = "use fewer workers: memory may have run out"
    return ResourceError("a data worker died", hint=hint, details=said)


def _too_many_files() -> ResourceError:
    what = "too many files are open for data workers to pass on their batches"
    return ResourceError(what, hint="set data.workers=0, or raise the limit of `ulimit -n`")


class _Iterations(Dataset["Batch | C2fdftError"]):
    """Maps iteration numbers to batches, for worker processes."""

    def __init__(self, maker: BatchMaker, slice_of: SliceOf) -> None:
        self._maker = maker
        self._slice_of = slice_of

    def make(self, k: int) -> Batch:
        _, batch = self._maker.cycle.size_at(k)
        return self._maker.make(k, *self._slice_of(batch))

    def __getitem__(self, k: int) -> Batch | C2fdftError:
        try:
            return _shared(self.make(k))
        except C2fdftError as error:  # returned: torch would turn it into the text of a traceback
            return error


def _shared(batch: Batch) -> Batch:
    """Return a batch in shared memory; ResourceError if it does not fit.

    Otherwise a thread of torch's queue would do this. If it failed there, the batch would be lost
    and the training would wait for it forever.
    """
    try:
        return batch.share_memory()
    except RuntimeError as error:
        if "Too many open files" in str(error):
            raise _too_many_files() from error
        raise ResourceError(
            "the shared memory is full: a data worker cannot pass on its batch",
            hint="set data.workers=0, or enlarge /dev/shm (docker run --shm-size)",
            details=str(error).splitlines()[:1],
        ) from error


def _leave_signals_to_parent(_: int) -> None:
    """Ignore signals, which may reach the whole process group: only the parent decides to stop.

    The parent ends its workers by a message, and workers notice if the parent has died.
    """
    ignore()
