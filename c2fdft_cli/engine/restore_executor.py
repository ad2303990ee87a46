"""How the network runs on an image: whole or in bands by the memory there is, or in tiles."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from c2fdft_cli.core.bands import Banded, default_rows
from c2fdft_cli.core.dft import DFT, SIZE_MULTIPLE
from c2fdft_cli.engine.memory import free_bytes
from c2fdft_cli.engine.restore_tiles import Tiled
from c2fdft_cli.engine.restorer import Restorer
from c2fdft_cli.engine.runtime import Runtime
from c2fdft_cli.errors import ResourceError

MARGIN = 0.8
"""Share of the free memory that restoring takes unless told otherwise."""
MIN_ROWS = 8
SAMPLER_BYTES = 4 * 42
"""Bytes for each pixel outside the network: condition, x_t, eps_hat, x_0 and their sums."""

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
    ) -> None:
        self.budget = max_memory or int(free_bytes(runtime) * MARGIN)
        self._dim = net.dim
        self._runtime = runtime
        self._tile = tile
        self._banded = Banded(net, dtype=runtime.dtype)
        predict_noise = self._banded if tile is None else Tiled(self._banded, tile)
        self.restorer = Restorer(predict_noise, alpha_bar, grid, runtime, eta=eta, seed=seed)

    def rows(self, height: int, width: int, count: int = 1) -> int:
        """Rows in a band for images of a size: as many as run fast and fit.

        Args:
            height, width: pixels of each image.
            count: images in the batch.

        Raises:
            ResourceError: not even the narrowest bands fit; names what would.
        """
        tall, wide = _padded(height), _padded(width)
        inner = (tall, wide) if self._tile is None else _tile_size(tall, wide, self._tile)
        rows = default_rows(self._dim, *inner, self._runtime.device.type)
        while self._needed(tall, wide, inner, rows, count) > self.budget and rows > MIN_ROWS:
            rows = max(MIN_ROWS, rows // 2)
        needed = self._needed(tall, wide, inner, rows, count)
        if needed > self.budget:
            raise self._too_large(height, width, needed)
        return min(rows, inner[0])

    def fits(self, height: int, width: int, count: int) -> bool:
        """Whether a batch can run without narrower bands than one image of it would."""
        tall, wide = _padded(height), _padded(width)
        inner = (tall, wide) if self._tile is None else _tile_size(tall, wide, self._tile)
        rows = default_rows(self._dim, *inner, self._runtime.device.type)
        return self._needed(tall, wide, inner, rows, count) <= self.budget

    def __call__(self, lq: Tensor, names: Sequence[str], draw: int = 0) -> Ran:
        """Restore `lq: [n, 3, h, w]` in [0, 1]; in narrower bands where memory runs out.

        Raises:
            ResourceError: out of memory in the narrowest bands too.
        """
        height, width = lq.shape[-2:]
        rows = self.rows(height, width, len(lq) if self.fits(height, width, len(lq)) else 1)
        notes: list[str] = []
        while True:
            self._banded.rows = rows
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
                    hint="free some memory, use --tile 512, or another device",
                )
            rows = max(MIN_ROWS, rows // 4)
            notes = [f"out of memory: went on in bands of {rows} rows"]

    def _one_by_one(self, lq: Tensor, names: Sequence[str], draw: int) -> Ran:
        """A batch that is too much at once."""
        ran = [self(lq[i : i + 1], names[i : i + 1], draw) for i in range(len(lq))]
        notes = ["out of memory: went on one image at a time"]
        return Ran(torch.cat([one.image for one in ran]), ran[-1].executor, notes)

    def _needed(
        self, height: int, width: int, inner: tuple[int, int], rows: int, count: int
    ) -> int:
        """Bytes at the peak: the sampler's, the network's streams, and one band.

        Level 1 of the decoder is the widest (2C): its stream in float32 with v beside it, or the
        stream being made out of the skip and the level below; a band's projections and hidden
        layer come on top.
        """
        size = self._runtime.dtype.itemsize
        streams = (8 + max(2 * size, 8)) * self._dim * inner[0] * inner[1]
        band = (24 + 20 * size) * self._dim * (min(rows, inner[0]) + 2) * inner[1]
        both = count if rows >= inner[0] else 1
        return SAMPLER_BYTES * height * width * count + both * (streams + band)

    def _too_large(self, height: int, width: int, needed: int) -> ResourceError:
        fitting = height * width * self.budget / needed / 1e6
        want, have = (f"{count / 2**20:,.1f} MiB" for count in (needed, self.budget))
        return ResourceError(
            f"{width}x{height} px needs {want} of memory, {have} may be used",
            hint=f"about {fitting:.2g} megapixels fit; raise --max-memory, or use --tile 512",
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


def _tile_size(height: int, width: int, tile: int) -> tuple[int, int]:
    return min(height, tile), min(width, tile)


def _unless_out_of_memory(work: Callable[[], Out]) -> Out | None:
    """The result of `work`, or None when memory ran out; other errors come out."""
    try:
        return work()
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except RuntimeError as error:
        if "allocate memory" in str(error):  # torch's words on a CPU
            return None
        raise
