"""What `doctor` reports about GPUs and CPUs, tested without a GPU."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from c2fdft_cli.engine.tools import doctor
from c2fdft_cli.engine.tools.doctor import Finding, examine
from c2fdft_cli.execution import compiling, device
from c2fdft_cli.execution.cuda import crashes
from c2fdft_cli.words import many
from tests.kit.gpu import pretend_gpu, require_triton


def findings() -> dict[str, Finding]:
    return {one.topic: one for one in examine()}


class Driver:
    """A driver for CUDA 12.4; writes its version through a pointer, as of `ctypes`."""

    def __init__(self, name: str) -> None:
        assert name in ("libcuda.so.1", "nvcuda.dll")

    def cuDriverGetVersion(self, pointer: Any) -> int:
        pointer._obj.value = 12040
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of torch for CUDA 13.0 and a driver for 12.4, with 70 of 80 GiB free."""
    # `Driver` takes the place of all libraries, so those of the kernels must not be loaded then.
    monkeypatch.setattr(doctor, "kernels_or_reason", lambda _: (None, "no compiler"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor.ctypes, "CDLL", Driver)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (70 << 30, 80 << 30))
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 28, 9))
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_cpu_is_reported() -> None:
    found = findings()
    assert "GPU" not in found
    assert found["device"].good
    assert "torch is built without CUDA" in found["device"].found or torch.version.cuda


@pytest.mark.usefixtures("driver")
def test_a_gpu_that_is_used_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (9, 0), ["sm_80", "sm_90"], name="NVIDIA H100")
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    found = findings()
    assert found["device"].found == (
        "cuda:0, bf16 (torch has kernels for this GPU; bf16 from compute capability 8.0 on)"
    )
    assert found["GPU"].found == ("NVIDIA H100, compute capability 9.0, 70.0 of 80.0 GiB free")
    assert found["driver"].found == "for CUDA 12.4"
    assert found["torch's GPUs"].found == "CUDA 13.0: sm_80 (A100), sm_90 (H100)"
    assert found["NCCL"].found == "2.28.9"
    assert not found["triton"].good


@pytest.mark.usefixtures("driver")
def test_a_triton_that_is_too_old_for_the_kernels_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_gpu(monkeypatch, (9, 0), ["sm_90"], name="NVIDIA H100")
    require_triton()
    monkeypatch.setattr(doctor, "missing_compiler", lambda _: None)
    monkeypatch.setattr(doctor, "has_triton", lambda: False)
    found = findings()["triton"]
    assert found.good
    assert found.hint == (
        "the program's faster kernels need triton 3.3 or newer: install a newer torch"
    )


@pytest.mark.usefixtures("driver")
def test_kernels_that_broke_down_on_this_gpu_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend_gpu(monkeypatch, (9, 0), ["sm_90"], name="NVIDIA H100")
    monkeypatch.setattr(crashes, "crash_file", lambda _: tmp_path / "trying")
    monkeypatch.setattr(doctor, "missing_compiler", lambda _: None)
    monkeypatch.setattr(doctor, "has_triton", lambda: True)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: SimpleNamespace())
    found = findings()
    assert found["device"].good
    assert not found["triton"].good
    assert f"(delete {tmp_path / 'trying'} to try them again)" in str(found["triton"].hint)


@pytest.mark.usefixtures("driver")
def test_a_driver_library_that_is_not_found_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some containers lack it; what torch reports about the GPU is still printed."""

    def missing(name: str) -> Driver:
        raise OSError(f"{name}: cannot open shared object file")

    pretend_gpu(monkeypatch, (9, 0), ["sm_90"], name="NVIDIA H100")
    monkeypatch.setattr(doctor.ctypes, "CDLL", missing)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    found = findings()
    assert found["driver"].found.startswith("unknown: ")
    assert found["GPU"].good
    assert (found["NCCL"].good, found["NCCL"].found) == (False, "none")


@pytest.mark.usefixtures("driver")
def test_a_gpu_that_is_not_served_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (6, 1), ["sm_75"], name="GTX 1080")
    found = findings()
    assert not found["device"].good
    assert "no kernels for the GTX 1080 (sm_61)" in found["device"].found
    assert "built for this GPU" in str(found["device"].hint)
    assert not found["torch's GPUs"].good
    assert not found["GPU"].good


def test_disk_memory_and_packages_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def version_of(package: str) -> str:
        if package == "tensorboard":
            raise PackageNotFoundError(package)
        return f"{package} 1.0"

    free = [3 << 29, 1 << 29]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free.pop(0)))
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor, "available_memory", lambda: 5 << 29)
    monkeypatch.setattr(doctor, "kernels_or_reason", lambda _: (None, "no compiler"))
    monkeypatch.setattr(doctor, "version", version_of)
    lacks = {"av"}
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: name not in lacks or None)
    found = findings()
    assert (found["disk"].good, found["disk"].found) == (True, "1.5 GiB free here")
    assert found["memory"].found == "2.5 GiB available"
    assert (found["compiler"].good, found["compiler"].found) == (False, "none")
    assert found["av"] == Finding(
        "av", False, "videos in `c2fdft restore`", "pip install 'c2fdft[video]'"
    )
    assert found["pywt"].found == "PyWavelets 1.0: `c2fdft eval --no-reference`"
    assert found["tensorboard"].found == "installed: curves and samples of a training"
    if not torch.cuda.is_available():
        assert f"cpu, {many(torch.get_num_threads(), 'thread')}, " in found["device"].found
    assert not findings()["disk"].good


def test_the_kernels_of_this_cpu_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "kernels_or_reason", lambda _: (None, "C2FDFT_NATIVE is off"))
    found = findings()["CPU kernels"]
    assert (found.good, found.found) == (False, "torch's (C2FDFT_NATIVE is off)")
    kernels = {
        torch.float32: (SimpleNamespace(can_train=True), "/home/a/1.so"),
        torch.bfloat16: (SimpleNamespace(can_train=False), "/home/a/2.so"),
    }
    monkeypatch.setattr(doctor, "kernels_or_reason", kernels.get)
    found = findings()["CPU kernels"]
    assert (found.good, found.found) == (True, "compiled: /home/a/1.so; for bf16: /home/a/2.so")
    kernels[torch.bfloat16] = None, "no AVX-512 BF16"
    found = findings()["CPU kernels"]
    assert found.found == "compiled: /home/a/1.so; for bf16: torch's (no AVX-512 BF16)"
    kernels[torch.float32] = SimpleNamespace(can_train=False), "/home/a/1.so"
    assert findings()["CPU kernels"].found.endswith("in training torch's (its BLAS has no sgemm_)")


@pytest.mark.parametrize(
    ("speed", "good", "words"),
    [
        (None, False, "no AVX-512 BF16, no AMX"),
        (0.52, False, "bf16 products run at 0.5 times the speed of fp32"),
        (4.0, True, "bf16 products run at 4.0 times the speed of fp32"),
    ],
)
def test_the_speed_of_this_cpu_in_bf16_is_reported(
    monkeypatch: pytest.MonkeyPatch, speed: float | None, good: bool, words: str
) -> None:
    for module in (device, doctor):
        monkeypatch.setattr(module, "cpu_bf16_speed", lambda: speed)
    found = {one.topic: one for one in examine()}
    assert found["bf16 on the CPU"].good == good
    assert found["bf16 on the CPU"].found == words
    if not torch.cuda.is_available():
        assert f", {'bf16' if good else 'fp32'} (" in found["device"].found
        assert found["device"].found.endswith(f"; {words})")
