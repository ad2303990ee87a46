"""The core's network computed in strips of rows: the same numbers in bounded memory.

In the network distant pixels are coupled only through sums over all pixels (`PixelSums`). So each
block takes two passes over the strips: the first gathers the sums (and v), the second applies the
matrix computed from them, followed by the feed-forward network. The residual stream is updated in
place, and every wider tensor exists for one strip only. On a CPU a strip stays in the cache, so
this is also the faster way to run a network that would fit in memory as a whole.

    for each block:
        for each strip:  qkv = dwconv(W_qkv norm1(z))      with a row of halo above and below
                         sums += sums of q, k;  v kept     [n, h, w, c]
        M = mixing_matrix(sums)                            [n, c, c]
        for each strip:  z += v M^T;  z += DFN(norm2(z))   reads no neighbouring pixel

The second pass may update z in place because the first has read all of it, halos included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add

import torch
from torch import Tensor, nn

from c2fdft_cli.core.attention import PixelSums
from c2fdft_cli.core.network import DFT, shuffled_view, unshuffled_view
from c2fdft_cli.core.precision import full_precision
from c2fdft_cli.execution.cuda.products import runs_on_gpu
from c2fdft_cli.execution.cuda.recorded import Recorder, records
from c2fdft_cli.execution.fused.choose import PLAIN, Passes, compiled_passes, passes_for
from c2fdft_cli.execution.kernels import row_ranges, rows_in_cache, with_halo
from c2fdft_cli.execution.native.block import NativeBlock
from c2fdft_cli.execution.native.library import kernels_for
from c2fdft_cli.execution.prepared import Conv, PreparedBlock, Projection, TimeEmbedding

# Multiplications per pixel of width c, in units of c^2. First pass: q, k, v (3) and their sums (1).
# Second pass: mixing (1) and DFN (8, for a hidden layer of width 4 c).
_GATHER, _APPLY = 4, 9

_Level = Sequence[PreparedBlock] | Sequence[NativeBlock]
# Its plain `gather` is never called: `StripNetwork._gather` calls the native block's own, which
# writes v in place, and the branch for a single strip is for GPUs.
_NATIVE = PLAIN._replace(mixing=NativeBlock.mixing, apply=NativeBlock.apply)

MAX_STRIP_VALUES = 3 << 27
"""Most values of the widest tensor in a strip, 0.8 GB in half precision: few kernels support more
than 2^31. The official network processes 1280x720 in one strip, whose v needs no copy; larger
strips are no faster."""

# Official network, bf16, on an H100: 37.0 ms launched one by one and 19.6 recorded at 512x512
# (2^23.6 values), 64.3 and 63.0 at 1280x720 (2^25.4): docs/performance.md.
MAX_RECORDED_CALL = 1 << 26
"""Values of the first level's stream up to which a call is recorded; more keep a GPU busy."""

# 128 rows of 256 px at the official width. At this size a call took 2.30 s in strips of 52 rows,
# 2.12 in strips of 128 and 2.20 in strips of 256 (two cores with AVX2: docs/performance.md).
_NATIVE_VALUES, _LEAST_NATIVE_ROWS = 128 * 256 * 48, 64


