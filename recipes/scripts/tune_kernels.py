"""Find the fastest tile sizes of the fused kernels on this GPU.

    python recipes/scripts/tune_kernels.py OUT.jsonl [--tables second_pass,norm_product,...]

For each width, times the tile in use (`execution/fused/operators.py`) and others in bfloat16, at
sizes that keep a GPU busy. First all cores compile the tiles, for Triton's cache. Writes a JSON
line for each tile, and prints the fastest first, with the relative difference between its result
and that of the tile in use. Each table and width has its own process, since a tile that the
compiler gets wrong may end it. `--quick` tests the script itself, in Triton's interpreter on a CPU.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from c2fdft_cli.execution.fused import operators
from c2fdft_cli.execution.fused.choose import busy_seconds
from c2fdft_cli.execution.fused.operators import Tile
from c2fdft_cli.pipeline import cores

Made = Callable[..., Tensor]
"""Makes a tensor of random values from a shape and a dtype."""

SIZES = {32: (720, 1280), 64: (720, 1280), 128: (720, 1280), 256: (184, 320)}
"""Size of the image, (height, width), by width of the table's entry."""
TRIED = {32: 24, 64: 48, 128: 96, 256: 192}
"""Number of channels, by width of the table's entry."""
ROUNDS, HEAD_START = 5, 200_000


def main() -> int:
    """Time the requested tables, each width in a child process, or in such a child one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    parser.add_argument(
        "--quick", action="store_true", help="test the script itself: a few pixels, no GPU"
    )
    args = parser.parse_args()
    # Exit by an exception, so that a running child process is ended too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if args.compile:
        part, parts = map(int, args.compile.split("/"))
        compile_tiles(args.tables, args.width, part, parts, args.quick)
        return 0
    if args.width:
        time_table(args.out, args.tables, args.width, args.quick)
        return 0
    more = ["--quick"] * args.quick
    timed = {
        f"{table} {width}": [
            *(sys.executable, __file__, str(args.out)),
            *("--tables", table, "--width", str(width), *more),
        ]
        for table in args.tables.split(",")
        for width in getattr(operators, f"_{table.upper()}")
    }
    parts, lines = -(-cores() // len(timed)), timed.values()
    compiled = [[*line, "--compile", f"{part}/{parts}"] for line in lines for part in range(parts)]
    with ThreadPoolExecutor(cores()) as pool:
        # A tile that ends its process is reported when it is timed.
        list(pool.map(partial(subprocess.run, check=False, capture_output=True), compiled))
    failed = 0
    for name, line in timed.items():
        code = subprocess.run(line, check=False).returncode  # noqa: S603
        if code:
            sys.stdout.write(f"{name}: ended with code {code}\n")
        failed += code != 0
    return 1 if failed else 0


def compile_tiles(table: str, width: int, part: int, parts: int, quick: bool) -> None:
    """Run some of the tiles that `time_table` will time, so that they are compiled."""
    tiles, run, others = _of_table(table, width, quick)
    for tile in [tiles[width], *others][part::parts]:
        tiles[width] = tile
        with suppress(Exception):  # a tile that fails is reported when it is timed
            run()


def time_table(out: Path, table: str, width: int, quick: bool) -> None:
    """Time the tiles of a kernel at one width, the tile in use first."""
    tiles, run, others = _of_table(table, width, quick)
    used, found = tiles[width], []
    want: Tensor | None = None
    row: dict[str, str | float]
    for tile in [used, *others]:
        tiles[width] = tile
        try:
            seconds, result = seconds_of(run, quick)
        except Exception as error:  # that the compiler refuses a tile is a result
            row = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        else:
            want = result if want is None else want
            difference = float((result - want).norm() / want.norm().clamp_min(1e-30))
            row = {"ms": round(seconds * 1e3, 4), "difference": difference}
            found.append((seconds, tile, difference))
        with out.open("a") as file:
            line = {"table": table, "width": width, "tile": tile, "in_use": tile == used, **row}
            file.write(json.dumps(line) + "\n")
    for seconds, tile, difference in sorted(found, key=lambda one: one[0]):
        mark = "  in use" if tile == used else ""
        sys.stdout.write(
            f"{table} {width}: {seconds * 1e3:.4f} ms {tuple(tile)} {difference:.0e}{mark}\n"
        )


def _of_table(
    table: str, width: int, quick: bool
) -> tuple[dict[int, Tile], Callable[[], Tensor], list[Tile]]:
    """Return a table in use, a run of its kernel at one width, and other tiles for this width."""
    tiles: dict[int, Tile] = getattr(operators, f"_{table.upper()}")
    torch.manual_seed(0)
    size = (4, 20) if quick else SIZES[width]
    run = TABLES[table][0](TRIED[width], *size, random_values(quick))
    others = [tile for tile in TABLES[table][1]() if tile != tiles[width]]
    return tiles, run, others[: 1 if quick else None]


def seconds_of(run: Callable[[], Tensor], quick: bool) -> tuple[float, Tensor]:
    """Return the median seconds of a run, after one that compiles, and a sample of its result."""
    result = run().flatten()[::7].double()
    if quick:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began, result
    return statistics.median(busy_seconds(run, HEAD_START) for _ in range(ROUNDS)), result


def random_values(quick: bool) -> Made:
    """Return a function that makes weights and activations of moderate magnitude."""
    device = "cpu" if quick else "cuda"

    def make(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        scale = shape[-1] ** -0.5 if len(shape) in (2, 3) else 0.5
        return (torch.randn(shape, device=device) * scale).to(dtype)

    return make


def _layers(c: int, make: Made) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make the norm's weight, the time embedding, and the widening and narrowing matrices."""
    weight = make(c, dtype=torch.float32).abs() + 0.5
    return weight, make(1, c, dtype=torch.float32), make(4 * c, c), make(c, 4 * c)


