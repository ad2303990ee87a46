"""The fused kernels in Triton's interpreter equal the plain passes over a strip."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from c2fdft_cli.core.attention import PixelSums
from c2fdft_cli.core.block import Block
from c2fdft_cli.execution import prepared
from c2fdft_cli.execution.cuda.products import sums_in_pieces
from c2fdft_cli.execution.prepared import PreparedBlock
from tests.kit.formula import relative
from tests.kit.gpu import require_triton

triton = require_triton()
tl = importlib.import_module("triton.language")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("there is a GPU: tests/cuda compares the kernels", allow_module_level=True)
kernels = importlib.import_module("c2fdft_cli.execution.fused.kernels")
operators = importlib.import_module("c2fdft_cli.execution.fused.operators")
passes = importlib.import_module("c2fdft_cli.execution.fused.passes")

ALLOWED = {torch.float32: 3e-5, torch.bfloat16: 3e-2, torch.float16: 2e-3}
"""Relative errors; the interpreter truncates to bfloat16 where a GPU rounds, and the kernels' GELU
is a polynomial."""
DTYPES = list(ALLOWED)
ACCEPTANCE = pytest.mark.acceptance
WIDTHS = [(48, 1), (96, 2), (24, 1), (20, 4)]
"""Channels and heads: of the official network, of a small one, and of an odd one."""
WIDE = (96, 1)
"""One head of so many channels takes long in the interpreter: it has one case of each type."""
CASES = [(1, 8, 8, False), (2, 3, 5, True), (1, 1, 1, True), (1, 5, 27, False)]
"""Images, height, width, biases: one pixel, incomplete blocks of pixels, batches."""
PASSES = [(*one, dtype) for one in CASES for dtype in DTYPES
          if dtype == torch.float32 or one in CASES[:2]]  # fmt: skip
"""Whole passes are slow in the interpreter, so half precision has only two cases."""
EVERY_PASS = [*((*of, *one) for of in WIDTHS for one in PASSES
                if of != (24, 1) or one[-1] == torch.float32),  # rounded as the other narrow one
              *((*WIDE, *CASES[0], dtype) for dtype in DTYPES)]  # fmt: skip
SECOND_PASSES = [*((width, *one) for width in (20, 48, 96) for one in PASSES),
                 *((width, *CASES[1], dtype) for width in (192, 256) for dtype in DTYPES),
                 *((width, *CASES[0], torch.float32) for width in (192, 256))]  # fmt: skip
"""The second pass does not depend on heads: they only make the matrix that it is given. The widest
are slow in the interpreter and have one case of each type, and one without biases."""


def by_width(passes: list[tuple[Any, ...]]) -> list[Any]:
    """Mark all but the odd width, and one case of each other width, as acceptance tests."""
    first = {one[0]: one for one in reversed(passes)}
    return [
        one if one[0] == 20 or one is first[one[0]] else pytest.param(*one, marks=ACCEPTANCE)
        for one in passes
    ]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def make_block(
    width: int, heads: int, dtype: torch.dtype, bias: bool = False, norm: str = "with_bias"
) -> PreparedBlock:
    torch.manual_seed(width)
    block = Block(width, heads, 4.0, bias, norm)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
            if name.endswith("temperature"):
                parameter.mul_(3)
    return PreparedBlock.of(block, dtype, packed=False)


def stream(n: int, h: int, w: int, c: int) -> Tensor:
    torch.manual_seed(h)
    return torch.randn(n, h, w, c) + 0.5


def test_the_interpreter_runs_the_kernels() -> None:
    assert "Interpreted" in type(kernels.norm_kernel).__name__


@triton.jit
def _cdf_kernel(x: Any, y: Any, COUNT: tl.constexpr) -> None:
    place = tl.arange(0, COUNT)
    tl.store(y + place, kernels.normal_cdf(tl.load(x + place)))


@pytest.mark.filterwarnings("ignore:overflow encountered")  # it overflows to infinity, as on a GPU
def test_the_normal_distribution() -> None:
    x = torch.linspace(-12, 12, 1 << 15)
    y = torch.empty_like(x)
    _cdf_kernel[(1,)](x, y, len(x))
    error = (y.double() - torch.special.ndtr(x.double())).abs()
    assert float(error.max()) < 1.2e-5
    assert float((x * y - torch.nn.functional.gelu(x)).abs().max()) < 5e-5
    for beyond in (5.0, 1e3, 1e30, torch.inf):
        for sign, want in ((1, 1), (-1, 0)):
            _cdf_kernel[(1,)](torch.full_like(x, sign * beyond), y, len(x))
            assert y.unique().tolist() == [want]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "h", "w", "bias"), CASES)
@pytest.mark.parametrize("width", [384, 48, 20])
def test_norm(width: int, n: int, h: int, w: int, bias: bool, dtype: torch.dtype) -> None:
    layer = make_block(width, 1, dtype, norm="with_bias" if bias else "bias_free").norm1
    z = stream(n, h, w, width)
    for time in (torch.randn(1, width), torch.randn(n, 2 * width)[:, width:]):
        found = passes.norm(layer, z, time)
        assert found.dtype == dtype
        assert relative(found, layer(z, time)) < ALLOWED[dtype]


class Wide:
    """Replaces `total_kernel`: programs for 1024 columns each, so that there are few.

    Programs for 32 columns would take most of the time of a first pass in the interpreter.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        def start(pieces: Tensor, out: Tensor, count: int, values: int, rows: int, _: int) -> None:
            programs = (triton.cdiv(values, 1024), grid[1])
            self.kernel[programs](pieces, out, count, values, rows, 1024)

        return start