class StripNetwork:
    """A DFT with the same interface, `network(x, t) -> eps_hat`, computed strip by strip.

    For inference only. It holds a prepared snapshot of the weights: call `refresh` after they have
    changed or moved.

    Args:
        net: the network.
        rows: rows in a strip, at every level; None uses `default_rows`.
        dtype: precision of the weights and of the activations within a strip (bfloat16, float16);
            residual stream, statistics, first and last convolution and result stay float32.
        offload_skips: on CUDA, keep the skip tensors in pinned host memory until they are used.
        compile: compile the work on a strip with torch.compile, once for all sizes. On a CPU the
            kernels that run without it are as fast.

    Attributes:
        compiled: whether the work on a strip is compiled.
        watch: called during a call, after each piece of its work, with the piece's share of
            `work`. An exception that it raises ends the call.

    Raises:
        ValueError: rows below 1, or a dtype that is not floating-point.
    """

    def __init__(
        self,
        net: DFT,
        rows: int | None = None,
        dtype: torch.dtype = torch.float32,
        offload_skips: bool = False,
        compile: bool = False,
    ) -> None:
        if rows is not None and rows < 1:
            raise ValueError(f"a strip must have at least 1 row, got {rows}")
        if not dtype.is_floating_point:
            raise ValueError(f"expected a floating-point dtype, got {dtype}")
        self.net, self.rows, self.dtype, self.offload_skips = net, rows, dtype, offload_skips
        self.watch: Callable[[int], None] | None = None
        self.compiled = compile
        self._compiled_passes = compiled_passes() if compile else None
        self._recorder: Recorder[Tensor] = Recorder()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Prepare the network's current weights, replacing the snapshot."""
        # A recording would keep reading the old weights at their old addresses.
        self.forget()
        net = self.net
        levels = [self._level(level) for level in net.levels().values()]
        self._encoders, self._latent, self._decoders = levels[:3], levels[3], levels[4:]
        downs, ups = (net.down1_2, net.down2_3, net.down3_4), (net.up4_3, net.up3_2, net.up2_1)
        self._downs = [Conv.of(down.conv, self.dtype) for down in downs]
        self._ups = [Conv.of(up.conv, self.dtype) for up in ups]
        halves = (net.reduce_chan_level3, net.reduce_chan_level2)
        self._halves = [*(Projection.of(r, self.dtype, not self.compiled) for r in halves), None]
        self._time_embedding = TimeEmbedding.of(net.dim, net.output.weight.device)
        self._embed = Conv.of(net.patch_embed.proj, torch.float32)
        # Float32 in every precision: at t = 999 the sampler divides by sqrt(alpha_bar) = 0.0064,
        # which multiplies an error of the predicted noise by 157.
        self._output = Conv.of(net.output, torch.float32)
        self._skip_conv = net.skip_conv and Projection.of(net.skip_conv, torch.float32, True)

    @property
    def is_native(self) -> bool:
        """Whether the compiled C kernels for a CPU run."""
        return isinstance(self._latent[0], NativeBlock)

    def forget(self) -> None:
        """Release the GPU memory that a recorded call holds."""
        self._recorder.forget()

    def widest_passes(self) -> Passes:
        """Return the passes of decoder level 1, which needs the most memory.

        If they are not chosen yet, the kernels are tried now.
        """
        return self._passes_of(self._decoders[-1][0])

    def work(self, n: int, height: int, width: int) -> int:
        """Return the total work of a call with `n` images, in the arbitrary unit of `watch`."""
        return n * sum(
            len(level) * (_GATHER + _APPLY) * level.values(height, width) * level.width
            for level in self.net.levels().values()
        )

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise; arguments, result and errors as for `DFT.forward`.

        Raises:
            ValueError: also if gradients are enabled.
        """
        if torch.is_grad_enabled():
            raise ValueError("strips work in place: call them under torch.inference_mode()")
        self.net.check_input(x)
        n, _, h, w = x.shape
        rows = self.rows or default_rows(self.net.dim, h, w, x.device.type, self.is_native)
        out = x.new_empty((n, self.net.out_channels, h, w), dtype=torch.float32)
        # Several strips of one image rather than one strip of several images. Images that fit in
        # one strip run together, as many as keep its widest tensor within the limit.
        step = max(1, min(n, MAX_STRIP_VALUES // _widest(self.net.dim, h * w))) if rows >= h else 1
        with full_precision(x):
            for i in range(0, n, step):
                images = slice(i, i + step)
                self._call(x[images], t[images], out[images], rows)
        return out

    def _call(self, x: Tensor, t: Tensor, out: Tensor, rows: int) -> None:
        """Run a call into `out`; on a GPU record it if launches would take most of its time."""
        small = x[:, 0].numel() * self.net.dim <= MAX_RECORDED_CALL
        if not small or self.compiled or self.offload_skips or not records(x.device):
            # A recording reserves its memory, which a call that is not recorded may need.
            self.forget()
            self._run(x, t, out, rows)
            return
        # A replay runs no Python, so a recorded call can only report its whole work, afterwards.
        # Besides, an exception from `watch` would be mistaken for a failure to record the work.
        watch, self.watch = self.watch, None
        try:
            # A graph writes to the addresses that it was recorded with: copy the result before the
            # next replay overwrites it.
            out.copy_(self._recorder(partial(self._result, rows=rows), x, t, key=rows))
        finally:
            self.watch = watch
        if watch is not None:
            watch(self.work(len(x), *x.shape[-2:]))

    def _result(self, x: Tensor, t: Tensor, rows: int) -> Tensor:
        out = x.new_empty((len(x), self.net.out_channels, *x.shape[-2:]), dtype=torch.float32)
        self._run(x, t, out, rows)
        return out

    def _run(self, x: Tensor, t: Tensor, out: Tensor, rows: int) -> None:
        embed_time = self._time_embedding if runs_on_gpu(x) else self.net.time_embeddings
        time1, time2, time3, time4 = embed_time(t)
        z = self._embedding(x, rows)
        skips: list[Tensor] = []
        for level, down, time in zip(
            self._encoders, self._downs, (time1, time2, time3), strict=True
        ):
            self._blocks(level, z, time, rows)
            # No other name may refer to the skip: once it is parked in host memory and z is the
            # next level's stream, its device memory is free for that level's blocks.
            skips.append(z)
            z = self._down(z, down, rows)
            skips[-1] = self._park(skips[-1])
        self._blocks(self._latent, z, time4, rows)
        # Decoder level 1 has twice the width of encoder level 1, and so the time of level 2.
        of_levels = (time3, time2, time2)
        decoders = zip(self._decoders, self._ups, self._halves, of_levels, strict=True)
        for level, up, halve, time in decoders:
            z = self._up(z, up, skips.pop(), halve, rows)
            self._blocks(level, z, time, rows)
        self._noise(x, z, out, rows)

    def _embedding(self, x: Tensor, rows: int) -> Tensor:
        n, _, h, w = x.shape
        pixels = x.permute(0, 2, 3, 1)
        if h <= rows:
            return self._embed(pixels, 0, h).contiguous()
        z = x.new_empty((n, h, w, self.net.dim), dtype=torch.float32)
        for top, bottom in row_ranges(h, rows):
            z[:, top:bottom] = self._embed(pixels, top, bottom)
        return z

    def _blocks(self, level: _Level, z: Tensor, time: Tensor, rows: int) -> None:
        """Run the blocks of a level in place on `z: [n, h, w, c]` float32."""
        h, passes = z.shape[1], self._passes_of(level[0])
        # With a single strip v may stay where it was computed, as a third of q, k, v; a copy would
        # take two more passes through memory.
        if h <= rows and runs_on_gpu(z):
            for block in level:
                sums, v = passes.gather(block, z, time, 0, h)
                self._report_progress(_GATHER, z)
                passes.apply(block, z, v, time, passes.mixing(block, sums))
                self._report_progress(_APPLY, z)
                del v  # it keeps q and k alive, too
            return
        # One v for all blocks of the level: each block writes all of it before it reads any.
        v, strips = torch.empty_like(z, dtype=self.dtype), list(row_ranges(h, rows))
        for block in level:
            # The sums are added as they are computed, in the order of the strips: few are held at a
            # time, and every run of a call gives the same bits.
            parts = (self._gather(passes, block, z, v, time, *strip) for strip in strips)
            mixing = passes.mixing(block, reduce(add, parts))
            for top, bottom in strips:
                passes.apply(block, z[:, top:bottom], v[:, top:bottom], time, mixing)
                self._report_progress(_APPLY, z[:, top:bottom])

    @torch.no_grad()
    def _passes_of(self, block: PreparedBlock | NativeBlock) -> Passes:
        """Return the passes that run blocks like this one."""
        if not isinstance(block, PreparedBlock):
            return _NATIVE
        return self._compiled_passes or passes_for(block)

    def _gather(
        self,
        passes: Passes,
        block: PreparedBlock | NativeBlock,
        z: Tensor,
        v: Tensor,
        time: Tensor,
        top: int,
        bottom: int,
    ) -> PixelSums:
        """Return the sums of rows top to bottom, and write their v into v, which has all rows."""
        if isinstance(block, NativeBlock):  # takes whole tensors, and finds rows and halo itself
            sums = block.gather(z, v, time, top, bottom)
        else:
            first, last = with_halo(top, bottom, z.shape[1])
            sums, v[:, top:bottom] = passes.gather(
                block, z[:, first:last], time, top - first, bottom - top
            )
        self._report_progress(_GATHER, z[:, top:bottom])
        return sums

    def _report_progress(self, products: int, z: Tensor) -> None:
        if self.watch is not None:
            self.watch(products * z.numel() * z.shape[3])

    def _down(self, z: Tensor, conv: Conv, rows: int) -> Tensor:
        n, h, w, c = z.shape
        below = z.new_empty((n, h // 2, w // 2, 2 * c))
        for top, bottom in row_ranges(h // 2, max(1, rows // 2)):
            fine = unshuffled_view(conv(z, 2 * top, 2 * bottom))
            below[:, top:bottom].unflatten(3, fine.shape[3:]).copy_(fine)  # type: ignore[no-untyped-call]
        return below

    def _up(
        self, z: Tensor, conv: Conv, skip: Tensor, halve: Projection | None, rows: int
    ) -> Tensor:
        n, h, w, c = z.shape
        above = z.new_empty((n, 2 * h, 2 * w, c if halve is None else c // 2))
        # Strips of half as many rows, because each row becomes two.
        for top, bottom in row_ranges(h, max(1, rows // 2)):
            fine = slice(2 * top, 2 * bottom)
            up = shuffled_view(conv(z, top, bottom))
            # Decoder level 1 concatenates the two without a projection, so its skip stays float32.
            both = (
                above[:, fine] if halve is None else up.new_empty((n, *above[0, fine].shape[:2], c))
            )
            beside = both[..., c // 2 :]
            into = both[..., : c // 2].unflatten(2, (w, 2)).unflatten(1, (-1, 2))  # type: ignore[no-untyped-call]
            into.copy_(up)
            # Copies from pinned memory, like those into it, run in the stream's order after earlier
            # work; the caller waits for neither.
            beside.copy_(skip[:, fine].to(z.device, non_blocking=True))
            if halve is not None:
                above[:, fine] = halve(both)
        return above

    def _noise(self, x: Tensor, z: Tensor, out: Tensor, rows: int) -> None:
        pixels = x.permute(0, 2, 3, 1)
        # The embedding is recomputed rather than kept for the whole call. It is added to all rows
        # before any is convolved: the output convolution reads a row above and below its strip.
        if self._skip_conv is not None:
            for top, bottom in row_ranges(z.shape[1], rows):
                z[:, top:bottom] += self._skip_conv(self._embed(pixels, top, bottom))
        for top, bottom in row_ranges(z.shape[1], rows):
            out[:, :, top:bottom] = self._output(z, top, bottom).permute(0, 3, 1, 2)
        if self._skip_conv is None:
            out += self.net.x_t(x)

    def _park(self, skip: Tensor) -> Tensor:
        if not (self.offload_skips and skip.is_cuda):
            return skip
        host = torch.empty(skip.shape, dtype=skip.dtype, pin_memory=True)
        return host.copy_(skip, non_blocking=True)

    def _level(self, blocks: nn.ModuleList) -> _Level:
        kernels = None if self.compiled else kernels_for(self.net.output.weight.device, self.dtype)
        if kernels is not None:
            return [NativeBlock.of(b, kernels) for b in blocks]  # type: ignore[arg-type]
        return [PreparedBlock.of(b, self.dtype, not self.compiled) for b in blocks]  # type: ignore[arg-type]


def default_rows(
    dim: int, height: int, width: int, device: str = "cpu", native: bool = False
) -> int:
    """Return the number of rows in a strip that runs fast.

    On a CPU these are as many as its caches hold; on other devices all rows, in equal strips of at
    most `MAX_STRIP_VALUES`.

    Args:
        dim: width C of the network's first level.
        height: height of the image.
        width: width of the image.
        device: type of the device.
        native: whether the compiled kernels run, which choose cache-sized tiles themselves.
    """
    if native:
        return min(height, max(_LEAST_NATIVE_ROWS, _NATIVE_VALUES // (dim * width)))
    if device == "cpu":
        return rows_in_cache(height, dim * width)
    most = max(1, MAX_STRIP_VALUES // _widest(dim, width))
    strips = -(-height // most)
    return -(-height // strips)


def _widest(dim: int, pixels: int) -> int:
    """Return the values of decoder level 1's hidden layer, 4 times as wide as its stream of 2C."""
    return 8 * dim * pixels
