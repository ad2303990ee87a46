"""A process that broke down while it tried the kernels keeps later ones from trying them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from c2fdft_cli.core.block import Block
from c2fdft_cli.core.layers import PixelNorm
from c2fdft_cli.errors import GpuError
from c2fdft_cli.execution.cuda.crashes import crash_file, crash_note, watched_trial
from c2fdft_cli.execution.device import make_runtime
from c2fdft_cli.execution.fused import choose, training
from c2fdft_cli.execution.prepared import PreparedBlock
from c2fdft_cli.signals import describe
from tests.kit.gpu import pretend_gpu, require_triton
from tests.kit.processes import start

GPU = torch.device("cuda", 0)


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and a simulated H100."""
    require_triton()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pretend_gpu(monkeypatch, (9, 0), ["sm_90"], "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    crash_file.cache_clear()
    yield tmp_path / "c2fdft"
    crash_file.cache_clear()


def break_context(_: torch.device) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_the_file_is_there_only_during_a_trial(cache: Path) -> None:
    assert crash_file(GPU) is None
    with watched_trial(GPU):
        (file,) = cache.iterdir()
        assert file.read_text() == str(os.getpid())
    assert list(cache.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), watched_trial(GPU):
        raise KeyboardInterrupt
    assert list(cache.iterdir()) == []


INTERRUPTED = """
import importlib.metadata, os, signal, sys, time
import torch
from c2fdft_cli import signals
from c2fdft_cli.execution.cuda.crashes import watched_trial

importlib.metadata.version = lambda _: "3.6.0"
torch.cuda.get_device_name = lambda *_: "NVIDIA H100"
if sys.argv[1] == "command":
    signals.install()
with watched_trial(torch.device("cuda", 0)):
    assert len(os.listdir(os.environ["XDG_CACHE_HOME"] + "/c2fdft")) == 1
    os.kill(os.getpid(), int(sys.argv[2]))
    time.sleep(5)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number"),
    [
        pytest.param("program", signal.SIGINT, marks=pytest.mark.acceptance),
        ("program", signal.SIGTERM),
        # a command handles both signals alike
        ("command", signal.SIGTERM),
        pytest.param("command", signal.SIGINT, marks=pytest.mark.acceptance),
    ],
)
def test_a_signal_during_a_trial_leaves_no_file(tmp_path: Path, kind: str, number: int) -> None:
    """Neither in a command, nor in a Python program that handles no signals."""
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    process = start(script, kind, int(number), env=env, stderr=subprocess.PIPE)
    _, text = process.communicate(timeout=60)
    assert "AssertionError" not in text
    if kind == "program":
        assert process.returncode == -number
    else:
        assert f"SignalReceived: {describe(number)}" in text
    assert list((tmp_path / "c2fdft").iterdir()) == []


def test_after_a_crash_the_kernels_are_not_tried(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched_trial(GPU):
        (file,) = cache.iterdir()
    file.write_text(str(ended_process()))
    crash_file.cache_clear()
    assert crash_file(GPU) == file
    assert not choose.kernels_run_on(GPU)
    (note,) = make_runtime("cuda").notes
    assert f"(delete {file} to try them again)" in note
    assert note == crash_note(GPU)
    # another kind of GPU, or another version, is tried again
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA L4")
    crash_file.cache_clear()
    assert crash_file(GPU) is None
    assert choose.kernels_run_on(GPU)
    assert make_runtime("cuda").notes == ()


@pytest.mark.parametrize(
    ("text", "crashed"),
    [
        (lambda: str(os.getppid()), False),  # a process that tries them at this moment
        (lambda: str(os.getpid()), True),  # an earlier process with this one's number
        (lambda: str(ended_process()), True),
        (lambda: "", False),
        (lambda: "a", False),
        (lambda: "-1", True),
    ],
)
def test_the_file_of_a_running_process_is_no_crash(
    cache: Path, text: Callable[[], str], crashed: bool
) -> None:
    with watched_trial(GPU):
        (file,) = cache.iterdir()
    file.write_text(text())
    crash_file.cache_clear()
    assert (crash_file(GPU) is not None) == crashed
    before = file.read_text()
    with watched_trial(GPU):
        pass
    assert file.read_text() == before  # not this process's to remove


def test_a_destroyed_context_is_an_error_and_remembered(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", break_context)
    with (
        pytest.raises(GpuError, match="kernels failed on the NVIDIA H100, and this") as caught,
        watched_trial(GPU),
    ):
        pass
    assert caught.value.exit_code == 5
    assert caught.value.hint == "run the same command again, which will not try the kernels"
    assert len(list(cache.iterdir())) == 1


def test_without_a_cache_folder_the_hint_names_the_switch(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.joinpath("file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent / "file"))
    assert crash_file(GPU) is None
    monkeypatch.setattr(torch.cuda, "synchronize", break_context)
    with pytest.raises(GpuError) as caught, watched_trial(GPU):
        pass
    assert "C2FDFT_KERNELS=off" in (caught.value.hint or "")


def test_a_trial_on_a_cpu_writes_no_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", break_context)
    with watched_trial(torch.device("cpu")):
        assert not cache.exists()


class _OnGpu(Tensor):
    """A tensor that claims to be on the GPU."""

    device = GPU  # type: ignore[assignment]


def test_both_kinds_of_trials_are_watched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def count(*_: object, **__: object) -> tuple[choose.Passes, list[choose.KernelTrial]]:
        tried.append(len(list(cache.iterdir())))
        return choose.PLAIN, []

    monkeypatch.setattr(choose, "_chosen", {})
    monkeypatch.setattr(choose, "try_out", count)
    block = Block(16, 1, 4.0, False, "with_bias")
    prepared = PreparedBlock.of(block, torch.float16, packed=False)
    weight = prepared.norm1.weight.as_subclass(_OnGpu)
    prepared = prepared._replace(norm1=prepared.norm1._replace(weight=weight))
    assert choose.passes_for(prepared) == choose.PLAIN

    monkeypatch.setattr(choose, "_chosen", {})
    monkeypatch.setattr(
        training, "_try_where", lambda *_: (count(), choose.KernelTrial("norm", None))[1]
    )
    norm = PixelNorm(16, "with_bias")
    z = torch.zeros(1, 4, 4, 16)
    training.norm_for(norm, z.half().as_subclass(_OnGpu), torch.float16)
    assert tried == [1, 1]
    assert list(cache.iterdir()) == []
