"""How much memory a network call needs, whole or in bands of rows, and which of them fits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from c2fdft_cli.core.attention import CHUNK, in_pieces
from c2fdft_cli.core.network import DFT, SIZE_MULTIPLE
from c2fdft_cli.execution.kernels import fusable
from c2fdft_cli.execution.strips import default_rows

_FULL = 4  # bytes of a float32


@dataclass(frozen=True)
class Plan:
    """How to run the network.

    executor: "whole" (the network itself) or "banded".
    rows: rows in a band; the whole height for "whole".
    peak_bytes: predicted peak of one call beyond the weights and its input.
    """

    executor: str
    rows: int
    peak_bytes: int


def plan(
    net: DFT,
    height: int,
    width: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    budget_bytes: int | None = None,
) -> Plan:
    """Choose the executor that is fast and fits.

    On a CPU bands run faster than the whole network, so it takes bands there in any case.

    Args:
        net: the network, on the device where it will run.
        height: of the images, a multiple of 8.
        width: of the images, a multiple of 8.
        batch: images in a call.
        dtype: of the activations.
        budget_bytes: what a call may take beyond the weights; None for no limit.

    Raises:
        ValueError: a size that is not positive and a multiple of 8, or not even bands of one row
            fit; says what would.
    """
    if height < 1 or width < 1 or batch < 1 or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ValueError(f"sides must be multiples of {SIZE_MULTIPLE}, got {height}x{width}")
    device = net.output.weight.device
    if device.type != "cpu":
        peak = whole_bytes(net, height, width, batch, dtype)
        if budget_bytes is None or peak <= budget_bytes:
            return Plan("whole", height, peak)
    rows = default_rows(net.dim, height, width, device.type)
    while True:
        peak = banded_bytes(net, height, width, batch, dtype, rows)
        if budget_bytes is None or peak <= budget_bytes:
            return Plan("banded", rows, peak)
        if rows == 1:
            break
        rows //= 2
    fitting = height * width * budget_bytes / peak / 1e6
    raise ValueError(
        f"{height}x{width} needs {peak} bytes in bands of 1 row, {budget_bytes} may be used: "
        f"about {fitting:.2g} megapixels fit"
    )


def whole_bytes(
    net: DFT, height: int, width: int, batch: int = 1, dtype: torch.dtype = torch.float32
) -> int:
    """Peak bytes of `net(x, t)` in inference, under autocast for other dtypes than float32.

    It is in decoder level 1, where skips and embedding are alive beside one block: the level's
    input, the stream before and behind attention, the norm, and q, k, v on both sides of the
    depth-wise convolution, or the hidden layer. On a CPU it takes less (`rows_in_cache`).
    """
    size, autocast = dtype.itemsize, dtype != torch.float32
    streams = _FULL * (2 if len(net.decoder_level1) == 1 else 3)
    attention = streams + 6 * size  # its own result not yet, but the norm
    feed_forward = streams + _FULL + _hidden(net, dtype, autocast) * size
    skips = _FULL * (1 + 1 + 1 / 2 + 1 / 4)  # embedding and levels 1 to 3, in C values per pixel
    return int((2 * max(attention, feed_forward) + skips) * net.dim * height * width * batch)


def banded_bytes(
    net: DFT,
    height: int,
    width: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    rows: int = 32,
) -> int:
    """Peak bytes of `Banded(net, rows, dtype)(x, t)`: streams at level 1, and one band.

    With several bands the images of a batch run one after another.
    """
    together = batch if rows >= height else 1
    line = width * together * net.dim  # values of level 1 in one row
    out = _FULL * net.out_channels * height * width * batch
    # of these many rows q and k are float32 at a time
    cast: float = min(rows, height)
    if dtype != torch.float32 and in_pieces(net.output.weight.device):
        cast = min(cast, CHUNK / width)
    widest = _widest(net, line, height, dtype, rows, cast)
    return out + max(_joining(line, height, dtype, rows), widest)


def _joining(line: int, height: int, dtype: torch.dtype, rows: int) -> int:
    """Making the stream of decoder level 1 out of its skip and the level below."""
    streams = _FULL * (2 + 1 + 2 / 4) * height
    # below, at half the sides: 2C values and their convolution's 4C; above: C after the shuffle
    band = dtype.itemsize * min(rows // 2 + 2, height // 2) * (2 + 4) / 2
    shuffled = dtype.itemsize * min(max(rows, 2), height)
    return int(line * (streams + band + shuffled))


def _widest(net: DFT, line: int, height: int, dtype: torch.dtype, rows: int, cast: float) -> int:
    """A block of decoder level 1: stream, v, and the wider of the two passes' bands."""
    size = dtype.itemsize
    band, with_halo = min(rows, height), min(rows + 2, height)
    sums = _FULL * cast * (1 if dtype == torch.float32 else 3)  # squares; q and k if they are cast
    gather = max(6 * size * with_halo, 3 * size * with_halo + sums)
    apply = (size + _hidden(net, dtype) * size) * band
    return int(2 * line * ((_FULL + size) * height + max(gather, apply)))


def _hidden(net: DFT, dtype: torch.dtype, autocast: bool = False) -> float:
    """Hidden values alive at once, over the width: both sides of GELU where it is not fused."""
    project_in: nn.Conv2d = net.get_submodule("decoder_level1.0.ffn.project_in")  # type: ignore[assignment]
    copies = 1 if fusable(project_in.weight.device, dtype) and not autocast else 2
    return copies * project_in.out_channels / project_in.in_channels
