"""Kernels are used if they agree and are faster; otherwise the plain passes run."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from c2fdft_cli.core.block import Block
from c2fdft_cli.errors import UsageError
from c2fdft_cli.execution.fused import choose
from c2fdft_cli.execution.fused.choose import PLAIN, passes_for, try_out
from c2fdft_cli.execution.prepared import PreparedBlock
from tests.kit.gpu import pretend_gpu, require_triton

CPU = torch.device("cpu")
PARTS = ["gather", "mixing", "apply"]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def block(dtype: torch.dtype = torch.float16) -> PreparedBlock:
    torch.manual_seed(0)
    return PreparedBlock.of(Block(16, 1, 4.0, False, "with_bias"), dtype, packed=False)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fused passes in the interpreter on a small strip, with a time of one second each."""
    require_triton()
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("there is a GPU: tests/cuda tries the kernels on it")
    monkeypatch.setattr(choose, "TRIED_ROWS", 4)
    monkeypatch.setattr(choose, "TRIED_VALUES", 4 * 8 * 16)
    passes = importlib.import_module("c2fdft_cli.execution.fused.passes")
    _set_seconds(monkeypatch, passes, 1.0)
    return passes


def _set_seconds(monkeypatch: pytest.MonkeyPatch, passes: Any, kernels: float) -> None:
    """Let the plain passes take two seconds each."""

    def seconds(run: Callable[[], object]) -> float:
        part = run.__closure__[0].cell_contents  # type: ignore[attr-defined]
        return kernels if part.__module__ == passes.__name__ else 2.0

    monkeypatch.setattr(choose, "_seconds", seconds)


def test_kernels_that_agree_and_are_faster_are_used(fused: Any) -> None:
    chosen, trials = try_out(block(), CPU, 16)
    assert chosen == (fused.gather, fused.mixing, fused.apply)
    assert [trial.part for trial in trials] == PARTS
    for trial in trials:
        assert trial.error is not None
        assert trial.error < choose.ALLOWED[torch.float16]
        assert (trial.seconds, trial.plain_seconds, trial.failure) == (1, 2, "")


def test_slower_kernels_are_used_only_if_requested(
    fused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_seconds(monkeypatch, fused, 3.0)
    assert try_out(block(), CPU, 16)[0] == PLAIN
    assert try_out(block(), CPU, 16, even_slower=True)[0] != PLAIN


def test_kernels_that_disagree_are_never_used(fused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fused.mixing
    monkeypatch.setattr(fused, "mixing", lambda *args: 1.05 * right(*args))
    chosen, trials = try_out(block(), CPU, 16, even_slower=True)
    assert chosen == (fused.gather, PLAIN.mixing, fused.apply)
    assert trials[1].error == pytest.approx(0.05, rel=0.1)
    monkeypatch.setattr(fused, "mixing", lambda *args: float("nan") * right(*args))
    assert try_out(block(), CPU, 16, even_slower=True)[0].mixing is PLAIN.mixing


def test_kernels_that_fail_are_not_used_and_reported(
    fused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of resource: shared memory\nand more")

    monkeypatch.setattr(fused, "apply", fail)
    chosen, trials = try_out(block(), CPU, 16)
    assert chosen == (fused.gather, fused.mixing, PLAIN.apply)
    assert trials[2].failure == "RuntimeError: out of resource: shared memory"


def test_a_shape_of_block_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    monkeypatch.setattr(choose, "kernels_run_on", lambda _: True)
    monkeypatch.setattr(choose, "_chosen", {})
    monkeypatch.setattr(
        choose, "try_out", lambda *args, even_slower: (tried.append(even_slower), (PLAIN, []))[1]
    )
    assert passes_for(block()) == passes_for(block()) == PLAIN
    monkeypatch.setenv(choose.SWITCH, "on")
    passes_for(block())
    assert tried == [False, True]
    monkeypatch.setenv(choose.SWITCH, "off")
    passes_for(block())
    passes_for(block(torch.float32))
    assert len(tried) == 2


@pytest.mark.parametrize(
    ("version", "good"), [("3.2.0", False), ("3.3.1", True), ("3.10.0+git1", True), ("4.0", True)]
)
def test_a_triton_version_that_aborts_the_process_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, version: str, good: bool
) -> None:
    triton = require_triton()
    pretend_gpu(monkeypatch, (9, 0), ["sm_90"])
    monkeypatch.setattr(triton, "__version__", version)
    assert choose.kernels_run_on(torch.device("cuda")) is good


def test_without_triton_no_kernel_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (9, 0), ["sm_90"])
    monkeypatch.setattr(choose.importlib.util, "find_spec", lambda _: None)
    assert not choose.kernels_run_on(torch.device("cuda"))


def test_on_a_gpu_of_amd_no_kernel_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (9, 0), ["gfx90a"])
    monkeypatch.setattr(choose, "has_triton", lambda: True)
    assert choose.kernels_run_on(torch.device("cuda"))
    monkeypatch.setattr(torch.version, "hip", "6.2.41133")
    assert not choose.kernels_run_on(torch.device("cuda"))


def test_whether_kernels_are_tried_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for Triton takes a while, and every network call asks for each block."""
    checked: list[object] = []
    monkeypatch.setattr(choose, "_chosen", {})
    monkeypatch.setattr(choose, "are_tried", lambda *_: checked.append(0))
    assert passes_for(block()) == passes_for(block()) == PLAIN
    assert len(checked) == 1


def test_without_a_gpu_the_plain_passes_run() -> None:
    assert passes_for(block()) == PLAIN


def test_the_switch_has_three_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choose.SWITCH, "maybe")
    with pytest.raises(UsageError, match=r"C2FDFT_KERNELS must be auto, on or off, got .maybe."):
        passes_for(block())
