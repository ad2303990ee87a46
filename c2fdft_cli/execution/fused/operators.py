"""The kernels as torch operators, `torch.ops.c2fdft`, whose schemas state what they read and write.

This makes them visible to tools that observe operators: tensors without data, profilers, counters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from c2fdft_cli.core.layers import NORM_EPS
from c2fdft_cli.execution.fused import backward_kernels, kernels

_LIBRARY = torch.library.Library("c2fdft", "DEF")  # type: ignore[no-untyped-call]

_PROGRAMS = 1024
"""Approximate number of programs of a kernel that sums over pixels: enough to fill the largest GPU,
few enough to keep their partial sums small."""
_LEAST_PIXELS = 256
"""Fewest pixels that are worth a program and its partial sums."""
_LEAST_ROWS, _ROWS_TO_START = 4, 6
"""Fewest rows of a program of the depth-wise convolution, and the rows that it could compute in the
time that it takes to start, to read a row more at each end, and to write its sums."""
_PROCESSORS, _REGISTERS, _MOST_REGISTERS = 132, 1 << 16, 255
"""Multiprocessors of an H100, assumed without a GPU; registers of a multiprocessor of any GPU that
runs the kernels; most registers of a thread."""


class Tile(NamedTuple):
    """How a kernel divides its work.

    pixels: pixels in a tile; for the depth-wise convolution, columns, two of which are margin.
    units: hidden units, output channels of a product, or channels of the depth-wise convolution
        that are computed together; for its sums, 0, because those are of all channels of a head.
    warps: warps of a program. A product of M pixels uses M / 16; more repeat the work of others.
    stages: stages of the loop's software pipeline.
    registers: most registers of a thread, if the compiler would take more: with 128, 16 warps run
        at a time, and wait for memory in turns.
    """

    pixels: int
    units: int
    warps: int
    stages: int = 1
    registers: int | None = None

    def options(self) -> dict[str, int]:
        """Return the launch options for Triton."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return options if self.registers is None else {**options, "maxnreg": self.registers}


Tiles = dict[int, Tile]
"""Tiles by the largest number of channels that each is for; the last serves any larger number.
For sums, these are the channels of a head. These tiles were the fastest of several on an H100
(docs/performance.md), but for the gradients and for the sums at 48 channels. Each fits the shared
memory of a program, 99 KiB on sm_86, sm_89 and sm_120:
tests/execution/fused/test_compiled.py compiles them for GPUs that the machine does not have."""

_NORM_PRODUCT: Tiles = {
    32: Tile(64, 64, 4),
    64: Tile(128, 32, 4, stages=3),
    128: Tile(64, 64, 4, stages=2, registers=128),
    256: Tile(64, 64, 4, stages=3),
}
_DEPTHWISE: Tiles = {
    32: Tile(32, 32, 4, stages=3, registers=96),
    64: Tile(16, 64, 4, stages=5, registers=128),
}
_SUMS: Tiles = {
    32: Tile(16, 0, 4, stages=5, registers=128),
    64: Tile(16, 0, 4, stages=5),
    128: Tile(16, 0, 8, stages=6),
}
_SECOND_PASS: Tiles = {
    32: Tile(64, 32, 4),
    64: Tile(64, 32, 4, stages=3, registers=96),
    128: Tile(64, 32, 4, stages=3, registers=128),
    256: Tile(64, 32, 4, stages=3),
}
# Other tiles were up to four times as fast on the H200, but one of them ended in an illegal memory
# access there. Until that is explained, these stay, with which networks have been trained.
_FEED_FORWARD_BACKWARD: Tiles = {
    32: Tile(32, 64, 8),
    64: Tile(32, 64, 8),
    128: Tile(32, 64, 8),
}
_FEED_FORWARD_WEIGHTS: Tiles = {
    32: Tile(64, 64, 8),
    64: Tile(64, 64, 8),
    128: Tile(32, 64, 8),
}