def second_pass(c: int, h: int, w: int, make: Made) -> Callable[[], Tensor]:
    """Return a run of a block's second pass."""
    z, v, mixing = make(1, h, w, c, dtype=torch.float32), make(1, h, w, c), make(1, c, c)
    weight, time_, widen, narrow = _layers(c, make)
    layers = (weight, weight, time_, widen, None, narrow, None)

    def run() -> Tensor:
        out = torch.empty_like(z)
        operators._second_pass(z, v, mixing, None, *layers, out)
        return out

    return run


def norm_product(c: int, h: int, w: int, make: Made) -> Callable[[], Tensor]:
    """Return a run of norm and product to q, k and v."""
    z, matrix = make(1, h, w, c, dtype=torch.float32), make(3 * c, c)
    weight, time_, _, _ = _layers(c, make)
    return lambda: operators._norm_product(z, weight, weight, time_, matrix, None)


def depthwise(c: int, h: int, w: int, make: Made, result: int = 0) -> Callable[[], Tensor]:
    """Return a run of the depth-wise convolution with one head; results: v (0) and the sums (1)."""
    x, taps = make(1, h, w, 3 * c), make(3 * c, 1, 3, 3)
    return lambda: operators._depthwise(x, taps, None, 1, 0, h)[result]


def feed_forward_backward(c: int, h: int, w: int, make: Made) -> Callable[[], Tensor]:
    """Return a run of the feed-forward network's gradient of the stream."""
    factors = _of_gradients(c, h, w, make)
    return lambda: operators._feed_forward_backward(*factors)[0]


def feed_forward_weights(c: int, h: int, w: int, make: Made) -> Callable[[], Tensor]:
    """Return a run of the feed-forward network's gradients of the weights."""
    factors = _of_gradients(c, h, w, make)
    return lambda: operators._feed_forward_weights(*factors)[0].sum(0)


def _of_gradients(c: int, h: int, w: int, make: Made) -> tuple[Any, ...]:
    """Make the inputs from which the gradients of the feed-forward network are computed."""
    weight, time_, widen, narrow = _layers(c, make)
    return make(1, h, w, c), make(1, h, w, c), weight, weight, time_, widen, None, narrow


def products() -> Iterator[Tile]:
    """Yield tiles of pixels and units, with the warps that they occupy or half as many."""
    for pixels, units, stages, registers in product((64, 128), (32, 64), (1, 2, 3), (None, 128)):
        yield Tile(pixels, units, pixels // 16, stages, registers)
        if registers is None and stages == 1:
            yield Tile(pixels, units, pixels // 32, stages, registers)


def columns() -> Iterator[Tile]:
    """Yield tiles of the depth-wise convolution."""
    for pixels, units, stages, registers in product((16, 32), (32, 64), (3, 4, 5), (96, 128, None)):
        yield Tile(pixels, units, 4, stages, registers)


def columns_of_sums() -> Iterator[Tile]:
    """Yield tiles of the depth-wise convolution's sums."""
    for pixels, warps, stages, registers in product((16, 32), (4, 8), (4, 5, 6), (128, 168, None)):
        yield Tile(pixels, 0, warps, stages, registers)


def gradients() -> Iterator[Tile]:
    """Yield tiles of the kernels for training."""
    for pixels, units, warps in product((32, 64, 128), (32, 64), (4, 8)):
        yield Tile(pixels, units, warps)


Table = tuple[Callable[[int, int, int, Made], Callable[[], Tensor]], Callable[[], Iterator[Tile]]]
TABLES: dict[str, Table] = {
    "second_pass": (second_pass, products),
    "norm_product": (norm_product, products),
    "depthwise": (depthwise, columns),
    "sums": (partial(depthwise, result=1), columns_of_sums),
    "feed_forward_backward": (feed_forward_backward, gradients),
    "feed_forward_weights": (feed_forward_weights, gradients),
}

if __name__ == "__main__":
    sys.exit(main())
