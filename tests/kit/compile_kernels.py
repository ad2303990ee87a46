"""Compile the fused kernels for a GPU without having one: `python -m tests.kit.compile_kernels 90`.

For 9.0, that of H100 and H200, all versions are compiled; for others only those with biases in
bfloat16, which need the most registers and memory.

The operators run on meta tensors. Where they would launch a kernel, it is compiled instead for the
same arguments, down to machine code, by the assembler in Triton's wheel. Prints one line of JSON
for each kernel: the block it was compiled for, bytes of shared memory and of machine code,
registers per thread and bytes per thread that spilled.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from c2fdft_cli.execution.cuda.cards import WIDEST_NORMED, WIDEST_ON_CHIP, WIDEST_SECOND_PASS
from c2fdft_cli.execution.fused import backward_kernels, kernels, operators

BLOCKS = (
    (48, 1, torch.bfloat16),
    (48, 1, torch.float16),
    (96, 1, torch.bfloat16),
    (24, 1, torch.bfloat16),
    (192, 4, torch.bfloat16),
    (384, 8, torch.bfloat16),
)
"""Channels, heads and precision."""
EVERY_VERSION = 90
"""The compute capability for which the versions without biases and in float16 are compiled too."""


class Compiles:
    """Replaces a kernel of a module and compiles it where it would be launched."""

    def __init__(self, module: ModuleType, name: str) -> None:
        self.name, self.kernel = name, getattr(module, name)
        self.case = ""
        setattr(module, name, self)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def start(*args: Any, **options: Any) -> None:
            made = self.kernel.warmup(*args, grid=grid, **options)
            found = {"kernel": self.name, "case": self.case, "shared": made.metadata.shared}
            code = made.asm["cubin"]
            sys.stdout.write(json.dumps({**found, "bytes": len(code), **resources(code)}) + "\n")

        return start


def resources(code: bytes) -> dict[str, int]:
    """Registers per thread, and bytes of stack per thread, which hold the spilled values."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        words = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise ValueError(f"no registers in {text!r}")
    return {"registers": int(found[1]), "spilled": int(found[2])}


def main(capability: int) -> None:
    """Compile all kernels for all blocks, for a compute capability such as 90."""
    target = GPUTarget("cuda", capability, 32)
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_current_stream=lambda _: 0,
        )
    )
    compiling = [Compiles(module, name) for module in (kernels, backward_kernels)
                 for name in dir(module) if name.endswith("_kernel")]  # fmt: skip
    for width, heads, dtype in BLOCKS:
        for each in compiling:
            each.case = f"{width} channels, {heads} heads, {dtype}"
        if capability == EVERY_VERSION:
            run_operators(width, heads, dtype, with_bias=False)
        if capability == EVERY_VERSION or dtype == torch.bfloat16:
            run_operators(width, heads, dtype, with_bias=True)


def run_operators(width: int, heads: int, dtype: torch.dtype, with_bias: bool) -> None:
    """Call all operators of a block on a strip of 64 x 64 pixels."""
    c, d = width, width // heads
    with torch.device("meta"):
        z, time = torch.empty(1, 64, 64, c), torch.empty(1, c)
        x, v = (torch.empty(1, 64, 64, k * c, dtype=dtype) for k in (3, 1))
        gram, square = torch.empty(1, heads, d, d), torch.empty(1, heads, d)
        matrix = torch.empty(1, c, c, dtype=dtype)
        of_qkv = torch.empty(3 * c, c, dtype=dtype)
        widen, narrow = (torch.empty(s, dtype=dtype) for s in ((4 * c, c), (c, 4 * c)))
        taps, weight = torch.empty(3 * c, 1, 3, 3, dtype=dtype), torch.empty(c)
        biases = [torch.empty(k * c, dtype=dtype) for k in (3, 4, 1)]
    temperature, project_out = torch.empty(heads, device="meta"), matrix[0].float()
    operators._mixing(gram, square, square, temperature, project_out, dtype)
    for_qkv, for_widen, for_narrow = biases if with_bias else (None, None, None)
    bias = None if for_qkv is None else weight
    layers = (weight, bias, time, widen, for_widen, narrow)
    for stream in (z, v):
        operators._norm(stream, weight, bias, time, dtype)
        if width <= WIDEST_NORMED and stream is z:
            operators._norm_product(z, weight, bias, time, of_qkv, for_qkv)
            operators._norm_product(z, weight, bias, time, widen, for_widen, gelu=True)
        operators._norm_backward(stream, weight, bias is not None, v, stream)
        if width <= WIDEST_ON_CHIP:
            operators._feed_forward(stream, *layers, for_narrow)
            operators._feed_forward_backward(stream, stream, *layers)
            operators._feed_forward_weights(stream, stream, *layers)
    operators._depthwise(x, taps, for_qkv, heads, 0, 64)
    if width <= WIDEST_SECOND_PASS:
        operators._second_pass(z, v, matrix, bias, *layers, for_narrow)


if __name__ == "__main__":
    main(int(sys.argv[1]))