def _tile(tiles: Tiles, channels: int) -> Tile:
    return tiles[min((width for width in tiles if width >= channels), default=max(tiles))]


def _norm(
    z: Tensor, weight: Tensor, bias: Tensor | None, time: Tensor, dtype: torch.dtype
) -> Tensor:
    n, h, w, c = z.shape
    y = torch.empty(z.shape, dtype=dtype, device=z.device)
    padded = triton.next_power_of_2(c)
    m = max(1, 4096 // padded)
    kernels.norm_kernel[(triton.cdiv(h * w, m), n)](
        _dense(z), weight, bias, time, y, h * w, _stride(time), c, padded, m, NORM_EPS,
        num_warps=4,
    )  # fmt: skip
    return y


def _norm_product(
    z: Tensor, weight: Tensor, bias: Tensor | None, time: Tensor,
    matrix: Tensor, matrix_bias: Tensor | None, gelu: bool = False,
) -> Tensor:  # fmt: skip
    n, h, w, c = z.shape
    out = _norm_product_result(z, matrix)
    a, b = _parts(c)
    tile = _tile(_NORM_PRODUCT, c)
    kernels.norm_product_kernel[(triton.cdiv(h * w, tile.pixels), n)](
        _dense(z), weight, bias, time, matrix, matrix_bias, out, h * w, _stride(time),
        c, len(matrix), a, b, tile.pixels, tile.units, NORM_EPS, "ieee", gelu, **tile.options(),
    )  # fmt: skip
    return out


def _norm_product_result(z: Tensor, matrix: Tensor) -> Tensor:
    return z.new_empty((*z.shape[:3], len(matrix)), dtype=matrix.dtype)


def _norm_backward(
    z: Tensor, weight: Tensor, centred: bool, dy: Tensor, passed: Tensor
) -> tuple[Tensor, Tensor]:
    n, h, w, c = z.shape
    padded, pixels = triton.next_power_of_2(c), h * w
    m = max(1, 2048 // padded)
    share = _share(pixels, n, m)
    dz, sums = _stream_gradients(z, triton.cdiv(pixels, share), 2)
    backward_kernels.norm_backward_kernel[(sums.shape[1], n)](
        _dense(z), weight, _dense(dy), _dense(passed), dz, sums, pixels, share,
        c, padded, m, NORM_EPS, centred, num_warps=4,
    )  # fmt: skip
    return dz, sums


def _stream_gradients(z: Tensor, pieces: int, kinds: int) -> tuple[Tensor, Tensor]:
    sums = (len(z), pieces, kinds, z.shape[-1])
    return torch.empty_like(z), z.new_empty(sums, dtype=torch.float32)


def _depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, skip: int, rows: int
) -> tuple[Tensor, Tensor]:
    n, h, w, c = x.shape[0], x.shape[1], x.shape[2], x.shape[3] // 3
    d, taps = c // heads, weight.reshape(3 * c, 9)
    v, sums = _depthwise_results(x, heads, rows)

    tile = _tile(_DEPTHWISE, c)
    parts = triton.cdiv(c, tile.units)
    share, count = _division(tile, rows, w, parts * n, x.device)
    kernels.depthwise_kernel[(count, parts, n)](
        _dense(x), taps, bias, v, h, w, skip, rows, share,
        c, tile.units, tile.pixels, "ieee", tile.stages, **tile.options(),
    )  # fmt: skip

    tile = _tile(_SUMS, d)
    share, count = _division(tile, rows, w, heads * n, x.device)
    values = heads * (d + 2) * d
    pieces = sums.new_empty((n, count, values))
    kernels.sums_kernel[(count, heads, n)](
        x, taps, bias, pieces, h, w, skip, rows, share,
        c, d, _padded(d), tile.pixels, "ieee", tile.stages, **tile.options(),
    )  # fmt: skip
    kernels.total_kernel[(triton.cdiv(values, 32), n)](pieces, sums, count, values, 64, 32)
    return v, sums


def _division(
    tile: Tile, rows: int, width: int, times: int, device: torch.device
) -> tuple[int, int]:
    """Divide a strip among programs that move down its rows.

    times: how often the strip is divided, for parts of the channels and for images.

    Returns:
        Rows of a program, and programs for one of the parts of one image.
    """
    processors = _PROCESSORS
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    registers = 32 * tile.warps * (tile.registers or _MOST_REGISTERS)
    at_a_time = processors * max(1, _REGISTERS // registers)
    across = triton.cdiv(width, tile.pixels - 2)
    share = _rows_of_a_program(rows, across * times, at_a_time)
    return share, across * triton.cdiv(rows, share)


@lru_cache
def _rows_of_a_program(rows: int, columns: int, at_a_time: int) -> int:
    """Return how many rows each program takes so that all are done soonest.

    Programs run in rounds of `at_a_time`. If the last round has only a few, the GPU is nearly idle
    in it.
    """
    most = max(1, rows // _LEAST_ROWS)
    shares = dict.fromkeys(triton.cdiv(rows, pieces) for pieces in range(1, most + 1))

    def rows_in_all_rounds(share: int) -> int:
        rounds: int = triton.cdiv(columns * triton.cdiv(rows, share), at_a_time)
        return rounds * (share + _ROWS_TO_START)

    best: int = min(shares, key=rows_in_all_rounds)
    return best


def _depthwise_results(x: Tensor, heads: int, rows: int) -> tuple[Tensor, Tensor]:
    n, w, c = x.shape[0], x.shape[2], x.shape[3] // 3
    sums = x.new_empty((n, heads, c // heads + 2, c // heads), dtype=torch.float32)
    return x.new_empty((n, rows, w, c)), sums


def _mixing(
    gram: Tensor,
    q_square: Tensor,
    k_square: Tensor,
    temperature: Tensor,
    project_out: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    n, heads, d, _ = gram.shape
    c = heads * d
    if gram.stride()[-2:] != (d, 1):  # views of the heads' blocks in a wider matrix
        gram = gram.contiguous()
    if q_square.stride() != k_square.stride() or q_square.stride(-1) != 1:
        q_square, k_square = q_square.contiguous(), k_square.contiguous()
    mixing = torch.empty((n, c, c), dtype=dtype, device=gram.device)
    padded = _padded(d)
    kernels.mixing_kernel[(heads * triton.cdiv(c, 32), n, triton.cdiv(d, 32))](
        gram, q_square, k_square, temperature, project_out, mixing,
        gram.stride(0), gram.stride(1), q_square.stride(0), q_square.stride(1),
        c, d, padded, 32, 32, num_warps=8 if padded > 64 else 4, num_stages=1,
    )  # fmt: skip
    return mixing


def _second_pass(
    z: Tensor,
    v: Tensor | None,
    mixing: Tensor | None,
    out_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    time: Tensor,
    widen: Tensor,
    widen_bias: Tensor | None,
    narrow: Tensor,
    narrow_bias: Tensor | None,
    out: Tensor | None = None,
) -> None:
    """Run the second pass in place or into `out`; without v and mixing, only norm and DFN."""
    n, h, w, c = z.shape
    a, b = _parts(c)
    tile = _tile(_SECOND_PASS, c)
    v_image, v_pixel = (0, 0) if v is None else (v.stride(0), v.stride(2))
    kernels.second_pass_kernel[(triton.cdiv(h * w, tile.pixels), n)](
        _dense(z), v, mixing, out_bias, weight, bias, time,
        widen, widen_bias, narrow, narrow_bias, z if out is None else out,
        h * w, v_image, v_pixel, _stride(time),
        c, len(widen), a, b, tile.pixels, tile.units, NORM_EPS, "ieee", **tile.options(),
    )  # fmt: skip


def _feed_forward(
    z: Tensor, weight: Tensor, bias: Tensor | None, time: Tensor,
    widen: Tensor, widen_bias: Tensor | None, narrow: Tensor, narrow_bias: Tensor | None,
) -> Tensor:  # fmt: skip
    out = torch.empty_like(z)
    _second_pass(
        z, None, None, None, weight, bias, time, widen, widen_bias, narrow, narrow_bias, out
    )
    return out


def _share(pixels: int, times: int, block: int) -> int:
    """Return the pixels of a program, a multiple of `block`, for `times` images of `pixels`."""
    share = max(_LEAST_PIXELS, pixels * times // _PROGRAMS)
    return -(-share // block) * block


def _padded(c: int) -> int:
    """Return the columns of a tile for c channels; `tl.dot` accepts no side under 16."""
    power: int = triton.next_power_of_2(c)
    return max(16, power)


def _parts(c: int) -> tuple[int, int]:
    """Return the columns of two tiles for c channels, powers of two; (.., 0) if one suffices."""
    padded = _padded(c)
    first = padded // 2
    rest = _padded(c - first)
    return (padded, 0) if first < 16 or rest >= first else (first, rest)


def _feed_forward_backward(
    z: Tensor, d: Tensor, weight: Tensor, bias: Tensor | None, time: Tensor,
    widen: Tensor, widen_bias: Tensor | None, narrow: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    n, h, w, c = z.shape
    pixels, tile = h * w, _tile(_FEED_FORWARD_BACKWARD, c)
    share = _share(pixels, n, tile.pixels)
    dz, sums = _stream_gradients(z, triton.cdiv(pixels, share), 3)
    backward_kernels.feed_forward_backward_kernel[(sums.shape[1], n)](
        _dense(z), weight, bias, time, widen, widen_bias, narrow, _dense(d), dz, sums,
        pixels, share, _stride(time),
        c, len(widen), _padded(c), tile.pixels, tile.units, NORM_EPS, "ieee", **tile.options(),
    )  # fmt: skip
    return dz, sums


def _feed_forward_weights(
    z: Tensor, d: Tensor, weight: Tensor, bias: Tensor | None, time: Tensor,
    widen: Tensor, widen_bias: Tensor | None, narrow: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    n, h, w, c = z.shape
    pixels, hidden = h * w, len(widen)
    # Many units per tile, because each part of the hidden layer reads all pixels; pixels few enough
    # for the registers.
    tile = _tile(_FEED_FORWARD_WEIGHTS, c)
    tiles, parts = n * triton.cdiv(pixels, tile.pixels), triton.cdiv(hidden, tile.units)
    share = max(_LEAST_PIXELS // tile.pixels, tiles * parts // _PROGRAMS)
    sums = _weight_sums(z, hidden, triton.cdiv(tiles, share))
    # Programs for different parts of the hidden layer are neighbours in the launch grid, so that
    # they read the same tiles while these are in the cache.
    backward_kernels.feed_forward_weights_kernel[(parts, len(sums[0]))](
        _dense(z), weight, bias, time, widen, widen_bias, narrow, _dense(d), *sums,
        pixels, tiles, share, _stride(time),
        c, hidden, _padded(c), tile.pixels, tile.units, NORM_EPS, "ieee", **tile.options(),
    )  # fmt: skip
    return sums


def _weight_sums(z: Tensor, hidden: int, pieces: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = (pieces, hidden, z.shape[-1])
    dwiden, dnarrow, dbias = (
        z.new_empty(s, dtype=torch.float32) for s in (shape, shape, (pieces, hidden))
    )
    return dwiden, dnarrow, dbias


def _dense(x: Tensor) -> Tensor:
    """Return x; ValueError unless it is contiguous, or is one image whose pixels are."""
    if not x.is_contiguous() and not (len(x) == 1 and x[0].is_contiguous()):
        raise ValueError(f"expected dense rows of pixels, got strides {x.stride()}")
    return x


def _stride(time: Tensor) -> int:
    return 0 if len(time) == 1 else time.stride(0)


def _on_its_gpu(run: Callable[..., Any]) -> Callable[..., Any]:
    """Run an operator on the GPU of its first tensor.

    Triton launches kernels on the calling thread's current GPU, which in a new thread is the first.
    """

    def started(first: Tensor, *others: Any) -> Any:
        with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
            return run(first, *others)

    return started


_OF_FEED_FORWARD = (
    "(Tensor z, Tensor d, Tensor weight, Tensor? bias, Tensor time, Tensor widen,"
    " Tensor? widen_bias, Tensor narrow)"
)

# The schema of each operator, with its implementation and a function that returns its result on
# tensors without data. Partial sums are then those of a single program: their number is the
# kernel's own choice, and the caller adds them up at once.
_OPERATORS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "norm(Tensor z, Tensor weight, Tensor? bias, Tensor time, ScalarType dtype) -> Tensor": (
        _norm,
        lambda z, weight, bias, time, dtype: torch.empty_like(z, dtype=dtype),
    ),
    "norm_product(Tensor z, Tensor weight, Tensor? bias, Tensor time, Tensor matrix,"
    " Tensor? matrix_bias, bool gelu=False) -> Tensor": (
        _norm_product,
        lambda z, weight, bias, time, matrix, *_: _norm_product_result(z, matrix),
    ),
    "norm_backward(Tensor z, Tensor weight, bool centred, Tensor dy, Tensor passed)"
    " -> (Tensor, Tensor)": (
        _norm_backward,
        lambda z, weight, centred, dy, passed: _stream_gradients(z, 1, 2),
    ),
    "depthwise(Tensor x, Tensor weight, Tensor? bias, int heads, int skip, int rows)"
    " -> (Tensor, Tensor)": (
        _depthwise,
        lambda x, weight, bias, heads, skip, rows: _depthwise_results(x, heads, rows),
    ),
    "mixing(Tensor gram, Tensor q_square, Tensor k_square, Tensor temperature, Tensor project_out,"
    " ScalarType dtype) -> Tensor": (
        _mixing,
        lambda gram, q, k, temperature, out, dtype: out.new_empty(
            (len(gram), *out.shape), dtype=dtype
        ),
    ),
    "second_pass(Tensor(a!) z, Tensor v, Tensor mixing, Tensor? out_bias, Tensor weight,"
    " Tensor? bias, Tensor time, Tensor widen, Tensor? widen_bias, Tensor narrow,"
    " Tensor? narrow_bias) -> ()": (_second_pass, lambda *_: None),
    "feed_forward(Tensor z, Tensor weight, Tensor? bias, Tensor time, Tensor widen,"
    " Tensor? widen_bias, Tensor narrow, Tensor? narrow_bias) -> Tensor": (
        _feed_forward,
        lambda z, *_: torch.empty_like(z),
    ),
    f"feed_forward_backward{_OF_FEED_FORWARD} -> (Tensor, Tensor)": (
        _feed_forward_backward,
        lambda z, *_: _stream_gradients(z, 1, 3),
    ),
    f"feed_forward_weights{_OF_FEED_FORWARD} -> (Tensor, Tensor, Tensor)": (
        _feed_forward_weights,
        lambda z, d, weight, bias, time, widen, *_: _weight_sums(z, len(widen), 1),
    ),
}
for _schema, (_run, _shapes) in _OPERATORS.items():
    _name = _schema.partition("(")[0]
    _LIBRARY.define(_schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(_name, _on_its_gpu(_run), "CUDA")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(_name, _run, "CPU")  # type: ignore[no-untyped-call] # in Triton's interpreter
    torch.library.register_fake(f"c2fdft::{_name}", _shapes, lib=_LIBRARY)
