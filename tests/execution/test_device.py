"""The choice of device and precision, and the reuse of freed memory."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from c2fdft_cli.errors import ResourceError, UsageError
from c2fdft_cli.execution import device as device_module
from c2fdft_cli.execution.device import Runtime, cpu_bf16_speed, make_runtime
from tests.kit.gpu import pretend_gpu


def test_precisions_of_a_cpu():
    runtime = make_runtime("cpu", "fp32")
    assert (runtime.device.type, runtime.precision, runtime.is_main) == ("cpu", "fp32", True)
    assert make_runtime("cpu", "bf16").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("instructions", "speed", "precision"),
    [(False, None, "fp32"), (True, 0.5, "fp32"), (True, 1.25, "fp32"), (True, 4.0, "bf16")],
)
def test_a_cpu_uses_bf16_if_it_is_faster(monkeypatch, instructions, speed, precision):
    clock = [0.0]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)

    def product(a, _):
        assert torch.get_num_threads() == 1
        clock[0] += 1.0 if a.dtype == torch.float32 else 1.0 / speed

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(device_module, "time", SimpleNamespace(thread_time=lambda: clock[0]))
    cpu_bf16_speed.cache_clear()
    try:
        assert cpu_bf16_speed() == speed
        assert make_runtime("cpu").precision == precision
        assert make_runtime("cpu").notes == ()
        named = make_runtime("cpu", "bf16")  # a named precision is used even if it is slower
        assert named.precision == "bf16"
        assert bool(named.notes) == (precision == "fp32")
        assert all("on this CPU" in note or "this CPU emulates" in note for note in named.notes)
        assert all(note.endswith("; --precision fp32 is faster") for note in named.notes)
        assert cpu_bf16_speed() == speed  # measured once
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
        cpu_bf16_speed.cache_clear()


def test_a_busy_machine_does_not_change_the_precision_of_a_cpu(monkeypatch):
    """Other programs interrupt each product in bf16, which is the faster one."""
    multiply = torch.mm

    def product(a, b):
        if a.dtype == torch.bfloat16:
            time.sleep(0.02)
            return a
        return multiply(a, b)

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch, "mm", product)
    cpu_bf16_speed.cache_clear()
    try:
        assert make_runtime("cpu").precision == "bf16"
    finally:
        cpu_bf16_speed.cache_clear()


def test_the_speed_in_bf16_is_measured_only_if_it_matters(monkeypatch):
    monkeypatch.setattr(device_module, "cpu_has_fast_bf16", lambda: pytest.fail("measured"))
    assert make_runtime("cpu", "fp32").notes == ()


def test_the_speed_of_products_is_measured():
    speed = cpu_bf16_speed()
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert (speed is not None and speed > 0) == has


@pytest.mark.parametrize(
    ("device", "precision", "kind", "words"),
    [
        ("gpu", "auto", UsageError, "--device must be"),
        ("cuda:", "auto", UsageError, "--device must be"),
        ("cuda:-1", "auto", UsageError, "--device must be"),
        ("cpu:0", "auto", UsageError, "--device must be"),
        ("cpu", "fp8", UsageError, "--precision must be auto, fp32, .* or fp16, got 'fp8'"),
        ("cpu", "fp16", UsageError, "needs a GPU"),
    ],
)
def test_unknown_devices_and_precisions_are_refused(device, precision, kind, words):
    with pytest.raises(kind, match=words):
        make_runtime(device, precision)


@pytest.mark.parametrize("name", ["gpu", "GPU", "nvidia"])
def test_a_gpu_by_another_name_is_not_taken_for_a_cpu(name):
    with pytest.raises(UsageError) as caught:
        make_runtime(name)
    assert caught.value.hint == "NVIDIA's and AMD's GPUs are cuda, Apple's mps"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(ResourceError, match="no CUDA device") as caught:
        make_runtime("cuda")
    assert caught.value.exit_code == 5


@pytest.fixture
def two_gpus(monkeypatch):
    """Simulate two GPUs; list the numbers of those that become current."""
    current = []
    pretend_gpu(monkeypatch, (9, 0), ["sm_90"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def test_a_gpu_is_chosen_by_its_number(two_gpus, monkeypatch):
    monkeypatch.setattr(device_module, "set_tf32", lambda allowed: None)
    assert make_runtime("cuda:1", "fp32").device == torch.device("cuda", 1)
    assert make_runtime("cuda", "fp32").device == torch.device("cuda", 0)
    assert two_gpus == [1, 0]


def test_a_gpu_number_must_exist_and_is_for_one_process(two_gpus, monkeypatch):
    with pytest.raises(ResourceError, match="there is no GPU 2") as caught:
        make_runtime("cuda:2")
    assert caught.value.hint == "this machine has cuda:0 to cuda:1"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        UsageError, match="--device cuda:1 is for a single process, got WORLD_SIZE=2"
    ):
        make_runtime("cuda:1")
    assert not two_gpus


@pytest.mark.parametrize(("rank", "world"), [("1", None), ("1", "1"), ("2", "2"), ("x", "2")])
def test_a_rank_outside_of_the_world_size_is_refused(monkeypatch, rank, world):
    """A stray RANK=1 would silently skip the first image of a folder."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", rank)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UsageError, match=r"RANK") as caught:
        make_runtime("cpu")
    assert "unset" in caught.value.hint


def test_more_processes_than_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ResourceError, match=r"process 3 .* there are 2") as caught:
        make_runtime("cuda")
    assert "--nproc-per-node 2" in caught.value.hint


def test_autocast_computes_in_the_precision_of_the_runtime():
    x = torch.ones(4, 4)
    with Runtime(torch.device("cpu"), torch.bfloat16).autocast():
        assert (x @ x).dtype == torch.bfloat16
    with Runtime(torch.device("cpu")).autocast():
        assert (x @ x).dtype == torch.float32


COUNT_FAULTS = """
import resource, torch
from c2fdft_cli.execution.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fresh = faults()
there = keep_freed_memory()
for _ in range(4):
    faults()
print(int(there), fresh, faults())
"""


@pytest.mark.acceptance
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_used_again():
    run = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True
    )
    there, fresh, reused = map(int, run.stdout.split())
    if not there:
        pytest.skip("a C library without these settings")
    assert reused < fresh / 10


def test_work_runs_on_the_gpu_of_the_runtime(monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(used.append(device)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(device_module, "set_tf32", used.append)
    gpu = torch.device("cuda:1")
    # In its own precision, too: another runtime may have set another one meanwhile.
    for runtime in (Runtime(gpu), Runtime(gpu, tf32=True), Runtime(gpu, torch.bfloat16)):
        with runtime.on_device():
            pass
    assert used == [gpu, False, gpu, True, gpu, True]
    with Runtime(torch.device("cpu")).on_device() as nothing:
        assert nothing is None
