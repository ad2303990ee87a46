"""Which GPUs the installed torch supports, and in which precision; no GPU is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2fdft_cli.core.network import DFT
from c2fdft_cli.errors import ResourceError, UsageError
from c2fdft_cli.execution import device
from c2fdft_cli.execution.cuda import cards
from c2fdft_cli.execution.cuda.cards import (
    HalfPrecision,
    architecture_names,
    is_served,
    lay_out_weights,
    try_half_precision,
)
from c2fdft_cli.execution.device import make_runtime, with_precision
from tests.kit.gpu import pretend_gpu

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
"""Architectures in the wheel of torch 2.13 for CUDA 13."""


@pytest.mark.parametrize(
    ("capability", "architectures", "served"),
    [
        ((6, 1), WHEEL, False),  # GTX 1080
        ((7, 0), WHEEL, False),  # V100, on which a kernel for 7.5 does not run
        ((7, 5), WHEEL, True),
        ((8, 7), WHEEL, True),
        ((8, 9), WHEEL, True),
        ((10, 3), WHEEL, True),
        ((11, 0), WHEEL, False),
        ((12, 1), WHEEL, True),
        ((13, 0), WHEEL, False),
        ((13, 0), [*WHEEL, "compute_120"], True),  # PTX, compiled when it is loaded
        ((9, 0), ["sm_80", "sm_90a"], True),
        ((10, 0), ["sm_90a", "compute_90a"], False),
        ((7, 0), ["sm_70"], True),
        ((9, 0), ["gfx90a", "gfx942"], True),  # ROCm names, from which nothing follows
    ],
)
def test_a_capability_is_served_by_the_architectures_of_a_wheel(
    capability: tuple[int, int], architectures: list[str], served: bool
) -> None:
    assert is_served(capability, architectures) is served


def test_architectures_are_named_with_their_cards() -> None:
    assert architecture_names(["sm_80", "sm_91"]) == "sm_80 (A100), sm_91"


@pytest.mark.parametrize(("capability", "chosen"), [((8, 0), "cuda"), ((6, 1), "cpu")])
def test_auto_chooses_a_gpu_only_if_it_is_served(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], chosen: str
) -> None:
    pretend_gpu(monkeypatch, capability, WHEEL)
    runtime = make_runtime("auto", "fp32")
    assert runtime.device.type == chosen
    assert bool(runtime.notes) is (chosen == "cpu")
    assert all(re.match("running on the CPU: torch .* has no kernels", n) for n in runtime.notes)


def test_a_gpu_that_is_not_served_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (6, 1), WHEEL, name="GeForce GTX 1080")
    with pytest.raises(ResourceError, match=r"no kernels for the GeForce GTX 1080 \(sm_61\)") as e:
        make_runtime("cuda", "fp32")
    assert e.value.exit_code == 5
    assert "sm_75 (RTX 20, GTX 16, T4), sm_80 (A100)" in str(e.value)


def test_a_gpu_that_does_not_respond_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (8, 0), WHEEL)

    def busy(_: object) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy\nfurther lines")

    monkeypatch.setattr(torch.cuda, "set_device", busy)
    assert make_runtime("auto", "fp32").notes == (
        "running on the CPU: the GPU does not respond: CUDA error: all CUDA-capable devices are "
        "busy",
    )
    with pytest.raises(ResourceError, match="does not respond"):
        make_runtime("cuda")


@pytest.fixture(autouse=True)
def products() -> Iterator[Callable[[], tuple[str, bool]]]:
    """Return a function that reads the settings for float32 products; restore them at the end."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    enabled = torch.backends.cudnn.enabled
    try_half_precision.cache_clear()
    yield lambda: (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.backends.cudnn.enabled = enabled
    try_half_precision.cache_clear()


@pytest.mark.parametrize(
    ("precision", "dtype", "matmul", "cudnn"),
    [
        ("fp32", torch.float32, "highest", False),
        ("tf32", torch.float32, "high", True),
        ("bf16", torch.bfloat16, "high", True),
        ("auto", torch.bfloat16, "high", True),
    ],
)
def test_fp32_is_exact_and_tf32_must_be_requested(
    monkeypatch: pytest.MonkeyPatch,
    products: Callable[[], tuple[str, bool]],
    precision: str,
    dtype: torch.dtype,
    matmul: str,
    cudnn: bool,
) -> None:
    pretend_gpu(monkeypatch, (8, 0), WHEEL)
    runtime = make_runtime("cuda", precision)
    assert runtime.dtype is dtype
    assert runtime.precision == ("bf16" if precision == "auto" else precision)
    assert products() == (matmul, cudnn)
    assert with_precision(runtime, "fp32", "train.precision").precision == "fp32"
    assert products() == ("highest", False)


def test_tf32_needs_a_card_that_supports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--precision tf32 needs an NVIDIA GPU"):
        make_runtime("cpu", "tf32")
    pretend_gpu(monkeypatch, (7, 5), WHEEL)
    with pytest.raises(UsageError, match="compute capability 8"):
        make_runtime("cuda", "tf32")


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Simulate a card of capability 7.5 on the CPU; list its convolutions as (groups, cuDNN).

    Tests inject failures by a further `monkeypatch.setattr(cards, "F", ...)`.
    """
    pretend_gpu(monkeypatch, (7, 5), WHEEL)
    asked: list[tuple[int, bool]] = []

    def conv2d(x: Tensor, weight: Tensor, *, padding: int, groups: int) -> Tensor:
        asked.append((groups, torch.backends.cudnn.enabled))
        return F.conv2d(x, weight, padding=padding, groups=groups)

    monkeypatch.setattr(cards, "F", SimpleNamespace(conv2d=conv2d))
    monkeypatch.setattr(device, "try_half_precision", on_the_cpu)
    return asked


def on_the_cpu(_: torch.device, dtype: torch.dtype) -> HalfPrecision:
    return try_half_precision(torch.device("cpu"), dtype)


def test_half_precision_is_tried_once_on_older_cards(convolutions: list[tuple[int, bool]]) -> None:
    runtimes = [make_runtime("cuda", precision) for precision in ("auto", "fp16", "auto")]
    assert {(one.precision, one.notes) for one in runtimes} == {("fp16", ())}
    assert convolutions == [(144, True), (1, True)]
    make_runtime("cuda", "fp32")
    assert len(convolutions) == 2
    assert "emulates bf16" in make_runtime("cuda", "bf16").notes[0]


def test_newer_cards_are_not_tried(
    convolutions: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, (8, 0), WHEEL)
    assert make_runtime("cuda", "fp16").notes == ()
    assert convolutions == []


@pytest.mark.parametrize("kind", ["forward", "backward", "error"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_failing_half_precision_disables_cudnn_or_fp16(
    convolutions: list[tuple[int, bool]],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    everywhere: bool,
) -> None:
    """After NaN or an error cuDNN is disabled; if that does not help, fp16 is not used."""

    def broken(x: Tensor, weight: Tensor, *, padding: int, groups: int) -> Tensor:
        y = F.conv2d(x, weight, padding=padding, groups=groups)
        if groups == 1 or not (everywhere or torch.backends.cudnn.enabled):
            return y
        if kind == "error":
            raise RuntimeError("GET was unable to find an engine to execute this computation\n...")
        if kind == "forward":
            return y * torch.nan
        y.register_hook(lambda gradient: gradient * torch.nan)
        return y * 1

    monkeypatch.setattr(cards, "F", SimpleNamespace(conv2d=broken))
    runtime = make_runtime("cuda")
    problem = "unable to find an engine" if kind == "error" else "values that are not finite"
    assert problem in runtime.notes[0]
    assert torch.backends.cudnn.enabled is everywhere
    if everywhere:
        assert runtime.precision == "fp32"
        assert runtime.notes[0].startswith("the network runs in fp32: float16 convolutions fail")
        assert torch.get_float32_matmul_precision() == "highest"
    else:
        assert runtime.precision == "fp16"
        assert runtime.notes[0].startswith("cuDNN is not used: its float16 convolutions fail")
    assert with_precision(runtime, "fp32", "train.precision").notes == ()
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("half", [False, True])
def test_gradients_have_the_strides_of_their_weights(half: bool) -> None:
    """DDP compares the strides of every dimension, those of size 1 too."""
    net = DFT(dim=8, blocks=(1, 1, 1, 1), bias=True)
    lay_out_weights(net)
    compared: list[bool] = []
    for parameter in net.parameters():

        def compare(gradient: Tensor, parameter: Tensor = parameter) -> None:
            compared.append(gradient.stride() == parameter.stride())

        parameter.register_hook(compare)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = net(torch.ones(2, 6, 16, 24), torch.tensor([1.0, 500.0])).sum()
    loss.backward()
    assert len(compared) == len(list(net.parameters()))
    assert all(compared)
