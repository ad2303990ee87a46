"""How the network runs on an image: whole or in bands by the memory there is, or in tiles."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from c2fdft_cli.core.network import DFT, SIZE_MULTIPLE
from c2fdft_cli.engine.sampling.restorer import Restorer
from c2fdft_cli.errors import ResourceError
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.inference_memory import rows_that_fit, strip_bytes
from c2fdft_cli.execution.memory import free_bytes, is_out_of_memory
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.execution.tiled import Tiled, tiles

MARGIN = 0.8
"""Share of the free memory that restoring takes unless told otherwise."""
SOME_TILE = 512
"""A tile to suggest, in px."""
MIN_ROWS = 8
"""Rows below which running out of memory is not answered by narrower bands."""
SAMPLER_BYTES = 4 * 42
"""Bytes for each pixel outside the network's own: its input, condition, x_t, blended tiles, and
results that wait to be written."""

Out = TypeVar("Out")


class Ran(NamedTuple):
    """A restored batch, and how.

    executor: "whole", "bands of N rows" or "tiles of N px".
    notes: what did not go as planned.
    """

    image: Tensor
    executor: str
    notes: list[str]


class Executor:
    """Runs the sampler on batches of any size within a memory budget.

    Args:
        net: the network, on the runtime's device.
        alpha_bar: `[T]`.
        grid: times of the network calls.
        runtime: device and arithmetic.
        eta, seed: of the sampler.
        max_memory: bytes that may be used; None for what is free, with a margin.
        tile: side of tiles; None for the exact result.
        compile: compile the work on a band.
    """

    def __init__(
        self,
        net: DFT,
        alpha_bar: Tensor,
        grid: Sequence[int],
        runtime: Runtime,
        *,
        eta: float = 0.0,
        seed: int = 0,
        max_memory: int | None = None,
        tile: int | None = None,
        compile: bool = False,
    ) -> None:
        self._net = net
        self._runtime = runtime
        self._tile = tile
        self._network = StripNetwork(net, dtype=runtime.dtype, compile=compile)
        self.budget = max_memory or int(free_bytes(runtime) * MARGIN)
        predict_noise = self._network if tile is None else Tiled(self._network, tile)
        self.restorer = Restorer(predict_noise, alpha_bar, grid, runtime, eta=eta, seed=seed)

    def report_to(self, watch: Callable[[int], None]) -> None:
        """Call it with the amount of each finished piece of `work`; it may raise to end it."""
        self._network.watch = watch

    def work(self, height: int, width: int, count: int) -> int:
        """What the pieces of restoring so many images of a size sum up to."""
        tall, wide = self._inner(height, width)
        number = 1 if self._tile is None else tiles(_padded(height), _padded(width), self._tile)
        return len(self.restorer.grid) * number * self._network.work(count, tall, wide)

    def rows(self, height: int, width: int, count: int = 1) -> int:
        """Rows in a band for images of a size: as many as run fast and fit.

        Args:
            height, width: pixels of each image.
            count: images in the batch.

        Raises:
            ResourceError: not even the narrowest bands fit; names what would.
        """
        try:
            return self._planned_rows(height, width, count, self.budget)
        except ValueError:
            raise self._too_large(height, width, count) from None

    def fits(self, height: int, width: int, count: int) -> bool:
        """Whether a batch can run without narrower bands than one image of it would."""
        try:
            rows = self._planned_rows(height, width, count, self.budget)
        except ValueError:
            return False
        return rows == self._planned_rows(height, width, count, None)

    def __call__(self, lq: Tensor, names: Sequence[str], draw: int = 0) -> Ran:
        """Restore `lq: [n, 3, h, w]` in [0, 1]; in narrower bands where memory runs out.

        Raises:
            ResourceError: out of memory in the narrowest bands too.
        """
        height, width = lq.shape[-2:]
        rows = self.rows(height, width, len(lq) if self.fits(height, width, len(lq)) else 1)
        notes: list[str] = []
        while True:
            self._network.rows = rows
            image = _unless_out_of_memory(lambda: self.restorer(lq, names, draw))
            if image is not None:
                return Ran(image, self._describe(rows, height, width), notes)
            self._free()
            if len(lq) > 1:
                return self._one_by_one(lq, names, draw)
            if rows <= MIN_ROWS:
                raise ResourceError(
                    f"out of memory at {width}x{height} px in bands of {rows} rows",
                    where=names[0],
                    hint="free some memory, use a smaller --tile, or another device",
                )
            rows = max(MIN_ROWS, rows // 4)
            notes = [f"out of memory: went on in bands of {rows} rows"]

    def _one_by_one(self, lq: Tensor, names: Sequence[str], draw: int) -> Ran:
        """A batch that is too much at once."""
        ran = [self(lq[i : i + 1], names[i : i + 1], draw) for i in range(len(lq))]
        notes = ["out of memory: went on one image at a time"]
        return Ran(torch.cat([one.image for one in ran]), ran[-1].executor, notes)

    def _planned_rows(self, height: int, width: int, count: int, budget: int | None) -> int:
        """Rows in a band by the plan; ValueError where none fit into `budget` bytes."""
        if budget is not None:
            budget -= _outside(height, width, count)
        inner = self._inner(height, width)
        return rows_that_fit(self._net, *inner, count, self._runtime.dtype, budget)

    def _too_large(self, height: int, width: int, count: int) -> ResourceError:
        inner = self._inner(height, width)
        network = strip_bytes(self._net, *inner, count, self._runtime.dtype, rows=1)
        needed = network + _outside(height, width, count)
        fitting = height * width * self.budget / needed / 1e6
        want, have = (f"{size / 2**20:,.1f} MiB" for size in (needed, self.budget))
        hint = f"about {fitting:,.2f} megapixels fit; raise --max-memory"
        if self._tile is None and self._fits_in_tiles(height, width, count):
            hint += f", or use --tile {SOME_TILE}"
        return ResourceError(
            f"{width}x{height} px needs {want} of memory, {have} may be used", hint=hint
        )

    def _fits_in_tiles(self, height: int, width: int, count: int) -> bool:
        tall, wide = min(_padded(height), SOME_TILE), min(_padded(width), SOME_TILE)
        network = strip_bytes(self._net, tall, wide, count, self._runtime.dtype, rows=1)
        return network + _outside(height, width, count) <= self.budget

    def _inner(self, height: int, width: int) -> tuple[int, int]:
        """The size that the network sees: padded, or a tile's."""
        tall, wide = _padded(height), _padded(width)
        return (
            (tall, wide) if self._tile is None else (min(tall, self._tile), min(wide, self._tile))
        )

    def _describe(self, rows: int, height: int, width: int) -> str:
        if self._tile is not None and max(_padded(height), _padded(width)) > self._tile:
            return f"tiles of {self._tile} px"
        return "whole" if rows >= _padded(height) else f"bands of {rows} rows"

    def _free(self) -> None:
        gc.collect()
        if self._runtime.device.type == "cuda":
            torch.cuda.empty_cache()


def _padded(side: int) -> int:
    return -(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE


def _outside(height: int, width: int, count: int) -> int:
    """Bytes that a batch takes beside the network's call."""
    return SAMPLER_BYTES * _padded(height) * _padded(width) * count


def _unless_out_of_memory(work: Callable[[], Out]) -> Out | None:
    """The result of `work`, or None when memory ran out; other errors come out."""
    try:
        return work()
    except Exception as error:  # torch has several kinds of it
        if is_out_of_memory(error):
            return None
        raise
