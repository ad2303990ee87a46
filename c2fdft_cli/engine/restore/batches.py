"""Which images go through the network together: small ones of one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from c2fdft_cli.engine.restore.outputs import Item

SMALL_PIXELS = 1 << 16
MAX_BATCH = 16
BATCH_PIXELS = 1 << 18


def make_batches(
    items: Sequence[Item],
    batch: int = 0,
    fits: Callable[[int, int, int], bool] = lambda _height, _width, _count: True,
) -> list[list[Item]]:
    """Group images of one size, in the order in which each size comes first.

    Args:
        items: what is to be restored.
        batch: images in a batch; 0 for as many small ones as make up about a quarter megapixel.
        fits: whether so many images of (height, width) fit into memory together.
    """
    by_size: dict[tuple[int, int], list[Item]] = {}
    for item in items:
        by_size.setdefault((item.source.height, item.source.width), []).append(item)
    batches = []
    for (height, width), group in by_size.items():
        count = batch_size(height, width, batch, fits)
        batches += [group[i : i + count] for i in range(0, len(group), count)]
    return batches


def batch_size(height: int, width: int, batch: int, fits: Callable[[int, int, int], bool]) -> int:
    """How many images of a size go together; the arguments of `make_batches`."""
    count = (batch or _sensible_batch(height * width)) if height else 1
    while count > 1 and not fits(height, width, count):
        count //= 2
    return count


def _sensible_batch(pixels: int) -> int:
    """Images beyond 256 px a side keep a device busy by themselves."""
    if pixels > SMALL_PIXELS:
        return 1
    return max(1, min(MAX_BATCH, BATCH_PIXELS // pixels))
