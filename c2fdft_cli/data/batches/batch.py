"""Makes one iteration's patches as tensors: cropped, flipped, degraded, with mixup partners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from c2fdft_cli.data.batches.plan import Draw, PatchPlan
from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.data.shards.format import CHANNELS
from c2fdft_cli.data.shards.reader import Kind, ShardSet
from c2fdft_cli.data.symmetries import SYMMETRIES
from c2fdft_cli.data.synthesis.degrade import Degradation
from c2fdft_cli.data.synthesis.line_patterns import draw_line_pattern
from c2fdft_cli.errors import DataError


@dataclass(frozen=True)
class Batch:
    """The rows [lo, hi) of one iteration's global batch; channels last in memory.

    Args:
        iteration: k, counted from 1.
        lq: uint8 [n, 3, p, p], or int16 if it may have values outside 0..255.
        gt: uint8 [n, 3, p, p].
        noise: float32 [n, 3, p, p], standard normal.
        times: int64 [n], antithetic diffusion times; the fine stage ignores them.
        lq2, gt2: the mixup partners, or None in iterations without mixup.
        lam: weight of (lq, gt); (lq2, gt2) have weight 1 - lam. 1 without mixup.
    """

    iteration: int
    lq: Tensor
    gt: Tensor
    noise: Tensor
    times: Tensor
    lq2: Tensor | None = None
    gt2: Tensor | None = None
    lam: float = 1.0

    def __len__(self) -> int:
        return len(self.gt)

    def rows(self, lo: int, hi: int) -> Batch:
        """Return the rows [lo, hi) of this batch, as views: a micro-batch."""
        return self._map(lambda tensor: tensor[lo:hi])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return this batch with all tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return this batch with all tensors in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def share_memory(self) -> Batch:
        """Return this batch with all tensors in memory that other processes can open."""
        return self._map(lambda tensor: tensor.share_memory_())  # type: ignore[no-untyped-call]

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


class BatchMaker:
    """Makes the rows [lo, hi) of iteration k, and only these; can be pickled.

    Args:
        shards: the images.
        plan: which patches to use.
        degradation: makes lq from clean patches; it is given the patch after flips and rotations,
            so that rain keeps its directions.
        line_patterns: share of the patches on which lines are drawn before that, 0 to 1.
        total: T of the diffusion times that are sampled with each batch.

    Raises:
        DataError: clean-only shards without a degradation.
    """

    def __init__(
        self,
        shards: ShardSet,
        plan: PatchPlan,
        *,
        degradation: Degradation | None = None,
        line_patterns: float = 0.0,
        total: int,
    ) -> None:
        if degradation is None and not shards.has_lq:
            raise DataError(
                "these shards hold clean images only",
                where=shards.paths[0],
                hint="set data.synthesize in the recipe, or prepare pairs",
            )
        self.cycle = plan.cycle
        self._shards = shards
        self._plan = plan
        self._degradation = degradation
        self._margin = degradation.margin if degradation else 0
        self._line_patterns = line_patterns
        self._total = total

    def make(self, k: int, lo: int, hi: int) -> Batch:
        """Make the rows [lo, hi) of the global batch of iteration k."""
        mix = self._plan.mix(k)
        rows = np.arange(lo, hi)
        noise = self._noise(k, rows)
        times = torch.from_numpy(self._plan.times(k, self._total)[lo:hi].copy())
        if mix is None:
            lq, gt = self._patches(k, rows)
            return Batch(k, _nchw(lq), _nchw(gt), noise, times)
        # A mixup partner may be a row of another process. It is then made here too, which avoids
        # sending it. A row that is both sample and partner is made only once.
        both = np.concatenate([rows, mix.partner[lo:hi]])
        needed, place = np.unique(both, return_inverse=True)
        lq, gt = self._patches(k, needed)
        first, second = place[: len(rows)], place[len(rows) :]
        return Batch(
            k,
            _nchw(lq[first]),
            _nchw(gt[first]),
            noise,
            times,
            lq2=_nchw(lq[second]),
            gt2=_nchw(gt[second]),
            lam=mix.lam,
        )

    def _patches(self, k: int, rows: NDArray[np.int64]) -> tuple[NDArray[np.integer[Any]], Pixels]:
        """Make (lq, gt), [n, p, p, 3], for some rows of the global batch."""
        patch, _ = self.cycle.size_at(k)
        draw = self._plan.draw(k)
        shape = (len(rows), patch, patch, CHANNELS)
        dtype = self._degradation.patch_dtype if self._degradation else np.uint8
        lq, gt = np.empty(shape, dtype), np.empty(shape, np.uint8)
        for j, i in enumerate(rows.tolist()):
            if self._degradation:
                self._synthesize(self._degradation, draw, k, i, lq[j], gt[j])
            else:
                self._crop("lq", draw, i, lq[j])
                self._crop("gt", draw, i, gt[j])
        return lq, gt

    def _crop(self, kind: Kind, draw: Draw, i: int, out: Pixels) -> None:
        """Crop one patch, apply its symmetry and write it to `out`."""
        image, side = int(draw.image[i]), out.shape[0]
        top, left = int(draw.top[i]) - self._margin, int(draw.left[i]) - self._margin
        height, width = self._shards.sizes[image]
        if min(top, left) >= 0 and top + side <= height and left + side <= width:
            window = self._shards.window(kind, image, top, left, side, side)
        else:
            rows, columns = border(top, side, height), border(left, side, width)
            y, x = int(rows.min()), int(columns.min())
            shape = (int(rows.max()) + 1 - y, int(columns.max()) + 1 - x)
            inside = self._shards.window(kind, image, y, x, *shape)
            window = inside[rows[:, None] - y, columns - x]
        turn(window, int(draw.symmetry[i]), out)

    def _synthesize(
        self,
        degradation: Degradation,
        draw: Draw,
        k: int,
        i: int,
        lq: NDArray[np.integer[Any]],
        gt: Pixels,
    ) -> None:
        """Make one clean patch and its degraded version, without the margin, in `gt` and `lq`."""
        margin, side = self._margin, gt.shape[0]
        wide = np.empty((side + 2 * margin, side + 2 * margin, CHANNELS), np.uint8)
        self._crop("gt", draw, i, wide)
        rng = self._plan.generator(k, i)
        # Without line patterns no random number is consumed, so the same seed gives the same rain
        # as before line patterns existed.
        if self._line_patterns > 0 and rng.random() < self._line_patterns:
            wide = draw_line_pattern(wide, rng)
        degraded = degradation.patch(wide, rng)
        inner = slice(margin, margin + side)
        # `copyto` refuses to wrap int16 to uint8, which an assignment would do silently.
        np.copyto(lq, degraded[inner, inner])
        gt[...] = wide[inner, inner]

    def _noise(self, k: int, rows: NDArray[np.int64]) -> Tensor:
        """Sample standard normal noise, with a separate generator for each sample."""
        patch, _ = self.cycle.size_at(k)
        # Filled before it is permuted: random numbers are written in memory order, so another
        # layout would give each pixel different noise.
        noise = torch.empty((len(rows), patch, patch, CHANNELS))
        generator = torch.Generator()
        for j, i in enumerate(rows.tolist()):
            generator.manual_seed(self._plan.noise_seed(k, i))
            noise[j].normal_(generator=generator)
        return noise.permute(0, 3, 1, 2)


def border(start: int, length: int, size: int) -> NDArray[np.int64]:
    """Return indices start .. start+length-1 into an axis of `size`, reflected once at its ends.

    If the axis is too small for that, the end of the mirror image is repeated.
    """
    index = np.arange(start, start + length)
    mirrored = np.where(index < 0, -index, 2 * (size - 1) - index)
    index = np.where((index < 0) | (index >= size), mirrored, index)
    return np.clip(index, 0, size - 1)


def turn(window: Pixels, symmetry: int, out: Pixels) -> None:
    """Write one of the 8 symmetries of a square window [p, p, 3] to `out` (see `SYMMETRIES`)."""
    transpose, rows, columns = SYMMETRIES[symmetry]
    if transpose:
        window = cv2.transpose(window)
    if rows or columns:
        cv2.flip(window, -1 if rows and columns else int(columns), dst=out)
    else:
        out[...] = window


def _nchw(pixels: NDArray[np.integer[Any]]) -> Tensor:
    """View an array [n, h, w, 3] as a tensor [n, 3, h, w], without a copy."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