@pytest.mark.parametrize(("width", "heads", "n", "h", "w", "bias", "dtype"), by_width(EVERY_PASS))
def test_first_pass(
    width: int,
    heads: int,
    n: int,
    h: int,
    w: int,
    bias: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if width > 24:
        monkeypatch.setattr(kernels, "total_kernel", Wide(kernels.total_kernel))
    block = make_block(width, heads, dtype, bias)
    z, time = stream(n, h, w, width), torch.randn(1, width)
    _compare_gathered(block, passes.gather, z, time, 0, h)


@pytest.mark.parametrize(("skip", "rows"), [(1, 5), (0, 6), (1, 6), (1, 1)])
def test_halo_rows_are_read_but_neither_summed_nor_written(skip: int, rows: int) -> None:
    """The block has biases, so that the values at these rows are not zero."""
    block = make_block(24, 2, torch.float32, bias=True)
    _compare_gathered(block, passes.gather, stream(1, 7, 9, 24), torch.randn(1, 24), skip, rows)


def test_sums_of_many_programs() -> None:
    block = make_block(24, 1, torch.float32)
    _compare_gathered(block, passes.gather, stream(1, 24, 40, 24), torch.randn(1, 24), 0, 24)


def test_more_partial_sums_than_are_added_at_a_time() -> None:
    pieces, found = torch.randn(2, 130, 70), torch.empty(2, 70)
    kernels.total_kernel[(3, 2)](pieces, found, 130, 70, 64, 32)
    assert relative(found, pieces.sum(1)) < 1e-5


def _compare_gathered(block: PreparedBlock, gather: Callable[..., Any], *args: Any) -> None:
    (sums, v), (want, want_v) = gather(block, *args), prepared.gather(block, *args)
    allowed = ALLOWED[v.dtype]
    assert v.dtype == want_v.dtype
    assert relative(v, want_v) < allowed
    for found, expected in zip(sums, want, strict=True):
        assert found.dtype == torch.float32
        assert relative(found, expected) < allowed


@pytest.mark.parametrize(
    ("width", "heads", "n"),
    [
        *((*of, 2) for of in (*WIDTHS, WIDE) if of != (96, 2)),  # which the strided sums are of
        pytest.param(384, 8, 1, marks=ACCEPTANCE),
    ],
)
def test_mixing(width: int, heads: int, n: int) -> None:
    block = make_block(width, heads, torch.float32)
    d = width // heads
    q, k = (torch.randn(n, heads, d, 4 * d) for _ in range(2))
    q[:, 0, 0] = 0  # a channel of zeros has no direction
    sums = PixelSums(q @ k.mT, q.square().sum(-1), k.square().sum(-1))
    assert relative(passes.mixing(block, sums), block.mixing(sums)) < 1e-5
    cut = torch.cat([sums.gram, sums.q_square[:, :, None], sums.k_square[:, :, None]], 2)
    views = PixelSums(cut[:, :, :d], cut[:, :, d], cut[:, :, d + 1])
    assert torch.equal(passes.mixing(block, views), passes.mixing(block, sums))


def test_mixing_of_strided_sums() -> None:
    """On a GPU the sums are diagonal blocks of one matrix of all heads: strided views."""
    block = make_block(96, 2, torch.float32)
    q, k = (torch.randn(2, 8, 8, 96) for _ in range(2))
    sums = sums_in_pieces(q, k, 2)
    assert sums.gram.stride()[-2:] != (48, 1)
    assert relative(passes.mixing(block, sums), block.mixing(sums)) < 1e-5
    apart = sums._replace(q_square=sums.q_square.mT.contiguous().mT)
    assert torch.equal(passes.mixing(block, apart), passes.mixing(block, sums))


@pytest.mark.parametrize(("width", "n", "h", "w", "bias", "dtype"), by_width(SECOND_PASSES))
def test_second_pass(width: int, n: int, h: int, w: int, bias: bool, dtype: torch.dtype) -> None:
    """Also with v as a slice of a wider tensor, and with a width beyond those of one kernel."""
    norm = "with_bias" if bias else "bias_free"
    block = make_block(width, 1, dtype, bias, norm)
    z, time = stream(n, h, w, width), torch.randn(n, width)
    v = torch.randn(n, h, w, 3 * width).to(dtype)[..., 2 * width :]
    matrix = torch.randn(n, width, width) / width**0.5
    found, want = z.clone(), z.clone()
    passes.apply(block, found, v, time, matrix)
    prepared.apply(block, want, v, time, matrix.to(dtype).float())
    assert relative(found - z, want - z) < ALLOWED[dtype]


def test_pixels_that_are_not_contiguous_are_refused() -> None:
    with pytest.raises(ValueError, match="dense rows"):
        passes.norm(
            make_block(24, 1, torch.float32).norm1, stream(2, 4, 4, 24)[:, :2], torch.zeros(1, 24)
        )


class LastProgram:
    """Replaces a kernel and runs only the last program of the first axis."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        interpreter = importlib.import_module("triton.runtime.interpreter")
        builder = interpreter.interpreter_builder
        place, size, patch = builder.set_grid_idx, builder.set_grid_dim, mock.patch.object

        def start(*args: Any, **options: Any) -> None:
            with (
                patch(builder, "set_grid_dim", lambda x, y, z: size(grid[0], y, z)),
                patch(builder, "set_grid_idx", lambda x, y, z: place(grid[0] - 1, y, z)),
                # the interpreter would copy gigabytes that are on the host already onto themselves
                patch(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None),
            ):
                self.kernel[(1, *grid[1:])](*args, **options)

        return start


def tall(end: Tensor, pixels: int) -> Tensor:
    """An image `[1, h, w, c]` of `pixels` pixels that ends with the given rows.

    The rest is never touched and therefore takes no memory.
    """
    _, rows, w, c = end.shape
    whole = torch.empty(1, pixels // w, w, c, dtype=end.dtype)
    whole[:, -rows:] = end
    return whole


@ACCEPTANCE
@pytest.mark.parametrize(
    "name", ["norm_kernel", "norm_product_kernel", "depthwise_kernel", "second_pass_kernel"]
)
def test_more_values_than_32_bits_can_index(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A strip of 8 megapixels has as many: q, k and v of decoder level 1 are 288 channels."""
    c, dtype, pixels = 96, torch.float16, (23 if name == "norm_kernel" else 8) << 20
    block, z, time = make_block(c, 1, dtype), stream(1, 3, 64, c), torch.randn(1, c)
    qkv, matrix = torch.randn(1, 3, 64, 3 * c).to(dtype), torch.randn(1, c, c) / 10
    monkeypatch.setattr(kernels, name, LastProgram(getattr(kernels, name)))
    if name == "norm_kernel":
        found, want = passes.norm(block.norm1, tall(z, pixels), time), block.norm1(z, time)
    elif name == "norm_product_kernel":
        norm, product = block.norm1, block.qkv
        found = torch.ops.c2fdft.norm_product(
            tall(z, pixels), norm.weight, norm.bias, time, product.weight, product.bias
        )
        want = product(norm(z, time))
    elif name == "depthwise_kernel":
        monkeypatch.setattr(kernels, "sums_kernel", LastProgram(kernels.sums_kernel))
        # What other programs would have written is undefined, maybe NaN: it is not added up.
        monkeypatch.setattr(kernels, "total_kernel", mock.MagicMock())
        monkeypatch.setattr(operators, "_rows_of_a_program", lambda *_: 64)  # faster
        x, taps = tall(qkv, pixels), block.depthwise
        found, _ = torch.ops.c2fdft.depthwise(x, taps.weight, None, 1, 0, x.shape[1])
        want = taps.padded(qkv)[..., 2 * c :]
    else:
        found, want = tall(z, pixels), z.clone()
        passes.apply(block, found, tall(qkv, pixels)[..., 2 * c :], time, matrix)
        prepared.apply(block, want, qkv[..., 2 * c :], time, matrix)
    # the smallest number that a last program handles: of 64 columns in programs of 14, eight
    last = 8 if name == "depthwise_kernel" else 16
    assert relative(found[0, -1, -last:], want[0, -1, -last:]) < ALLOWED[dtype]
