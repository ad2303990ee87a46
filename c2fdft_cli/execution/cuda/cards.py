"""What an NVIDIA GPU can do with the installed torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from c2fdft_cli.core.layers import Conv3x3

AMPERE = (8, 0)
"""The first compute capability with bf16 and TF32."""
WIDEST_ON_CHIP = 128
"""Most channels with the feed-forward network in one kernel in training: the weights of larger ones
and their gradients do not fit the chip."""
WIDEST_SECOND_PASS = 192
"""Most channels with a block's second pass, which has no gradients, in one kernel."""
WIDEST_NORMED = 256
"""Most channels with the norm computed in the kernel of the product that follows it."""

_CARDS = {
    (5, 0): "GTX 900",
    (6, 0): "P100",
    (6, 1): "GTX 10",
    (7, 0): "V100",
    (7, 5): "RTX 20, GTX 16, T4",
    (8, 0): "A100",
    (8, 6): "RTX 30",
    (8, 9): "RTX 40, L4",
    (9, 0): "H100",
    (10, 0): "B200",
    (12, 0): "RTX 50",
}
"""Well-known cards by compute capability: developer.nvidia.com/cuda-gpus."""


def is_served(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether a torch built for these architectures has kernels for a card.

    Machine code (`sm_86`) runs on cards of the same major capability and at least that minor one,
    an intermediate form (`compute_90`) on every later card, code for one architecture alone
    (`sm_90a`) on that one: CUDA C++ Programming Guide, "Application Compatibility".

    Args:
        capability: compute capability of the card, such as (8, 6).
        architectures: as `torch.cuda.get_arch_list` returns them; if there are only those of other
            makers (`gfx90a`), which are not understood, the card counts as served.
    """
    found = [_parsed(name) for name in architectures]
    known = [one for one in found if one is not None]
    return not known or any(_runs_on(capability, *one) for one in known)


def architecture_names(architectures: Sequence[str]) -> str:
    """List the architectures with well-known cards: `sm_80 (A100), sm_86 (RTX 30)`."""
    described = []
    for name in architectures:
        found = _parsed(name)
        cards = None if found is None else _CARDS.get(found[1])
        described.append(name if cards is None else f"{name} ({cards})")
    return ", ".join(described)


def unusable_gpu(index: int) -> str | None:
    """Return why torch cannot compute on this GPU, in a sentence; None if it can.

    The GPU becomes the current one, which shows whether it responds.
    """
    try:
        torch.cuda.set_device(index)
        capability = torch.cuda.get_device_capability(index)
        name = torch.cuda.get_device_name(index)
    except RuntimeError as error:  # busy, or a driver that does not fit
        return f"the GPU does not respond: {str(error).splitlines()[0]}"
    architectures = torch.cuda.get_arch_list()
    if is_served(capability, architectures):
        return None
    major, minor = capability
    return (
        f"torch {torch.__version__} has no kernels for the {name} (sm_{major}{minor}); it serves "
        f"{architecture_names(architectures)} and newer ones of the same generations"
    )


def set_tf32(allowed: bool) -> None:
    """Allow or forbid float32 products of this process on CUDA to round their operands to TF32.

    This uses the older of torch's two interfaces, because torch's compiler refuses a mixture of
    both (pytorch/pytorch#166387).
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def lay_out_weights(net: nn.Module) -> None:
    """Store the weights of 3x3 convolutions channels-last, as their kernels and gradients are.

    Other weights stay unchanged: if gradients and parameters have different strides, DDP copies
    each gradient, and warns.
    """
    for module in net.modules():
        if isinstance(module, Conv3x3):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class HalfPrecision(NamedTuple):
    """How convolutions in half precision can run on a card.

    usable: whether they work at all.
    cudnn: whether cuDNN may compute them.
    note: what does not work, in a sentence; None if everything works.
    """

    usable: bool = True
    cudnn: bool = True
    note: str | None = None


@cache
def try_half_precision(device: torch.device, dtype: torch.dtype) -> HalfPrecision:
    """Test the network's two kinds of 3x3 convolution in a half precision, once per process.

    On some cards before compute capability 8.0 cuDNN returns NaN for them (pytorch/pytorch#58123)
    or has no kernel. If it fails, torch's own kernels are tested.
    """
    with_cudnn = _convolution_problem(device, dtype)
    if with_cudnn is None:
        return HalfPrecision()
    enabled, torch.backends.cudnn.enabled = torch.backends.cudnn.enabled, False
    try:
        without = _convolution_problem(device, dtype)
    finally:
        torch.backends.cudnn.enabled = enabled
    name = str(dtype).removeprefix("torch.")
    if without is None:
        note = f"cuDNN is not used: its {name} convolutions fail on this GPU ({with_cudnn})"
        return HalfPrecision(cudnn=False, note=note)
    note = f"the network runs in fp32: {name} convolutions fail on this GPU ({without})"
    return HalfPrecision(usable=False, note=note)


def _convolution_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what fails in a depth-wise or dense 3x3 convolution, forward or backward, or None."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 32, 32, 144, generator=random)
    try:
        for groups in (144, 1):
            # Divided by 30, about the root of the 9 * 144 products in a dense sum: all values are
            # about 1, so one that is not finite is the card's fault.
            weight = torch.randn(144, 144 // groups, 3, 3, generator=random) / 30
            x = pixels.to(device, dtype).permute(0, 3, 1, 2).requires_grad_()
            weight = weight.to(device, dtype, memory_format=torch.channels_last).requires_grad_()
            y = F.conv2d(x, weight, padding=1, groups=groups)
            found = (y, *torch.autograd.grad(y, (x, weight), torch.ones_like(y)))
            if not all(bool(one.isfinite().all()) for one in found):
                return "values that are not finite"
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def _parsed(name: str) -> tuple[str, tuple[int, int], str] | None:
    """Split a name such as `sm_90a` into kind, capability and suffix; None if it is another one."""
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name)
    return None if found is None else (found[1], (int(found[2]), int(found[3])), found[4])


def _runs_on(
    capability: tuple[int, int], kind: str, built_for: tuple[int, int], suffix: str
) -> bool:
    if suffix == "a":
        return capability == built_for
    if kind == "compute" and not suffix:
        return capability >= built_for
    return capability[0] == built_for[0] and capability[1] >= built_for[1]
