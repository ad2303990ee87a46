"""Which cards the installed torch serves, without a card."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import torch

from c2fdft_cli.errors import ResourceError, UsageError
from c2fdft_cli.execution.cuda import architecture_names, is_served
from c2fdft_cli.execution.device import make_runtime, with_precision
from tests.kit.gpu import pretend_gpu

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
"""Of torch 2.13 for CUDA 13."""


@pytest.mark.parametrize(
    ("capability", "architectures", "served"),
    [
        ((6, 1), WHEEL, False),  # GTX 1080
        ((7, 0), WHEEL, False),  # V100: a kernel for 7.5 does not run on it
        ((7, 5), WHEEL, True),
        ((8, 7), WHEEL, True),
        ((8, 9), WHEEL, True),
        ((10, 3), WHEEL, True),
        ((11, 0), WHEEL, False),
        ((12, 1), WHEEL, True),
        ((13, 0), WHEEL, False),
        ((13, 0), [*WHEEL, "compute_120"], True),  # compiled when it is loaded
        ((9, 0), ["sm_80", "sm_90a"], True),
        ((10, 0), ["sm_90a", "compute_90a"], False),
        ((7, 0), ["sm_70"], True),
        ((9, 0), ["gfx90a", "gfx942"], True),  # says nothing
    ],
)
def test_architectures_of_a_wheel(
    capability: tuple[int, int], architectures: list[str], served: bool
) -> None:
    assert is_served(capability, architectures) is served


def test_architectures_by_their_cards() -> None:
    assert architecture_names(["sm_80", "sm_91"]) == "sm_80 (A100), sm_91"


@pytest.mark.parametrize(("capability", "chosen"), [((8, 0), "cuda"), ((6, 1), "cpu")])
def test_auto_takes_a_gpu_that_is_served(
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


def test_a_gpu_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (8, 0), WHEEL)

    def busy(_: object) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy\nfurther lines")

    monkeypatch.setattr(torch.cuda, "set_device", busy)
    assert make_runtime("auto", "fp32").notes == (
        "running on the CPU: the GPU does not answer: CUDA error: all CUDA-capable devices are "
        "busy",
    )
    with pytest.raises(ResourceError, match="does not answer"):
        make_runtime("cuda")


@pytest.fixture(autouse=True)
def products() -> Iterator[Callable[[], tuple[str, bool]]]:
    """How this process takes float32 products; put back at the end."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield lambda: (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(
    ("precision", "dtype", "matmul", "cudnn"),
    [
        ("fp32", torch.float32, "highest", False),
        ("tf32", torch.float32, "high", True),
        ("bf16", torch.bfloat16, "high", True),
        ("auto", torch.bfloat16, "high", True),
    ],
)
def test_fp32_is_float32_and_tf32_is_asked_for(
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


def test_tf32_needs_a_card_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--precision tf32 needs an NVIDIA GPU"):
        make_runtime("cpu", "tf32")
    pretend_gpu(monkeypatch, (7, 5), WHEEL)
    with pytest.raises(UsageError, match="compute capability 8"):
        make_runtime("cuda", "tf32")
